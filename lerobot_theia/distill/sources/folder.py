"""Image files, listed in a CSV file with the columns `path` and `split`."""

import csv
import functools
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from PIL import Image, UnidentifiedImageError

from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import SPLITS, TRAIN, VALIDATION, Frame, Item
from lerobot_theia.distill.licenses import required
from lerobot_theia.distill.sources.interface import Column, as_rgb, reason_of, stamp_of_files

_BROKEN = (
    UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip
"""What PIL raises for files that are no whole pictures."""
_SPLIT_NAMES = {name: name for name in SPLITS} | {"val": VALIDATION, "valid": VALIDATION, "training": TRAIN}


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Images of a folder.

    Args:
        path: the folder.
        manifest: CSV file with a header; `path` is relative to the folder, `split` is `train` or `validation`.
            Relative to the folder, or anywhere.
        license: of the images.
    """

    name: str
    path: Path
    license: str = ""
    manifest: str = "manifest.csv"

    shape: ClassVar[None] = None
    columns: ClassVar[Mapping[str, Column]] = {}

    def __post_init__(self) -> None:
        required(f"source {self.name!r}", self.license)
        if not self.path.is_dir():
            raise DistillError(f"source {self.name!r}: {self.path} is no folder")

    @property
    def origin(self) -> Mapping[str, Any]:
        return {"kind": "folder of images", "folder": self.path.name, "manifest": Path(self.manifest).name}

    def identity(self) -> Mapping[str, Any]:
        return {"type": "folder", "version": 1}

    def items(self) -> Sequence[Item]:
        return [Item(path, split) for path, split in self._listed]

    def stamp(self, start: int, stop: int) -> str:
        return stamp_of_files([self.path / path for path, _ in self._listed[start:stop]])

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        for path, _ in self._listed[start:stop]:
            yield read_image(self.path / path)

    @functools.cached_property
    def _listed(self) -> list[tuple[str, str]]:
        manifest = self.path / self.manifest
        try:
            with manifest.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                if missing := {"path", "split"} - set(reader.fieldnames or ()):
                    raise DistillError(
                        f"source {self.name!r}: {manifest} has no column {', '.join(sorted(missing))}; its first line must "
                        f"name `path` and `split`, found {reader.fieldnames}"
                    )
                rows = list(reader)
        except FileNotFoundError as error:
            raise DistillError(
                f"source {self.name!r}: there is no manifest {manifest}. Write one: CSV, its first line `path,split`, then a line "
                "per image with its path in the folder and `train` or `validation`; or name another with `manifest`"
            ) from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DistillError(
                f"source {self.name!r}: cannot read the manifest {manifest}: {error}"
            ) from error
        return [self._checked(number, row) for number, row in enumerate(rows, start=2)]

    def _checked(self, number: int, row: Mapping[str, str | None]) -> tuple[str, str]:
        path, split = (row["path"] or "").strip(), (row["split"] or "").strip().lower()
        where = f"source {self.name!r}: line {number} of {self.manifest}"
        if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise DistillError(f"{where}: path {path!r} must be inside {self.path}")
        if split not in _SPLIT_NAMES:
            raise DistillError(f"{where}: split {split!r} must be one of {', '.join(_SPLIT_NAMES)}")
        return path, _SPLIT_NAMES[split]


def read_image(file: Any) -> Frame | UnreadableError:
    """Of a path or an open file; what goes wrong is the result."""
    try:
        with Image.open(file) as image:
            return Frame(as_rgb(image, "image"))
    except UnreadableError as error:
        return error
    except FileNotFoundError:
        return UnreadableError("there is no such file")
    except _BROKEN as error:
        return UnreadableError(reason_of(error))
