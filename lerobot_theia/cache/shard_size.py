"""How many frames a shard holds: settled once per cache, so that all who build it, now or later, cut it alike."""

import contextlib
import json
from pathlib import Path

from lerobot_theia.cache.claim import CLAIM_PREFIX, waiting_for, writable
from lerobot_theia.cache.errors import CacheDamagedError
from lerobot_theia.cache.files import open_inside, publish
from lerobot_theia.cache.manifest import MAX_INTEGER, shard_key, shard_layout
from lerobot_theia.cache.plan import Plan
from lerobot_theia.cache.shard import check_header

SETTLED_NAME = ".shard-frames"
"""A file with the number, while a cache has no manifest that says it."""
DIGITS = 32
"""More than a number up to MAX_INTEGER has."""
HEADER_BYTES = 4096


def settle_shard_frames(plan: Plan) -> int:
    """Frames per shard of an unfinished cache: as it was begun, else as the plan would have it."""
    settled = plan.path / SETTLED_NAME
    with waiting_for(plan.path / f"{CLAIM_PREFIX}shard-frames"), writable(settled):
        frames = begun_with(settled) or found_in_shards(plan) or plan.shard_frames
        publish(settled, [str(frames).encode()])
    return frames


def begun_with(settled: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError), open(open_inside(settled, settled.parent), "rb") as file:
        return min(max(1, int(file.read(DIGITS))), MAX_INTEGER)
    return None


def found_in_shards(plan: Plan) -> int | None:
    """As the first shard says that is this cache's: all that is left where a manifest was damaged."""
    for camera in plan.cameras:
        for path in sorted((plan.path / camera).glob("[0-9]*.safetensors")):
            with contextlib.suppress(
                CacheDamagedError, OSError, ValueError, TypeError, KeyError, RecursionError
            ):
                with open(open_inside(path, plan.path), "rb") as file:
                    start = file.read(HEADER_BYTES)
                header = json.loads(start[8 : 8 + int.from_bytes(start[:8], "little")])
                shard = json.loads(header["__metadata__"]["shard"])
                frames = int(shard["start"] // shard["shard"] if shard["shard"] else shard["frames"])
                if 0 < frames <= MAX_INTEGER:
                    key = shard_key(plan.identity, frames, camera, int(path.stem))
                    check_header(path, key, shard_layout(plan.identity), plan.path)
                    return frames
    return None
