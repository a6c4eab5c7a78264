"""The shards of a cache that is being built: which are there, which are to be made, and which of them are ours to make."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot_theia.cache.claim import CLAIM_PREFIX, Claim, take
from lerobot_theia.cache.errors import CacheDamagedError
from lerobot_theia.cache.files import stamp
from lerobot_theia.cache.manifest import Manifest, num_shards, shard_key, shard_layout
from lerobot_theia.cache.plan import Plan
from lerobot_theia.cache.shard import (
    ShardKey,
    ShardLayout,
    ShardWriter,
    check_header,
    shard_path,
    verify_shard,
)
from lerobot_theia.cache.storage import StoredTokens

Name = tuple[str, int]
"""(camera, shard)"""


class Work:
    """What is left to do of a plan, as far as this process knows.

    `digests` grows with each shard that is known to be whole: found so by `look`, made here, or, after `look`, made by
    another process, which is then believed what its header says.
    """

    def __init__(self, plan: Plan) -> None:
        self.path, self.identity, self.shard_frames = plan.path, plan.identity, plan.shard_frames
        self.layout: ShardLayout = shard_layout(plan.identity)
        self.names: list[Name] = [
            (camera, shard)
            for camera in plan.cameras
            for shard in range(num_shards(plan.identity.dataset.num_frames, plan.shard_frames))
        ]
        self.digests: dict[Name, str] = {}
        self.frames_shared = 0
        self._damaged: dict[Name, tuple] = {}

    @property
    def missing(self) -> list[Name]:
        return [name for name in self.names if name not in self.digests]

    def key(self, name: Name) -> ShardKey:
        return shard_key(self.identity, self.shard_frames, *name)

    def frames(self, names: list[Name]) -> int:
        return sum(self.key(name).frames for name in names)

    def where(self, name: Name) -> dict[str, Any]:
        """Arguments of `Shard`, `check_header` and `verify_shard`."""
        return {
            "path": shard_path(self.path, *name), "key": self.key(name), "layout": self.layout, "cache": self.path,
        }  # fmt: skip

    def look(self, previous: Manifest | None, verify: bool, note: Callable[[str], None]) -> None:
        """Find out what is there, whole and right; `note` gets what is damaged."""
        check = verify_shard if verify else check_header
        for name in self.names:
            found = stamp(shard_path(self.path, *name))
            recorded = None if previous is None else previous.shards[name[0]][name[1]]
            try:
                self.digests[name] = check(**self.where(name), sha256=recorded)
            except CacheDamagedError as error:
                if found is not None:
                    self._damaged[name] = found
                if found is not None or previous is not None:
                    note(str(error))

    def settled(self, name: Name) -> bool:
        """Whether a shard is there, whole, or has become so since `look`."""
        if name not in self.digests:
            found = stamp(shard_path(self.path, *name))
            if found is not None and found != self._damaged.get(name):
                with contextlib.suppress(CacheDamagedError):
                    self.digests[name] = check_header(**self.where(name))
                    self.frames_shared += self.key(name).frames
        return name in self.digests

    def claimed(self, names: Iterable[Name] | None = None) -> Iterator["ClaimedShard"]:
        """Shards, of `names` or all, that are missing and that nobody else is making.

        They are claimed one by one as they are asked for.
        """
        for name in self.missing if names is None else names:
            if self.settled(name):
                continue
            claim = take(claim_path(self.path, *name))
            if claim is None:
                continue
            if self.settled(name):  # another process finished it before we got its claim
                claim.release()
                continue
            yield ClaimedShard(self, name, claim)


@dataclass
class ClaimedShard:
    """A shard that is ours to make."""

    work: Work
    name: Name
    claim: Claim
    writer: ShardWriter | None = None

    @property
    def key(self) -> ShardKey:
        return self.work.key(self.name)

    def write(self, stored: StoredTokens, is_last: bool) -> None:
        """Append a batch; the last one makes the shard appear."""
        if self.writer is None:
            self.writer = ShardWriter(shard_path(self.work.path, *self.name), self.key, self.work.layout)
        self.writer.append(stored)
        if is_last:
            self.work.digests[self.name] = self.writer.finish()
            self.close()

    def close(self) -> None:
        """Let go: what is not finished is deleted, and others may make it."""
        if self.writer is not None:
            self.writer.__exit__()
        self.claim.release()


def claim_path(cache: Path, camera: str, shard: int) -> Path:
    return cache / camera / f"{CLAIM_PREFIX}{shard:06d}"
