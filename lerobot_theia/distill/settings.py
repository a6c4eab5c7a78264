"""From plain values, as Hydra hands them over, to settings that are checked field by field."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.schedule import Stage
from lerobot_theia.distill.sources.interface import Source
from lerobot_theia.distill.student import StudentSettings
from lerobot_theia.distill.teachers.interface import Teacher
from lerobot_theia.distill.training_settings import TrainingSettings

Values = Mapping[str, Any]
ON_THE_FLY, EXTRACTED = "on_the_fly", "extracted"


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """Which images.

    Args:
        sources: name to `type` and settings of the source.
        image_size: side in pixels to which images are squashed before they are kept.
        allow_skipped: share of images that may be unreadable or duplicate before the run stops.
        check_duplicates: compare the pixels of all images.
        repeat: source name to how often each of its images comes per epoch.
    """

    sources: Mapping[str, Values] = field(default_factory=dict)
    image_size: int = 224
    allow_skipped: float = 0.001
    check_duplicates: bool = True
    repeat: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.allow_skipped <= 1:
            raise DistillError(f"corpus.allow_skipped is {self.allow_skipped}, must be a share from 0 to 1")
        if self.image_size < 1:
            raise DistillError(f"corpus.image_size is {self.image_size}, must be above 0")
        for name, times in self.repeat.items():
            if name not in self.sources:
                raise DistillError(
                    f"corpus.repeat names {name!r}; the sources are {sorted(self.sources)}. Take it out, too, with "
                    f"~corpus.repeat.{name}"
                )
            if type(times) is not int or times < 1:
                raise DistillError(f"corpus.repeat.{name} is {times!r}, must be a whole number, at least 1")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is written beside the full result.

    Args:
        shipped: also write `shipped/`: the backbone alone in float16, small enough for a package.
    """

    shipped: bool = False


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """A whole distillation.

    Args:
        output_dir: of checkpoints, pictures, log and result.
        corpus, teachers, student, training, export: see there. A teacher's settings may hold `weight` and
            `features` (`extracted` or `on_the_fly`) beside its own.
        resume: go on from the newest checkpoint in `output_dir`.
        until: stop after `corpus` (packed) or `features` (extracted); None goes to the end.
        cache_root: of packed sources and extracted features; None is that of feature caches.
        device: `cpu` or `cuda`; None takes CUDA if there is one.
        verify: read what is already packed and extracted in full, against its checksums.
        feature_batch_size: images per step of an extraction.
    """

    output_dir: Path
    corpus: CorpusSettings
    teachers: Mapping[str, Values]
    student: StudentSettings
    training: TrainingSettings
    export: ExportSettings = ExportSettings()
    resume: bool = False
    until: str | None = None
    cache_root: str | None = None
    device: str | None = None
    verify: bool = True
    feature_batch_size: int = 32

    def __post_init__(self) -> None:
        if self.until not in (None, "corpus", "features"):
            raise DistillError(f"until is {self.until!r}, must be null, corpus or features")
        if self.feature_batch_size < 1:
            raise DistillError(f"feature_batch_size is {self.feature_batch_size}, must be at least 1")
        if self.device not in (None, "cpu", "cuda"):
            raise DistillError(f"device is {self.device!r}, must be null, cpu or cuda")


def settings_from(values: Values) -> DistillSettings:
    """Raises DistillError naming the field for whatever is unknown, missing or of another type."""
    values = dict(values)
    parts: dict[str, Any] = {}
    kinds = (
        ("corpus", CorpusSettings), ("student", StudentSettings), ("training", TrainingSettings),
        ("export", ExportSettings),
    )  # fmt: skip
    for name, kind in kinds:
        of_part = dict(values.pop(name, None) or {})
        if name == "training":
            of_part["stages"] = tuple(
                build(Stage, stage, "training.stages") for stage in of_part.get("stages") or ()
            )
            if not of_part["stages"]:
                del of_part["stages"]
        parts[name] = build(kind, of_part, name)
    values["output_dir"] = Path(values.get("output_dir") or "outputs/distill").expanduser()
    return build(DistillSettings, values | parts, "")


def plain_values(settings: DistillSettings) -> dict[str, Any]:
    """All settings, defaults too, as JSON values; absolute paths keep their last part only."""
    return _plain(dataclasses.asdict(settings) | {"output_dir": settings.output_dir.name, "cache_root": None})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str | Path):
        text = str(value)
        return Path(text).name if text.startswith(("/", "~")) else text
    return value


def build(kind: Callable[..., Any], values: Values, where: str) -> Any:
    """An instance of a settings dataclass; every value must be of a field and of its type."""
    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        raise DistillError(f"{where} is {values!r}, expected settings by name, such as {{{_names(kind)}}}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(fields)}"
            raise DistillError(f"unknown setting {prefix}{name}{hint}")
        if not _fits(value, hints[name]):
            raise DistillError(f"{prefix}{name} is {value!r}, expected {_words(hints[name])}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise DistillError(f"{prefix}{name} is missing: it must be given")
    return kind(**{name: _converted(value, hints[name]) for name, value in values.items()})


def make_source(name: str, values: Values) -> Source:
    """A source from its settings."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise DistillError(
            f"corpus.sources names a source {name!r}: letters, digits, `_`, `-` and `.` make a name, since it names a folder"
        )
    where = f"corpus.sources.{name}"
    values = _by_name(values, where)
    if "name" in values:  # two could be called the same
        raise DistillError(f"unknown setting {where}.name: a source is called what it stands under, {name!r}")
    kind = _class("sources", _SOURCES, values.pop("type", None), where)
    return build(kind, {"name": name, **values}, where)


def make_teacher(key: str, values: Values) -> tuple[Teacher, float, bool]:
    """A teacher from its settings, its weight, and whether its features are to be extracted."""
    where = f"teachers.{key}"
    values = _by_name(values, where)
    kind = values.pop("type", None)
    weight = values.pop("weight", 1.0)
    if type(weight) not in (int, float) or not weight > 0:
        raise DistillError(f"{where}.weight is {weight!r}, must be above 0")
    mode = values.pop("features", None) or (EXTRACTED if kind == "vision" else ON_THE_FLY)
    if mode not in (EXTRACTED, ON_THE_FLY):
        raise DistillError(f"{where}.features is {mode!r}, must be {EXTRACTED} or {ON_THE_FLY}")
    teacher = build(_class("teachers", _TEACHERS, kind, where), values, where)
    return teacher, float(weight), mode == EXTRACTED


# Kind to module and class; a module is imported when its kind is asked for.
_SOURCES = {
    "folder": ("folder", "FolderSource"),
    "webdataset": ("webdataset", "WebdatasetSource"),
    "video": ("video", "VideoSource"),
    "lerobot": ("lerobot", "LeRobotSource"),
    "pusht": ("pusht", "PushTSource"),
    "metaworld": ("metaworld", "MetaworldSource"),
    "aloha": ("aloha", "AlohaSource"),
}
_TEACHERS = {
    "vision": ("vision", "VisionTeacher"),
    "pusht": ("pusht", "PushTTeacher"),
    "mujoco": ("mujoco", "MujocoTeacher"),
}


def _by_name(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise DistillError(
            f"{where} is {values!r}, expected `type` and settings by name; take it out with ~{where}"
        )
    return dict(values)


def _class(package: str, kinds: Mapping[str, tuple[str, str]], kind: Any, where: str) -> Any:
    if kind not in kinds:
        raise DistillError(f"{where}.type is {kind!r}, must be one of {', '.join(kinds)}")
    module, name = kinds[kind]
    return getattr(import_module(f"lerobot_theia.distill.{package}.{module}"), name)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        inner = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(inner) == len(value) and all(map(_fits, value, inner))
    if origin is not None:
        return isinstance(value, Mapping)
    if hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    if hint is Path:
        return isinstance(value, str | Path)
    if hint in (int, bool, str):
        return type(value) is hint
    return isinstance(value, hint)


def _converted(value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in options:
        return Path(value).expanduser()
    return value


def _names(kind: Any) -> str:
    """`size: ..., share: ...`"""
    return ", ".join(f"{f.name}: ..." for f in dataclasses.fields(kind) if f.init)


def _words(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
