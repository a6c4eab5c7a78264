"""What the cache's tests share: settings for tiny runs, copies to damage, a look at the files."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import Report, precompute
from tests.datasets import REPO_ID

TOP, WRIST = "observation.images.top", "observation.images.wrist"


def settings(dataset: Path, cache_root: Path, **changes: Any) -> PrecomputeSettings:
    """A run with the untrained encoder and the smallest shards: 13 frames of float16, 6 of float32."""
    fields = {
        "repo_id": REPO_ID,
        "root": str(dataset),
        "cache_root": str(cache_root),
        "encoder": "random-tiny",
        "device": "cpu",
        "shard_mib": 1,
        "batch_size": 8,
    }
    return PrecomputeSettings(**fields | changes)


def run(dataset: Path, cache_root: Path, **changes: Any) -> tuple[Report, str]:
    """Precompute; the report and all that was said."""
    said: list[str] = []
    report = precompute(settings(dataset, cache_root, **changes), say=said.append)
    return report, "\n".join(said)


def copy_of(cache: FeatureCache, folder: Path) -> FeatureCache:
    """The same cache under a root of its own, to be damaged."""
    root = cache.path.parents[1]
    copied = shutil.copytree(root, folder / "caches")
    return FeatureCache.open(copied / cache.path.relative_to(root))


def shards(cache: Path) -> list[Path]:
    """Published shards: a file still being written has another name and is a stray."""
    return sorted(cache.glob("*/[0-9]*.safetensors"))


def digests(cache: Path) -> dict[str, str]:
    """SHA-256 of each shard, by its place."""
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest() for path in shards(cache)
    }


def identities(cache: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of each shard: the same only if it was not written again."""
    return {
        str(path.relative_to(cache)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards(cache)
    }


def strays(cache: Path) -> list[Path]:
    """Files that are neither a shard nor the manifest, nor, as long as there is none, what says the size of shards."""
    manifest = cache / "manifest.json"
    ours = {manifest, *shards(cache)} | (set() if manifest.exists() else {cache / ".shard-frames"})
    return [path for path in cache.rglob("*") if path.is_file() and path not in ours]
