"""What a source of images is: a list of items with stable ids, and a way to read any stretch of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import UnidentifiedImageError

from lerobot_theia.distill.errors import UnreadableError
from lerobot_theia.distill.frames import Frame, Item
from lerobot_theia.distill.hashing import digest_of


@dataclass(frozen=True)
class Column:
    """Shape (of one image) and type of something a simulator knows."""

    shape: tuple[int, ...]
    dtype: str


class Source(Protocol):
    """Images from one place, in a fixed order.

    Making one must be cheap and checks the settings; reading happens in `read`.
    """

    name: str
    """Names the source in ids, folders and messages."""
    license: str
    """Of the images, in words or as an SPDX identifier."""
    shape: tuple[int, int] | None
    """(height, width) of all images; None if they differ."""
    columns: Mapping[str, Column]
    """What is known of each image beside its pixels."""
    origin: Mapping[str, Any]
    """Where the images come from, for the provenance file."""

    def identity(self) -> Mapping[str, Any]:
        """Settings that decide which images these are, but for the list of ids."""
        ...

    def items(self) -> Sequence[Item]: ...

    def stamp(self, start: int, stop: int) -> str:
        """Differs when what items start..stop are read from has changed. Looks at files, does not read them."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        """Items start..stop in order, one result for each."""
        ...


def stamp_of_files(paths: Sequence[Path]) -> str:
    """Places, sizes and modification times; a missing file is part of it, and found when it is read."""
    seen = []
    for path in dict.fromkeys(paths):
        try:
            status = path.stat()
            # With its folder: of two archives unpacked with the same times, files may be alike in name and size.
            seen.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
        except OSError:
            seen.append([str(path), -1, -1])
    return digest_of(seen)


def as_rgb(image: Any, what: str) -> np.ndarray:
    """(H, W, 3) uint8 of what PIL opened. Raises UnreadableError for anything that is no picture of 8 bits."""
    if image.mode == "F" or image.mode.startswith("I"):  # PIL would cut values off at 255
        raise UnreadableError(f"{what}: more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
    array = np.array(image.convert("RGB"))
    if array.ndim != 3 or 0 in array.shape:
        raise UnreadableError(f"{what}: an image of shape {array.shape}")
    return array


def reason_of(error: Exception) -> str:
    """Why something cannot be read, in one line and without paths of this machine."""
    text = getattr(error, "strerror", None) or (
        "" if isinstance(error, UnidentifiedImageError) else str(error)
    )
    return " ".join(f"{type(error).__name__}: {text}".split()).rstrip(": ")[:200]
