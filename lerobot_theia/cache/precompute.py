"""Dataset -> cache: look what is there, make the shards that are missing, and the manifest last.

A shard is the unit of work, for one process or several: its batches never reach into the next one, so it has the same bytes
whoever makes it, and after whatever interruption.
"""

import contextlib
import datetime
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lerobot_theia.cache.claim import in_use, owner, sweep
from lerobot_theia.cache.dataset import open_metadata
from lerobot_theia.cache.errors import CacheDamagedError, CacheError
from lerobot_theia.cache.files import TEMPORARY_PREFIX
from lerobot_theia.cache.identity import differences
from lerobot_theia.cache.make import ShardMaker
from lerobot_theia.cache.manifest import MANIFEST_NAME, Manifest, read_manifest
from lerobot_theia.cache.plan import Plan, PrecomputeSettings, format_bytes, make_plan
from lerobot_theia.cache.publish import publish
from lerobot_theia.cache.reuse import copy_shard, donors, preferred_shard_frames, unchanged_shards
from lerobot_theia.cache.shard_size import SETTLED_NAME, settle_shard_frames
from lerobot_theia.cache.storage import FLOAT_DTYPES
from lerobot_theia.cache.work import Work, claim_path
from lerobot_theia.encoder import TheiaEncoder

logger = logging.getLogger(__name__)

POLL_S = 0.5


@dataclass
class Report:
    """What a run did."""

    path: Path
    frames_encoded: int = 0
    """By this process."""
    frames_kept: int = 0
    """Of shards that were there before."""
    frames_shared: int = 0
    """Of shards that other processes made meanwhile."""
    frames_copied: int = 0
    """Of shards that another cache of the dataset has: their frames have not changed."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    """Damage that was found and mended."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "frames_per_s": self.frames_per_s}

    @property
    def up_to_date(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.frames_encoded or self.frames_shared or self.frames_copied or self.problems)

    @property
    def frames_per_s(self) -> float:
        return self.frames_encoded / self.seconds if self.seconds else 0.0


def precompute(
    settings: PrecomputeSettings,
    *,
    path: Path | None = None,
    say: Callable[[str], None] = logger.info,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    progress: Callable[[int, int], None] = lambda done, new: None,
) -> Report:
    """Make the cache that `settings` describe, or finish or mend it, together with other processes that do the same.

    Args:
        path: the folder of a finished cache to mend, wherever it was moved to; CacheError if it was made from
            something else. None is where `settings` would have it.
        say: gets the plan in words before work starts, and the outcome.
        on_plan: gets the plan.
        progress: gets the number of frames that are complete and, of those, newly encoded since the last call.
    """
    meta = open_metadata(settings)
    encoder = TheiaEncoder.from_pretrained(
        settings.encoder,
        revision=settings.encoder_revision,
        dtype=FLOAT_DTYPES[settings.compute_dtype],
        device=choose_device(settings.device),
        translators=False,
    )
    plan = make_plan(settings, meta, encoder.spec)
    if path is not None:
        plan = replace(plan, path=path)
        check_same(read_manifest(path), plan)
    elif not plan.path.exists():
        plan = replace(plan, path=under_another_name(plan) or plan.path)
    say(f"encoding {settings.repo_id} with {encoder.spec.describe()} on {encoder.device}")
    say(plan.describe())
    run = Run(plan, encoder, say, progress)
    try:
        on_plan(plan)
        with in_use(plan.path):
            return run.finish()
    except (KeyboardInterrupt, SystemExit):
        say(run.how_far())
        raise


def choose_device(name: str | None) -> torch.device:
    """`name`, else a GPU if there is one: of several, the one with the number that a launcher gave this process."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        rank = os.environ.get("LOCAL_RANK", "")
        name = "cpu" if not count else f"cuda:{int(rank) % count}" if rank.isdecimal() else "cuda"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CacheError(f"device={name!r} is no device: {error}") from error
    if device.type == "cuda" and not count:
        raise CacheError(f"device={name!r}, but no CUDA device is available here; leave device out")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise CacheError(
            f"device={name!r}, but there are {count} CUDA devices here, cuda:0 to cuda:{count - 1}"
        )
    return device


def under_another_name(plan: Plan) -> Path | None:
    """This very cache, in a folder that was renamed, or named when the encoder was called otherwise."""
    for path in sorted(plan.path.parent.glob(f"*/{MANIFEST_NAME}")):
        with contextlib.suppress(CacheError):
            if read_manifest(path.parent).identity == plan.identity:
                return path.parent
    begun = sorted(plan.path.parent.glob(f"*-{plan.identity.fingerprint[:12]}"))
    return begun[0] if begun else None


def check_same(manifest: Manifest, plan: Plan) -> None:
    if found := differences(plan.identity.to_json(), manifest.identity.to_json()):
        fields = "; ".join(f"{field}: it has {has!r}, this is {now!r}" for field, now, has in found)
        raise CacheError(f"{plan.path} was made from something else: {fields}")


class Run:
    """One process's part in carrying out a plan."""

    def __init__(
        self,
        plan: Plan,
        encoder: TheiaEncoder,
        say: Callable[[str], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self.plan, self.encoder, self.say, self.progress = plan, encoder, say, progress
        self.work = Work(plan)
        self.looked = False
        self.report = Report(plan.path)
        self.started = datetime.datetime.now(datetime.UTC)

    def finish(self) -> Report:
        self.check_folders()
        sweep(self.plan.path)
        previous = self.previous_manifest()
        self.settle_shard_size(previous)
        self.work = Work(self.plan)
        self.look(previous)
        if self.work.missing and previous is None:
            self.copy_shards()
        if self.work.missing:
            self.make_shards()
        if not self.report.up_to_date or previous is None:
            publish(self.plan, self.encoder, self.work, self.started)
        (self.plan.path / SETTLED_NAME).unlink(missing_ok=True)
        sweep(self.plan.path)
        self.report.seconds = (datetime.datetime.now(datetime.UTC) - self.started).total_seconds()
        self.say(self.outcome())
        return self.report

    def check_folders(self) -> None:
        """A link in the place of a camera's folder, in a cache that a stranger made, would have us write elsewhere."""
        for folder in (self.plan.path / camera for camera in self.plan.cameras):
            if folder.is_symlink():
                raise CacheError(
                    f"{folder} is a link, and shards are written to a cache's own folders: remove it"
                )

    def previous_manifest(self) -> Manifest | None:
        try:
            manifest = read_manifest(self.plan.path)
        except CacheDamagedError as error:
            if (self.plan.path / MANIFEST_NAME).exists():
                self.note(str(error))
            return None
        if manifest.identity != self.plan.identity:
            self.note(f"{self.plan.path / MANIFEST_NAME} is that of another cache")
            return None
        return manifest

    def note(self, problem: str) -> None:
        self.report.problems.append(problem)
        self.say(f"mending: {problem}")

    def settle_shard_size(self, previous: Manifest | None) -> None:
        """Another `shard_mib` is no reason to make anew what is there, nor a longer dataset."""
        if previous is None and self.plan.settings.shard_mib is None:
            self.plan = replace(self.plan, shard_frames=preferred_shard_frames(self.plan))
        frames = previous.shard_frames if previous else settle_shard_frames(self.plan)
        if frames != self.plan.shard_frames and previous is None:
            self.say(
                f"shards of {frames} frames, not {self.plan.shard_frames}: this cache was begun with them"
            )
        self.plan = replace(self.plan, shard_frames=frames)

    def look(self, previous: Manifest | None) -> None:
        """See what is there, and whether there is room for the rest."""
        self.work.look(previous, self.plan.settings.verify, self.note)
        self.looked = True
        self.report.frames_kept = self.work.frames(list(self.work.digests))
        self.check_space()
        self.tell(0)

    def check_space(self) -> None:
        path = self.plan.path
        needed = int(self.work.frames(self.work.missing) * self.plan.bytes_per_frame * 1.01)
        for temporary in path.glob(f"*/{TEMPORARY_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                needed -= temporary.stat().st_size  # what others are writing has its space already
        folder = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(folder).free
        if needed > free:
            views = self.plan.identity.views
            fewer = f", or fewer than augment.views={views}" if views > 1 else ""
            raise CacheError(
                f"the cache needs {format_bytes(needed)} more at {path}, where {format_bytes(free)} are free. "
                f"Choose another place (cache_root=...), a smaller type (dtype=int8 halves float16) or pooling "
                f"(pool=2 quarters it){fewer}."
            )

    def copy_shards(self) -> None:
        """Take over what other caches of this dataset hold of frames that have not changed."""
        for donor in donors(self.plan):
            names = unchanged_shards(self.plan, donor.manifest)
            before = self.report.frames_copied
            for shard in self.work.claimed(name for name in names if name not in self.work.digests):
                with contextlib.closing(shard):
                    if copy_shard(donor, shard):
                        self.report.frames_copied += shard.key.frames
                        self.tell(0)
            if copied := self.report.frames_copied - before:
                self.say(f"{copied:,} frames are as they were, and copied from {donor.path}")

    def make_shards(self) -> None:
        """Make what is missing and free; wait for what others are making, and make that, too, if they end."""
        maker, waiting = ShardMaker(self.encoder, self.plan, self.work), False
        while True:
            maker.make(self.work.claimed(), self.tell)
            missing = [name for name in self.work.missing if not self.work.settled(name)]
            self.tell(0)
            if not missing:
                return
            if not waiting:
                who = owner(claim_path(self.plan.path, *missing[0]))
                self.say(
                    f"{len(missing)} shard(s) are with other processes, one with {who}; waiting for them"
                )
                waiting = True
            time.sleep(POLL_S)

    def tell(self, new: int) -> None:
        report = self.report
        report.frames_encoded += new
        report.frames_shared = self.work.frames_shared
        had = report.frames_kept + report.frames_shared + report.frames_copied
        self.progress(had + report.frames_encoded, new)

    def how_far(self) -> str:
        if not self.looked:
            return f"stopped before work began; the same command goes on from there: {self.plan.path}"
        complete = self.work.frames(list(self.work.digests))
        return (
            f"stopped: {complete:,} of {self.plan.num_frames:,} frames are complete; the same command goes on from "
            f"there: {self.plan.path}"
        )

    def outcome(self) -> str:
        report = self.report
        if report.up_to_date:
            checked = "checked" if self.plan.settings.verify else "headers checked"
            return f"nothing to do: the cache is complete ({report.frames_kept:,} frames, {checked}): {report.path}"
        shared = f", {report.frames_shared:,} made by other processes" if report.frames_shared else ""
        copied = f", {report.frames_copied:,} copied" if report.frames_copied else ""
        mended = f", {len(report.problems)} damaged file(s) mended" if report.problems else ""
        return (
            f"{report.frames_encoded:,} frames encoded in {report.seconds:.1f} s ({report.frames_per_s:.1f} frames/s), "
            f"{report.frames_kept:,} kept{copied}{shared}{mended}: {report.path}"
        )
