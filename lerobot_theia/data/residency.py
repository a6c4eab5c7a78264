"""Where a cache's tokens are while training reads them: on disk, in memory, or on the accelerator.

disk    memory-mapped shards; the page cache keeps what is read often
memory  one tensor per camera, shared by all loader workers
device  one tensor per camera where the policy is; the loader moves only its rows' numbers

In memory and on the device lie just the frames of the episodes that a run trains on or holds out.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import torch
from torch import Tensor

from lerobot_theia.cache import CacheError, FeatureCache
from lerobot_theia.cache.manifest import num_shards
from lerobot_theia.cache.plan import format_bytes
from lerobot_theia.cache.reader import Empty, new_tensor
from lerobot_theia.cache.storage import StoredTokens, bytes_per_frame

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")

SHARE_OF_MEMORY = 0.5
SHARE_OF_DEVICE = 0.6
"""How much of what is free `auto` takes at most: the rest is for activations, gradients, loaders and neighbours."""


@dataclass(frozen=True)
class FrameRuns:
    """Frames of a dataset, as runs that lie one behind the other in a table."""

    start: np.ndarray
    """(runs,) int64 first absolute frame index, ascending."""
    stop: np.ndarray
    """(runs,) one past the last."""
    views: int = 1
    """Rows per frame: its first so many views."""

    @classmethod
    def all_of(cls, cache: FeatureCache) -> Self:
        return cls(np.array([0]), np.array([len(cache)]))

    @classmethod
    def of_episodes(
        cls, frames_from: np.ndarray, frames_to: np.ndarray, episodes: Sequence[int], views: int = 1
    ) -> Self:
        """`frames_from`, `frames_to` are those of every episode of the dataset, in order."""
        chosen = np.unique(episodes)
        first = np.flatnonzero(np.diff(chosen, prepend=-2) != 1)
        last = np.append(first[1:], len(chosen)) - 1
        return cls(frames_from[chosen[first]], frames_to[chosen[last]], views)

    def __len__(self) -> int:
        """Number of frames."""
        return int((self.stop - self.start).sum())

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """First absolute frame index, one past the last, and how many frames come before."""
        yield from zip(self.start.tolist(), self.stop.tolist(), self._before().tolist(), strict=True)

    def rows(self, frames: np.ndarray, views: np.ndarray | None = None) -> np.ndarray:
        """Rows of absolute frame indices, which must be among these; of their plain views without `views`."""
        run = np.searchsorted(self.start, frames, side="right") - 1
        place = frames - self.start[run] + self._before()[run]
        return place * self.views + (0 if views is None else views)

    def _before(self) -> np.ndarray:
        lengths = self.stop - self.start
        return np.cumsum(lengths) - lengths


@dataclass(frozen=True)
class LoadedTokens:
    """Some frames of some cameras in memory; gathers as `FeatureCache` does."""

    tables: dict[str, StoredTokens]
    """Per camera, tokens (rows, N, D) and scales (rows, N)."""
    frames: FrameRuns
    """Which frames the rows are."""

    def gather_stored(
        self, camera: str, indices: np.ndarray, empty: Empty = new_tensor, views: np.ndarray | None = None
    ) -> StoredTokens:
        """As `FeatureCache.gather_stored`."""
        rows = torch.from_numpy(self.frames.rows(indices, views))

        def taken(table: Tensor) -> Tensor:
            return torch.index_select(table, 0, rows, out=empty((len(rows), *table.shape[1:]), table.dtype))

        table = self.tables[camera]
        return StoredTokens(taken(table.tokens), None if table.scale is None else taken(table.scale))

    def __deepcopy__(self, memo: dict) -> Self:
        """Copies of a policy (for averaging, say) share its tokens."""
        return self

    def take(self, camera: str, rows: Tensor) -> StoredTokens:
        """Rows (B,) of the tables, from an index that lies where they do."""
        table = self.tables[camera]
        scale = None if table.scale is None else table.scale.index_select(0, rows)
        return StoredTokens(table.tokens.index_select(0, rows), scale)


def load_tokens(
    cache: FeatureCache,
    cameras: list[str],
    device: torch.device,
    frames: FrameRuns | None = None,
    *,
    shared: bool = False,
) -> LoadedTokens:
    """Read `frames`, by default the plain views of all, shard after shard into a tensor per camera.

    `shared` puts these where loader workers will map them; else the first worker's start would hold them twice.
    """
    frames = FrameRuns.all_of(cache) if frames is None else frames
    shard_frames = cache.manifest.shard_frames
    tables = {}
    for camera in cameras:
        parts: dict[str, Tensor] = {}
        for start, stop, before in frames.runs():
            for shard in range(start // shard_frames, num_shards(stop, shard_frames)):
                begin = shard * shard_frames
                wanted = slice(max(start, begin), min(stop, begin + shard_frames))
                # A reader of its own: the map of a shard ends with it.
                tensors = FeatureCache(cache.path, cache.manifest).shard(camera, shard).tensors
                for name in tensors.keys() & {"tokens", "scale"}:
                    rows = tensors[name].unflatten(0, (-1, cache.views))[:, : frames.views]
                    part = rows[wanted.start - begin : wanted.stop - begin]
                    if name not in parts:
                        shape = (len(frames), *part.shape[1:])
                        parts[name] = torch.empty(shape, dtype=part.dtype, device=device)
                        if shared:
                            parts[name].share_memory_()
                    parts[name][before + wanted.start - start : before + wanted.stop - start].copy_(part)
        rows = {name: part.flatten(0, 1) for name, part in parts.items()}
        tables[camera] = StoredTokens(rows["tokens"], rows.get("scale"))
    return LoadedTokens(tables, frames)


def choose_residency(
    asked: str,
    cache: FeatureCache,
    cameras: list[str],
    rows: int,
    device: torch.device,
    num_workers: int = 0,
) -> str:
    """`disk`, `memory` or `device` for so many rows per camera of a cache; logs how it came to that.

    Raises CacheError, with both numbers and before anything is loaded, when what was asked for does not fit.
    """
    size = bytes_per_frame(*cache.token_shape, cache.manifest.layout.dtype) * rows * len(cameras)
    memory = free_memory(num_workers)
    # Without an accelerator the policy's device is this machine's memory.
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if asked == "auto":
        chosen = "disk"
        if device.type == "cuda" and size <= SHARE_OF_DEVICE * on_device:
            chosen = "device"
        elif num_workers == 0 and size <= SHARE_OF_MEMORY * memory:
            # Workers share memory-mapped files as they are.
            chosen = "memory"
    else:
        chosen = asked
        free = {"disk": size, "memory": memory, "device": on_device}[asked]
        if size > free:
            raise CacheError(
                f"--policy.cache_residency={asked} needs {format_bytes(size)}, {format_bytes(free)} are free"
                + (f" in {SHARED_MEMORY}, where {num_workers} workers share it" if num_workers else "")
                + ". Use disk, int8 tokens or pooling, or fewer cameras or episodes"
            )
    logger.info(
        "cache_residency=%s: %s (%s of tokens in %d rows, %s of memory free%s; auto takes at most %d %% of memory, and only without "
        "workers, or %d %% of an accelerator)",
        asked,
        chosen,
        format_bytes(size),
        rows,
        format_bytes(memory),
        f", {format_bytes(on_device)} on {device}" if device.type == "cuda" else "",
        100 * SHARE_OF_MEMORY,
        100 * SHARE_OF_DEVICE,
    )
    return chosen


def free_in_container() -> int:
    """Bytes left under a control group's limit (containers, Slurm), where there is one."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return sys.maxsize if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return sys.maxsize


def free_memory(num_workers: int = 0) -> int:
    """Bytes that this process may take; with loader workers, in the shared memory that tensors reach them through."""
    memory = min(psutil.virtual_memory().available, free_in_container())
    if num_workers and SHARED_MEMORY.is_dir():
        memory = min(memory, psutil.disk_usage(str(SHARED_MEMORY)).free)
    return memory // processes_to_load()


def processes_to_load() -> int:
    """How many processes of this run are yet to load their copy of the tokens on this machine, this one among them."""
    everywhere, here, of_machine = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    # LeRobot has a run's first process load before all others: those beside it find its copy taken already.
    after_the_first = everywhere == here > 0
    return of_machine - 1 if after_the_first else of_machine
