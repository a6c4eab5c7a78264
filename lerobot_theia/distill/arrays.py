"""A file of named arrays with one row per image: safetensors, written whole or not at all, read row by row."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from lerobot_theia.cache.files import publish
from lerobot_theia.cache.identity import canonical_json
from lerobot_theia.distill.errors import DistillError

ABOUT = "about"
"""The one key of the file's metadata; its value is JSON, and holds `sha256` over the arrays in order of name."""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    arrays = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    metadata = {ABOUT: canonical_json(dict(about) | {"sha256": arrays_sha256(arrays)})}
    publish(path, [safetensors.numpy.save(arrays, metadata)])


def arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


class Arrays:
    """Such a file, opened; its arrays stay on disk. Raises DistillError if it is none, ValueError never."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="np")
            self._slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            self.about: dict[str, Any] = json.loads((self._file.metadata() or {})[ABOUT])
            self.sha256: str = self.about["sha256"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DistillError(f"{path} is damaged ({type(error).__name__}: {error}); delete it") from error

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._slices)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slices[name].get_shape())

    def all(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """(len(rows), ...)."""
        return np.concatenate([self._slices[name][row : row + 1] for row in rows])

    def verify(self) -> None:
        """Read everything. Raises DistillError if it is not what was written."""
        if arrays_sha256({name: self.all(name) for name in self.names}) != self.sha256:
            raise DistillError(f"{self.path} was altered: its arrays do not match their SHA-256; delete it")
