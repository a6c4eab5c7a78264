"""Where a cache's tokens are while training reads them: on disk, in memory, or on the accelerator.

disk    memory-mapped shards; the page cache keeps what is read often
memory  one tensor per camera, shared by all loader workers
device  one tensor per camera where the policy is; the loader moves only frame indices
"""

import logging
import os
import sys
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
class LoadedTokens:
    """All frames of some cameras in memory; gathers as `FeatureCache` does."""

    tables: dict[str, StoredTokens]
    """Per camera, tokens (frames, N, D) and scales (frames, N), by absolute frame index."""

    def gather_stored(self, camera: str, indices: np.ndarray, empty: Empty = new_tensor) -> StoredTokens:
        """`empty(shape, dtype)` makes the tensors they are copied into."""
        rows = torch.from_numpy(indices)

        def taken(table: Tensor) -> Tensor:
            return torch.index_select(table, 0, rows, out=empty((len(rows), *table.shape[1:]), table.dtype))

        table = self.tables[camera]
        return StoredTokens(taken(table.tokens), None if table.scale is None else taken(table.scale))

    def __deepcopy__(self, memo: dict) -> Self:
        """Copies of a policy (for averaging, say) share its tokens."""
        return self

    def take(self, camera: str, indices: Tensor) -> StoredTokens:
        """Rows `indices` (B,), which lie where the tables do."""
        table = self.tables[camera]
        scale = None if table.scale is None else table.scale.index_select(0, indices)
        return StoredTokens(table.tokens.index_select(0, indices), scale)


def load_tokens(cache: FeatureCache, cameras: list[str], device: torch.device) -> LoadedTokens:
    """Read whole shards, one after the other, into a tensor per camera."""
    manifest = cache.manifest
    tables = {}
    for camera in cameras:
        parts: dict[str, Tensor] = {}
        for shard in range(num_shards(len(cache), manifest.shard_frames)):
            opened = cache.shard(camera, shard)
            for name in ("tokens", "scale"):
                if name in opened.tensors:
                    part = opened.tensors[name]
                    if name not in parts:
                        shape = (len(cache), *part.shape[1:])
                        parts[name] = torch.empty(shape, dtype=part.dtype, device=device)
                    parts[name][opened.key.start : opened.key.start + opened.key.frames].copy_(part)
        tables[camera] = StoredTokens(parts["tokens"], parts.get("scale"))
    return LoadedTokens(tables)


def choose_residency(
    asked: str, cache: FeatureCache, cameras: list[str], device: torch.device, num_workers: int = 0
) -> str:
    """`disk`, `memory` or `device`; logs how it came to that.

    Raises CacheError, with both numbers and before anything is loaded, when what was asked for does not fit.
    """
    size = bytes_per_frame(*cache.token_shape, cache.manifest.layout.dtype) * len(cache) * len(cameras)
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
                + ". Use disk, int8 tokens or pooling, or fewer cameras"
            )
    logger.info(
        "cache_residency=%s: %s (%s of tokens, %s of memory free%s; auto takes at most %d %% of memory, and only without "
        "workers, or %d %% of an accelerator)",
        asked,
        chosen,
        format_bytes(size),
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
    # Processes of one run on one machine each load a copy.
    memory = min(psutil.virtual_memory().available, free_in_container()) // int(
        os.environ.get("LOCAL_WORLD_SIZE", "1")
    )
    if num_workers and SHARED_MEMORY.is_dir():
        memory = min(memory, psutil.disk_usage(str(SHARED_MEMORY)).free)
    return memory
