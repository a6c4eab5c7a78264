"""Shared by the distillation's tests: small settings, and a run that was trained once."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lerobot_theia.distill.errors import UnreadableError
from lerobot_theia.distill.frames import Frame
from lerobot_theia.distill.run import distill
from lerobot_theia.distill.settings import settings_from
from lerobot_theia.distill.sources import folder as folder_source
from lerobot_theia.distill.watcher import Watcher

Values = dict[str, Any]


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """`values` with dotted names of `changes` set: {"training.steps": 3}."""
    result: Values = json.loads(json.dumps(values))
    for name, value in changes.items():
        *folders, last = name.split(".")
        place = result
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return result


@pytest.fixture(scope="session")
def pusht_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests' PushT frames are packed, once for all of them."""
    return tmp_path_factory.mktemp("distill-cache")


@pytest.fixture
def values(tmp_path: Path, pusht_cache: Path) -> Values:
    """Settings of a run of seconds: 60 PushT frames, two blocks of width 64, four steps."""
    return {
        "output_dir": str(tmp_path / "run"),
        "cache_root": str(pusht_cache),
        "device": "cpu",
        "corpus": {"sources": {"pusht": {"type": "pusht", "images": 60, "validation": 0.2}}},
        "teachers": {"pusht": {"type": "pusht", "resolution": 16}},
        "student": {"name": "test-student", "hidden_size": 64, "num_layers": 2},
        "training": {
            "steps": 4,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "warmup": 0.0,
            "stages": [{"size": 32, "share": 1.0}],
            "log_every": 1,
            "validate_every": 2,
            "checkpoint_every": 2,
            "validation_images": 8,
            "pictures": 2,
        },
    }


class Heard(Watcher):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.said: list[str] = []

    def log(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)

    def say(self, text: str) -> None:
        self.said.append(text)


Run = Callable[..., Path]


@pytest.fixture
def run(values: Values) -> Run:
    """Run a distillation with changed settings, `{"training.steps": 3}`; returns the folder of the result."""

    def run(changes: Mapping[str, Any] | None = None, watcher: Watcher | None = None) -> Path:
        settings = settings_from(merged(values, changes or {}))
        result = distill(settings, watcher or Heard())
        return settings.output_dir / "student" if result is None else result

    return run


@contextmanager
def no_right_to_read(name: str) -> Iterator[None]:
    """A picture of a folder cannot be read for a while, though its file looks as ever."""
    real = folder_source.read_image

    def read_image(path: Path) -> Frame | UnreadableError:
        return UnreadableError("Permission denied") if path.name == name else real(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(folder_source, "read_image", read_image)
        yield


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """24 different pictures of different sizes, and their manifest: every sixth is held out."""
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["path,split"]
    for i in range(24):
        path = f"a/{i:02d}.png" if i % 2 else f"{i:02d}.jpg"
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(folder / path)
        lines.append(f"{path},{'validation' if i % 6 == 0 else 'train'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder
