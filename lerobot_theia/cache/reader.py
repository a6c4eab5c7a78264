"""Reading a cache: open it, gather rows from memory-mapped shards."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lerobot_theia.cache.errors import CacheDamagedError
from lerobot_theia.cache.manifest import Manifest, read_manifest
from lerobot_theia.cache.paging import in_huge_pages, read_ahead, read_at_random, waits_for_disk
from lerobot_theia.cache.shard import Shard, check_header, shard_path, verify_shard
from lerobot_theia.cache.storage import StoredTokens, decode_tokens, torch_dtype

READ_AHEAD_BATCHES = 1000

type Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]


def new_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return in_huge_pages(torch.empty(shape, dtype=dtype))


class FeatureCache:
    """The tokens of all cameras of a dataset.

        cache = FeatureCache.open("cache/lerobot--pusht/theia-tiny-cdiv-float16-1a2b3c4d5e6f")
        cache.gather("observation.image", [17, 18])  # (2, 196, 192) float16

    Opening reads the manifest, and size and header of each shard. A shard is mapped into memory when a row of
    it is first asked for. Pickling an open cache pickles its path and manifest and no tokens: loader workers map
    the files themselves.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._shards: dict[tuple[str, int], Shard] = {}
        self._rows: dict[tuple[str, int, str], np.ndarray] = {}
        self._read_ahead = 0

    @classmethod
    def open(cls, path: str | Path) -> "FeatureCache":
        """Raises CacheDamagedError, naming the shard, when a file is missing, resized, swapped or of another cache."""
        path = Path(path)
        cache = cls(path, read_manifest(path))
        cache.check_headers()
        return cache

    def __getstate__(self) -> dict:
        return {"path": self.path, "manifest": self.manifest, "_shards": {}, "_rows": {}, "_read_ahead": 0}

    @property
    def cameras(self) -> list[str]:
        return self.manifest.cameras

    def __len__(self) -> int:
        """Frames per camera."""
        return self.manifest.num_frames

    @property
    def views(self) -> int:
        """Rows per frame; the first is the plain frame."""
        return self.manifest.layout.views

    @property
    def token_shape(self) -> tuple[int, int]:
        """(N, D) of one frame."""
        return self.manifest.layout.num_tokens, self.manifest.layout.dim

    def gather(self, camera: str, indices: "list[int] | np.ndarray | Tensor") -> Tensor:
        """Tokens of frames (absolute indices), (B, N, D) in the cache's float dtype; int8 comes as float32."""
        stored = self.gather_stored(camera, np.asarray(indices, dtype=np.int64))
        return stored.tokens if stored.scale is None else decode_tokens(stored.tokens, stored.scale)

    def gather_stored(
        self, camera: str, indices: np.ndarray, empty: Empty = new_tensor, views: np.ndarray | None = None
    ) -> StoredTokens:
        """Tokens of frames `indices` (B,) int64 as they lie in the shards, for decoding on a device.

        `empty(shape, dtype)` makes the tensors they are copied into: loader workers have theirs in shared memory.
        `views` (B,) int64 says which view of each frame; None is the plain frame.
        """
        if camera not in self.manifest.shards:
            raise KeyError(f"cache {self.path} has no camera {camera!r}; it has {self.cameras}")
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(
                f"frames {indices.min()}..{indices.max()} asked of cache {self.path}, which holds 0..{len(self) - 1}"
            )
        if views is not None and views.size and not (views.min() >= 0 and views.max() < self.views):
            raise IndexError(
                f"views {views.min()}..{views.max()} asked of cache {self.path}, which holds {self.views} a frame"
            )
        num_tokens, dim = self.token_shape
        dtype = self.manifest.layout.dtype
        rows = indices * self.views + (0 if views is None else views)
        tokens = empty((len(indices), num_tokens, dim), torch_dtype(dtype))
        self._gather(camera, "tokens", rows, tokens)
        if dtype != "int8":
            return StoredTokens(tokens)
        scale = empty((len(indices), num_tokens), torch.float32)
        self._gather(camera, "scale", rows, scale)
        return StoredTokens(tokens, scale)

    def _gather(self, camera: str, name: str, wanted: np.ndarray, out: Tensor) -> None:
        """One copy per row of those `wanted` into `out`, in the order they lie on disk."""
        copies = out.flatten(1).view(torch.uint8).numpy()
        shards, offsets = np.divmod(wanted, self.manifest.shard_frames * self.views)
        order = np.argsort(wanted, kind="stable").tolist()
        rows = [self._shard_rows(camera, int(shards[i]), name)[offsets[i]] for i in order]
        waits = waits_for_disk()
        if self._read_ahead:
            self._read_ahead -= 1
            for row in rows:
                read_ahead(row)
        for i, row in zip(order, rows, strict=True):
            copies[i] = row
        if not self._read_ahead and waits_for_disk() > waits:
            # Rows come from disk: ask for all of a batch at once, and look again in a while whether that is still so.
            self._read_ahead = READ_AHEAD_BATCHES

    def _shard_rows(self, camera: str, shard: int, name: str) -> np.ndarray:
        rows = self._rows.get((camera, shard, name))
        if rows is None:
            rows = self.shard(camera, shard).rows(name)
            read_at_random(rows)
            self._rows[camera, shard, name] = rows
        return rows

    def shard(self, camera: str, shard: int) -> Shard:
        opened = self._shards.get((camera, shard))
        if opened is None:
            opened = Shard(**self.where(camera, shard))
            self._shards[camera, shard] = opened
        return opened

    def where(self, camera: str, shard: int) -> dict[str, Any]:
        """Arguments of `Shard`, `check_header` and `verify_shard`."""
        return {
            "path": shard_path(self.path, camera, shard),
            "key": self.manifest.shard_key(camera, shard),
            "layout": self.manifest.layout,
            "cache": self.path,
            "sha256": self.manifest.shards[camera][shard],
        }

    def check_headers(self) -> None:
        """Look at size and header of each shard. Raises CacheDamagedError naming the first that is not right."""
        with contextlib.ExitStack() as stack:
            folders: dict[str, int | None] = {}
            for camera, shard in self.manifest.shard_names():
                where = self.where(camera, shard)
                if camera not in folders:
                    folders[camera] = open_folder(where["path"].parent, stack)
                try:
                    check_header(**where, opened=folders[camera])
                except CacheDamagedError as error:
                    raise CacheDamagedError(f"{error}. {MEND}") from error

    def verify(self, progress: Callable[[int], object] = lambda _: None) -> list[str]:
        """Read every byte; returns what is wrong, one line per damaged shard. `progress` gets bytes read."""
        problems = []
        for camera, shard in self.manifest.shard_names():
            try:
                verify_shard(**self.where(camera, shard))
            except CacheDamagedError as error:
                problems.append(str(error))
            progress(self.manifest.shard_bytes(camera, shard))
        return problems


def open_folder(folder: Path, stack: contextlib.ExitStack) -> int | None:
    """A descriptor of a folder that is no link, or None."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    stack.callback(os.close, descriptor)
    return descriptor


MEND = (
    "`lerobot-theia-cache verify --repair` makes damaged shards again, as does `lerobot-theia-precompute` with the "
    "settings of this cache"
)
