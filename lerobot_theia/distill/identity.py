"""What must be the same in all sessions of a run, and what to say when it is not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lerobot_theia.distill.checkpoint import Position
from lerobot_theia.distill.corpus import Corpus
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.hashing import digest_of
from lerobot_theia.distill.settings import DistillSettings
from lerobot_theia.distill.student import Beginning
from lerobot_theia.distill.teachers.interface import Teacher


def run_identity(
    settings: DistillSettings, teachers: Sequence[Teacher], beginning: Beginning, corpus: Corpus | None = None
) -> dict[str, Any]:
    """What must be the same in all sessions of a run: without a corpus, as far as is known before there is one.

    Learning rate and number of steps may change.
    """
    spec = beginning.student.spec
    run: dict[str, Any] = {
        "teachers": {
            teacher.name: {"feature_size": list(teacher.feature_size), **dict(teacher.identity())}
            for teacher in teachers
        },
        "teacher_weights": {
            teacher.name: float(values.get("weight", 1))
            for teacher, values in zip(teachers, settings.teachers.values(), strict=True)
        },
        "student": {
            "hidden_size": spec.hidden_size,
            "num_layers": spec.num_layers,
            "train_blocks": settings.training.train_blocks,
            "init_weights_sha256": beginning.init_sha256,
        },
        "batch_size": settings.training.batch_size,
        "seed": settings.training.seed,
    }
    if corpus is not None:
        run["corpus"] = corpus.content_sha256
        run["training_images"] = digest_of([int(index) for index in corpus.epoch])
    return run


def check_resumed(resumed: tuple[Path, Position] | None, run: Mapping[str, Any]) -> None:
    """Raise if there is a checkpoint to resume, and it is of another run."""
    if resumed is not None:
        folder, position = resumed
        check_same_run(folder, position.run, run)


def check_same_run(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint is of the run that is configured."""
    for name, value in wanted.items():
        before = found.get(name)
        if before == value:
            continue
        if name == "teachers" and isinstance(before, dict) and isinstance(value, dict):
            raise DistillError(
                f"checkpoint {folder} was made with the teachers {sorted(before)}, configured are {sorted(value)}"
                f"{_differing(before, value)}: resume with its teachers, or begin anew in another output_dir, with "
                f"student.init={folder}"
            )
        raise DistillError(
            f"checkpoint {folder} was made with {name}={before}, configured is {value}: resume with the settings it was "
            "begun with, or begin anew in another output_dir"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
    return f" (in another form: {', '.join(names)})" if names else ""
