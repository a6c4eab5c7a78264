"""What must be the same in all sessions of a run, and what to say when it is not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lerobot_theia.distill.checkpoint import Position
from lerobot_theia.distill.corpus import Corpus
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.hashing import digest_of
from lerobot_theia.distill.nested import flat
from lerobot_theia.distill.settings import DistillSettings, plain_values
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
        "image_size": settings.corpus.image_size,
        "batch_size": settings.training.batch_size,
        "seed": settings.training.seed,
    }
    if corpus is not None:
        run["corpus"] = [[source.name, source.content_sha256] for source in corpus.sources]
        run["training_images"] = digest_of([int(index) for index in corpus.epoch])
    return run


def check_resumed(
    resumed: tuple[Path, Position] | None, run: Mapping[str, Any], settings: DistillSettings
) -> None:
    """Raise if there is a checkpoint to resume, and it is of another run."""
    if resumed is None:
        return
    folder, position = resumed
    for name, value in run.items():
        before = position.run[name]
        if before == value:
            continue
        if name == "teachers":
            raise DistillError(
                f"checkpoint {folder} was made with the teachers {sorted(before)}, configured are {sorted(value)}"
                f"{_in_another_form(before, value)}: resume with its teachers, or begin anew in another output_dir, with "
                f"student.init={folder}"
            )
        if name in ("corpus", "training_images"):
            raise DistillError(_another_corpus(folder, position, before, value, settings))
        raise DistillError(
            f"checkpoint {folder} was made with {name}={before}, configured is {value}: resume with the settings it was "
            "begun with, or begin anew in another output_dir"
        )


def _in_another_form(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = _different({name: before[name] for name in before.keys() & now.keys()}, now)
    return f" (in another form: {', '.join(names)})" if names else ""


def _another_corpus(
    folder: Path, position: Position, before: Any, now: Any, settings: DistillSettings
) -> str:
    """Which settings differ; where none does, whose images do, or that they come in another order."""
    then = flat(position.history[-1]["settings"]["corpus"])
    today = flat(json.loads(json.dumps(plain_values(settings)["corpus"])))
    changes = [
        f"corpus.{name}={today.get(name, '(left out)')} (was {then.get(name, 'not given')})"
        for name in sorted(then.keys() | today.keys())
        if then.get(name) != today.get(name)
    ]
    if changes:
        return (
            f"checkpoint {folder} was made from another corpus: {', '.join(changes)}. Resume with the settings it was begun with, "
            "or begin anew in another output_dir"
        )
    remedy = f"put them back as they were, or begin anew in another output_dir, with student.init={folder}"
    if not isinstance(now, list):
        return f"other images are in the training split than when checkpoint {folder} was made: {remedy}"
    if names := _different(dict(before), dict(now)):
        return (
            f"the images of source {', '.join(names)} are not those that checkpoint {folder} was made from: {remedy}. Were some "
            "unreadable then, and another run has taken them in since, it can only begin anew"
        )
    order = ", ".join(name for name, _ in before)
    return f"checkpoint {folder} was made from the sources {order} in this order, in which images are drawn: name them so"


def _different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted(before) if before[name] != now.get(name)]
