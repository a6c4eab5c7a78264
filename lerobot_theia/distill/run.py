"""From settings to a student: corpus, teachers, training, result."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from lerobot_theia.cache.errors import CannotWriteError
from lerobot_theia.cache.root import resolve_cache_root
from lerobot_theia.distill.checkpoint import Position, newest_position, whole_checkpoints
from lerobot_theia.distill.corpus import Corpus, check_splits
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.features import Sharing, StoredFeatures, extract
from lerobot_theia.distill.frames import TRAIN, VALIDATION
from lerobot_theia.distill.identity import check_resumed, run_identity
from lerobot_theia.distill.layout import (
    STATISTICS_FILE,
    read_statistics,
    write_statistics,
)
from lerobot_theia.distill.lessons import Lesson, check_coverage, sampled_standard, teaches
from lerobot_theia.distill.licenses import strictest, student_license
from lerobot_theia.distill.loss import Standard
from lerobot_theia.distill.pack import PackedSource, PackSettings, check_items, look, pack
from lerobot_theia.distill.place import alone_in
from lerobot_theia.distill.provenance import session
from lerobot_theia.distill.result import write_result
from lerobot_theia.distill.settings import DistillSettings, make_source, make_teacher
from lerobot_theia.distill.sources.interface import Source
from lerobot_theia.distill.student import Beginning, make_student
from lerobot_theia.distill.teachers.interface import Teacher
from lerobot_theia.distill.training import Training, check_device, make_accelerator
from lerobot_theia.distill.watcher import Watcher
from lerobot_theia.encoder.translator import check_teachers

RESULT = "student"
Progress = Callable[[str, int, int], None]
"""Told what is being done, how many images are newly done, and of how many."""


def distill(
    settings: DistillSettings,
    watcher: Watcher | None = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> Path | None:
    """Run a distillation.

    Args:
        watcher: told of training.
        progress: told of packing and extracting.
        command: what was typed.

    Returns:
        The folder of the result; None if `settings.until` stopped before.

    Raises:
        DistillError: naming the item and the remedy; `resume=true` goes on where the run stopped.
    """
    watcher, processes = watcher or Watcher(), int(os.environ.get("WORLD_SIZE", "1"))
    if settings.training.batch_size % processes:
        raise DistillError(
            f"training.batch_size is {settings.training.batch_size}, which {processes} processes cannot share out evenly"
        )
    first = os.environ.get("RANK", "0") == "0"  # both set by `accelerate launch`
    writes = first and settings.until is None
    try:
        with alone_in(settings.output_dir) if writes else contextlib.nullcontext():
            return _distill(settings, watcher, progress, command, processes)
    except CannotWriteError as error:
        raise DistillError(
            f"{error.refused}. Free some space, or choose another place with output_dir=... or cache_root=.... What is packed, "
            "extracted and in checkpoints is kept, and resume=true goes on from there"
        ) from error


def _distill(
    settings: DistillSettings,
    watcher: Watcher,
    progress: Progress | None,
    command: Sequence[str],
    processes: int,
) -> Path | None:
    output_dir = settings.output_dir
    begun = bool(whole_checkpoints(output_dir))
    if begun and not settings.resume and settings.until is None:
        raise DistillError(
            f"{output_dir} already holds a run: go on with it with resume=true, or choose another output_dir"
        )
    check_device(settings.device)
    wanted = {} if settings.until == "corpus" else settings.teachers
    taught = [make_teacher(key, values) for key, values in wanted.items()]
    teachers = [teacher for teacher, _, _ in taught]
    check_names(teachers)
    resumed = newest_position(output_dir) if settings.resume and settings.until is None else None
    beginning = begin(settings, teachers, resumed) if settings.until is None else None
    root = resolve_cache_root(settings.cache_root) / "distill"
    sources = make_sources(settings)
    if settings.until != "corpus":
        check_coverage(sources, teachers)
    corpus = pack_corpus(settings, sources, root, progress, watcher, retry=processes == 1 and not begun)
    if settings.until == "corpus":
        return None
    if beginning is not None:
        check_resumed(resumed, run_identity(settings, teachers, beginning, corpus), settings)
    partial = any(not teaches(teacher, source) for teacher in teachers for source in corpus.sources)
    accelerator = make_accelerator(settings.device, partial)
    stored = extract_features(settings, root, corpus, taught, accelerator, progress)
    if beginning is None:  # until features
        return None

    standards = statistics(output_dir if begun else None, corpus, teachers, stored, accelerator)
    lessons = [
        Lesson(teacher, weight, stored.get(teacher.name), standards[teacher.name])
        for teacher, weight, _ in taught
    ]
    training = Training(
        settings.training,
        beginning.student,
        corpus,
        lessons,
        output_dir,
        run_identity(settings, teachers, beginning, corpus),
        session(settings, corpus, teachers, beginning, accelerator, command),
        accelerator,
        watcher,
    )
    if resumed is not None:
        training.resume(*resumed)
    elif settings.resume:
        watcher.say(f"no checkpoint in {output_dir} yet: beginning at step 0")
    # What this session states counts even if it takes no step: someone may have learned better.
    licenses = strictest([each["licenses"] for each in (*training.history, training.session)])
    license, commercial = student_license(licenses)
    beginning.student.spec = replace(beginning.student.spec, license=license)
    watcher.say(describe(corpus, lessons, beginning, training, commercial))
    if accelerator.is_main_process:
        write_statistics(output_dir, standards)  # a resumed run trains towards the same targets
    trained = training.train()
    result = output_dir / RESULT
    if accelerator.is_main_process:
        write_result(result, settings, beginning, licenses, corpus, lessons, trained)
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        accelerator.end_training()  # A process that ends while the group's threads run is aborted.
    return result


def begin(
    settings: DistillSettings, teachers: Sequence[Teacher], resumed: tuple[Path, Position] | None
) -> Beginning:
    """The student as it is before training, of settings that fit it and, if the run is resumed, the run."""
    beginning = make_student(
        settings.student,
        {teacher.name: teacher.feature_size for teacher in teachers},
        license="",
        seed=settings.training.seed,
    )
    if settings.training.train_blocks is not None:
        if settings.student.init is None:
            raise DistillError(
                f"training.train_blocks={settings.training.train_blocks} trains the last blocks of a student, but student.init "
                "names none: the others would stay as they were drawn. Name an encoder to fine-tune, student.init=<encoder>, "
                "or leave train_blocks out"
            )
        beginning.student.train_last(settings.training.train_blocks)
    check_resumed(resumed, run_identity(settings, teachers, beginning), settings)
    return beginning


def make_sources(settings: DistillSettings) -> list[Source]:
    """Sources whose images can make a corpus, as far as is known before one is read."""
    if not settings.corpus.sources:
        raise DistillError("the corpus has no source: choose one with `corpus=...`")
    sources = [make_source(name, values) for name, values in settings.corpus.sources.items()]
    items = {source.name: source.items() for source in sources}
    for name, each in items.items():
        check_items(name, each)
    check_splits({item.split for each in items.values() for item in each}, list(items))
    return sources


def pack_corpus(
    settings: DistillSettings,
    sources: Sequence[Source],
    root: Path,
    progress: Progress | None,
    watcher: Watcher,
    *,
    retry: bool,
) -> Corpus:
    pack_settings = PackSettings(
        root=root / "frames", image_size=settings.corpus.image_size, verify=settings.verify, retry=retry
    )
    for source in sources:
        look(source, pack_settings)
    packed: list[PackedSource] = []
    for source in sources:
        total = len(source.items())

        def advance(new: int, what: str = source.name, total: int = total) -> None:
            if progress is not None:
                progress(f"pack {what}", new, total)

        packed.append(pack(source, pack_settings, settings.corpus.allow_skipped, advance))
    corpus = Corpus(
        packed, settings.corpus.repeat, settings.corpus.allow_skipped, settings.corpus.check_duplicates
    )
    for skipped in corpus.skipped:
        watcher.say(f"left out: {skipped.id}: {skipped.reason}")
    return corpus


def extract_features(
    settings: DistillSettings,
    root: Path,
    corpus: Corpus,
    taught: Sequence[tuple[Teacher, float, bool]],
    accelerator: Accelerator,
    progress: Progress | None,
) -> dict[str, StoredFeatures]:
    """Teachers one after the other, so that only one large model is in memory at a time."""
    sharing = Sharing(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)
    stored = {}
    for teacher, _, extracted in taught:
        if not extracted:
            teacher.to(accelerator.device)
            continue
        sources = [source for source in corpus.sources if teaches(teacher, source)]
        total = sum(len(source) for source in sources)

        def advance(new: int, what: str = teacher.name, total: int = total) -> None:
            if progress is not None:
                progress(f"extract {what}", new, total)

        teacher.to(accelerator.device)
        stored[teacher.name] = extract(
            teacher,
            sources,
            root / "features",
            device=accelerator.device,
            batch_size=settings.feature_batch_size,
            verify=settings.verify,
            sharing=sharing,
            progress=advance,
        )
        teacher.release()
    return stored


def statistics(
    begun_in: Path | None,
    corpus: Corpus,
    teachers: Sequence[Teacher],
    stored: dict[str, StoredFeatures],
    accelerator: Accelerator,
) -> dict[str, Standard]:
    """Per-channel statistics: of a run already begun as they were, else from what is extracted or a sample."""
    known = {}
    if begun_in is not None and (begun_in / STATISTICS_FILE).is_file():
        known = read_statistics(begun_in)
    standards = {}
    for teacher in teachers:
        if teacher.name in known:
            standards[teacher.name] = known[teacher.name]
        elif teacher.name in stored:
            standards[teacher.name] = stored[teacher.name].standard()
        else:
            standards[teacher.name] = sampled_standard(teacher, corpus, accelerator.device)
    return standards


def check_names(teachers: Sequence[Teacher]) -> None:
    names = [teacher.name for teacher in teachers]
    for name in names:
        if names.count(name) > 1:
            raise DistillError(
                f"two teachers are called {name!r}: give one of them another `name`, since it names a head of the student"
            )
    try:
        check_teachers(names)
    except ValueError as error:
        raise DistillError(
            f"{error}. Give it another `name`, since that names a head of the student"
        ) from error


def describe(
    corpus: Corpus, lessons: Sequence[Lesson], beginning: Beginning, training: Training, commercial: str
) -> str:
    """What is about to happen, in a few lines."""
    spec = beginning.student.spec
    sources = ", ".join(f"{source.name} ({len(source):,})" for source in corpus.sources)
    teachers = ", ".join(f"{lesson.teacher.name} {lesson.teacher.feature_size}" for lesson in lessons)
    warning = "" if commercial == "allowed" else f"\nlicence of the result: {spec.license}"
    return (
        f"student {spec.name}: {spec.num_layers} layers of {spec.hidden_size}\n"
        f"images {len(corpus.indices[TRAIN]):,} to train, {len(corpus.indices[VALIDATION]):,} held out: {sources}\n"
        f"teachers {teachers}\n"
        f"steps {training.steps:,} of {training.settings.batch_size} images "
        f"({training.steps / training.order.steps_per_epoch:.1f} epochs)" + warning
    )
