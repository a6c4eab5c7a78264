"""What need not be encoded: shards of frames that have not changed since another cache of the same dataset was made.

A dataset grew, a camera was added or recorded anew, a revision was tagged: the new cache copies what the old one holds of
frames that lie in the same files at the same places. Encoder, preprocessing and tokens must be the same, and shards of
the same frames: so a new cache is cut like the old one where that will do.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace

from lerobot_theia.cache.errors import CacheDamagedError, CacheError
from lerobot_theia.cache.manifest import MANIFEST_NAME, Manifest, num_shards
from lerobot_theia.cache.plan import Plan
from lerobot_theia.cache.reader import FeatureCache
from lerobot_theia.cache.shard import verify_shard
from lerobot_theia.cache.storage import StoredTokens
from lerobot_theia.cache.table import frames_digest
from lerobot_theia.cache.work import ClaimedShard, Name

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 64


def preferred_shard_frames(plan: Plan) -> int:
    """Frames per shard as in the cache of which most can be copied, where that is within a factor of two of the plan.

    A longer dataset would have larger shards (see `frames_per_shard`), none of them one that is there.
    """
    best, most = plan.shard_frames, 0
    for donor in kindred(plan):
        frames = donor.manifest.shard_frames
        if frames > 2 * plan.shard_frames or plan.shard_frames > 2 * frames:
            continue
        cut_alike = replace(plan, shard_frames=frames)
        copied = frames * sum(1 for _ in unchanged_shards(cut_alike, donor.manifest))
        if copied > most:
            best, most = frames, copied
    return best


def donors(plan: Plan) -> Iterator[FeatureCache]:
    """Caches to copy from: with tokens of the same kind in shards of the same size."""
    return (donor for donor in kindred(plan) if donor.manifest.shard_frames == plan.shard_frames)


def kindred(plan: Plan) -> Iterator[FeatureCache]:
    """Caches beside the planned one that hold tokens of the same kind."""
    for path in sorted(plan.path.parent.glob(f"*/{MANIFEST_NAME}")):
        if path.parent == plan.path:
            continue
        try:
            cache = FeatureCache.open(path.parent)
        except CacheError as error:
            logger.debug("%s has nothing to copy from: %s", path.parent, error)
            continue
        had, wanted = cache.manifest.identity, plan.identity
        if (had.encoder, had.preprocessing, had.tokens, had.augment, had.views) == (
            wanted.encoder, wanted.preprocessing, wanted.tokens, wanted.augment, wanted.views,
        ):  # fmt: skip
            yield cache


def unchanged_shards(plan: Plan, donor: Manifest) -> Iterator[Name]:
    """Shards of the planned cache whose frames the donor has, from the same places in files of the same content."""
    for camera in plan.cameras:
        had, wanted = donor.identity.dataset.cameras.get(camera), plan.identity.dataset.cameras[camera]
        table, frames = plan.source.tables[camera], donor.num_frames
        if had is None or (had.kind, had.height, had.width) != (wanted.kind, wanted.height, wanted.width):
            continue
        # Its episodes are the first of this dataset's, if the digest over as many says so.
        if had.frames != frames_digest(plan.source.fps, table[: donor.identity.dataset.num_episodes]):
            continue
        now = {file.path: file for file in plan.source.files[camera]}
        same = {file.path for file in donor.files[camera] if now.get(file.path) == file}
        changed = [(row["from"], row["to"]) for row in table if row["file"] not in same]
        for shard in range(num_shards(frames, plan.shard_frames)):
            start = shard * plan.shard_frames
            stop = min(start + plan.shard_frames, plan.identity.dataset.num_frames)
            if stop <= frames and not any(first < stop and start < last for first, last in changed):
                yield camera, shard


def copy_shard(donor: FeatureCache, shard: ClaimedShard) -> bool:
    """Make a claimed shard from a donor's. False, and nothing done, if the donor's is damaged."""
    camera, number = shard.name
    try:
        verify_shard(**donor.where(camera, number))
        tensors = donor.shard(camera, number).tensors
    except CacheDamagedError as error:
        logger.warning("not copied: %s", error)
        return False
    tokens, scale = tensors["tokens"], tensors.get("scale")
    for start in range(0, len(tokens), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        stored = StoredTokens(tokens[part], None if scale is None else scale[part])
        shard.write(stored, is_last=start + ROWS_AT_ONCE >= len(tokens))
    return True
