"""Dataset -> cache: decode each camera in order, encode in batches, write shards, and the manifest last.

    decode (a thread, a few batches ahead) -> preprocess, encode, pool, quantise -> write (a thread)

A shard is the unit of work: its batches never reach into the next one, so a shard made after an interruption
has the bytes it would have had without.
"""

import contextlib
import datetime
import importlib.metadata
import logging
import platform
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import CompatibilityError
from torch import Tensor

from lerobot_theia.cache.claim import claim
from lerobot_theia.cache.errors import CacheDamagedError, CacheError, FrameError
from lerobot_theia.cache.files import remove_temporaries
from lerobot_theia.cache.frames import CameraFrames
from lerobot_theia.cache.manifest import (
    MANIFEST_NAME,
    Manifest,
    TokenStatistics,
    num_shards,
    read_manifest,
    shard_key,
    shard_layout,
    write_manifest,
)
from lerobot_theia.cache.plan import Plan, PrecomputeSettings, format_bytes, make_plan
from lerobot_theia.cache.pooling import pool_tokens
from lerobot_theia.cache.prefetch import prefetch
from lerobot_theia.cache.shard import Shard, ShardWriter, check_header, shard_path, verify_shard
from lerobot_theia.cache.source import missing_files, select_cameras
from lerobot_theia.cache.storage import FLOAT_DTYPES, StoredTokens, encode_tokens
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.encoder.preprocess import preprocess

logger = logging.getLogger(__name__)

PLACES = ("root", "cache_root", "encoder")
BATCHES_AHEAD = 3
WRITES_AHEAD = 2


@dataclass
class Report:
    """What a run did."""

    path: Path
    frames_encoded: int = 0
    frames_kept: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    """Damage that was found and mended."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "frames_per_s": self.frames_per_s}

    @property
    def up_to_date(self) -> bool:
        """Whether there was nothing to do."""
        return self.frames_encoded == 0 and not self.problems

    @property
    def frames_per_s(self) -> float:
        return self.frames_encoded / self.seconds if self.seconds else 0.0


def precompute(
    settings: PrecomputeSettings,
    *,
    say: Callable[[str], None] = logger.info,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    progress: Callable[[int, int], None] = lambda done, new: None,
) -> Report:
    """Make the cache that `settings` describe, or finish or mend it.

    `say` gets the plan in words before work starts, and the outcome; `on_plan` the plan itself;
    `progress(done, new)` the number of frames that are complete and, of those, newly encoded since the last call.
    """
    meta = open_metadata(settings)
    try:
        device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise CacheError(f"device={settings.device!r} is no device: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CacheError(
            f"device={settings.device!r}, but no CUDA device is available here; leave device out"
        )
    # As lerobot-train and lerobot-eval do, so that live frames give these tokens on a GPU, too.
    torch.backends.cuda.matmul.allow_tf32 = True
    encoder = TheiaEncoder.from_pretrained(
        settings.encoder,
        revision=settings.encoder_revision,
        dtype=FLOAT_DTYPES[settings.compute_dtype],
        device=device,
        translators=False,
    )
    plan = make_plan(settings, meta, encoder.spec)
    say(f"encoding {settings.repo_id} with {encoder.spec.describe()} on {device}")
    say(plan.describe())
    on_plan(plan)
    with claim(plan.path):
        return Run(plan, encoder, say, progress).finish()


def open_metadata(settings: PrecomputeSettings) -> LeRobotDatasetMetadata:
    if settings.root is not None and not (Path(settings.root) / "meta" / "info.json").is_file():
        raise CacheError(
            f"dataset.root={settings.root} holds no LeRobotDataset (meta/info.json is missing); check the path, or "
            "leave dataset.root out to look on the Hub"
        )
    try:
        meta = LeRobotDatasetMetadata(settings.repo_id, root=settings.root, revision=settings.revision)
    except (CompatibilityError, NotImplementedError) as error:
        raise CacheError(
            f"dataset {settings.repo_id!r} is not a LeRobotDataset v3.0, which is what Theia caches are made from: "
            f"{' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # whatever the Hub, the network or a damaged file raise
        raise CacheError(
            f"dataset {settings.repo_id!r} is neither in LeRobot's home nor to be had from the Hub "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}). Give its folder with dataset.root=..., or "
            "record it first (scripts/record_pusht_demos.py for local/pusht_expert)"
        ) from error
    if missing := missing_files(meta, select_cameras(meta, settings.cameras)):
        # A dataset of the Hub of which only the metadata is here. LeRobot downloads the rest when it opens it.
        try:
            meta = open_dataset(settings).meta
        except CacheError as error:
            raise CacheError(
                f"dataset {settings.repo_id!r} is not whole: {missing[0]} is missing ({error})"
            ) from error
    return meta


def open_dataset(settings: PrecomputeSettings) -> LeRobotDataset:
    """Raises CacheError when LeRobot cannot read the dataset, or cannot download what is missing of it."""
    try:
        return LeRobotDataset(
            settings.repo_id,
            root=settings.root,
            revision=settings.revision,
            video_backend=settings.video_backend,
            return_uint8=True,
        )
    except Exception as error:  # Whatever parquet, datasets, the Hub or the network raise.
        raise CacheError(
            f"LeRobot cannot open dataset {settings.repo_id!r}: {type(error).__name__}: {error}"
        ) from error


class Run:
    """One attempt at a plan, under its lock."""

    def __init__(
        self,
        plan: Plan,
        encoder: TheiaEncoder,
        say: Callable[[str], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self.plan, self.encoder, self.say, self.progress = plan, encoder, say, progress
        self.layout = shard_layout(plan.identity)
        self.report = Report(plan.path)
        self.digests: dict[tuple[str, int], str] = {}

    def finish(self) -> Report:
        started = datetime.datetime.now(datetime.UTC)
        remove_temporaries(self.plan.path)
        previous = self.previous_manifest()
        if previous is not None and previous.shard_frames != self.plan.shard_frames:
            # Another `shard_mib` is no reason to make a finished cache anew.
            self.plan = replace(self.plan, shard_frames=previous.shard_frames)
        todo = self.find_work(previous)
        self.check_space(sum(frames for *_, frames in todo))
        self.progress(self.report.frames_kept, 0)
        if todo:
            self.encode(todo)
        if todo or previous is None:
            write_manifest(self.plan.path, self.manifest(started))
            self.remove_strays()
        self.report.seconds = (datetime.datetime.now(datetime.UTC) - started).total_seconds()
        self.say(self.outcome())
        return self.report

    def remove_strays(self) -> None:
        """Shards of an interrupted run with another `shard_mib` are no part of this cache."""
        ours = {shard_path(self.plan.path, camera, shard) for camera, shard in self.shards()}
        for path in self.plan.path.glob("*/*.safetensors"):
            if path not in ours:
                path.unlink()

    def outcome(self) -> str:
        report = self.report
        if report.up_to_date:
            checked = "checked" if self.plan.settings.verify else "headers checked"
            return f"nothing to do: the cache is complete ({report.frames_kept:,} frames, {checked}): {report.path}"
        mended = f", {len(report.problems)} damaged file(s) mended" if report.problems else ""
        return (
            f"{report.frames_encoded:,} frames encoded in {report.seconds:.1f} s ({report.frames_per_s:.1f} frames/s), "
            f"{report.frames_kept:,} kept{mended}: {report.path}"
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

    def shards(self) -> Iterator[tuple[str, int]]:
        frames = self.plan.identity.dataset.num_frames
        for camera in self.plan.cameras:
            for shard in range(num_shards(frames, self.plan.shard_frames)):
                yield camera, shard

    def where(self, camera: str, shard: int) -> dict[str, Any]:
        """Arguments of `Shard`, `check_header` and `verify_shard`."""
        return {
            "path": shard_path(self.plan.path, camera, shard),
            "key": shard_key(self.plan.identity, self.plan.shard_frames, camera, shard),
            "layout": self.layout,
            "cache": self.plan.path,
        }

    def find_work(self, previous: Manifest | None) -> list[tuple[str, int, int, int]]:
        """(camera, shard, first frame, frames) of each shard that is not there, whole and right."""
        todo = []
        for camera, shard in self.shards():
            key = shard_key(self.plan.identity, self.plan.shard_frames, camera, shard)
            recorded = None if previous is None else previous.shards[camera][shard]
            check = verify_shard if self.plan.settings.verify else check_header
            try:
                self.digests[camera, shard] = check(**self.where(camera, shard), sha256=recorded)
                self.report.frames_kept += key.frames
            except CacheDamagedError as error:
                if shard_path(self.plan.path, camera, shard).exists() or previous is not None:
                    self.note(str(error))
                todo.append((camera, shard, key.start, key.frames))
        return todo

    def check_space(self, frames: int) -> None:
        needed = int(frames * self.plan.bytes_per_frame * 1.01)
        folder = next(parent for parent in (self.plan.path, *self.plan.path.parents) if parent.exists())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise CacheError(
                f"the cache needs {format_bytes(needed)} more at {self.plan.path}, where {format_bytes(free)} are free. "
                f"Choose another place (cache_root=...), a smaller type (dtype=int8 halves float16) or pooling "
                f"(pool=2 quarters it)."
            )

    def encode(self, todo: list[tuple[str, int, int, int]]) -> None:
        dataset = open_dataset(self.plan.settings)
        sources = {camera: CameraFrames(dataset, camera) for camera in {camera for camera, *_ in todo}}
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="write"))
            pending: deque[Future[None]] = deque()
            opened: ShardWriter | None = None
            stack.callback(lambda: opened.__exit__() if opened else None)
            batches = stack.enter_context(
                contextlib.closing(prefetch(self.batches(todo, sources), BATCHES_AHEAD))
            )
            for camera, shard, start, frames, is_last in batches:
                stored = self.encode_batch(frames, sources[camera], start)
                if opened is None:
                    place = self.where(camera, shard)
                    del place["cache"]
                    opened = ShardWriter(**place)
                while len(pending) >= WRITES_AHEAD:
                    pending.popleft().result()
                pending.append(writer.submit(self.write, opened, stored, is_last))
                self.report.frames_encoded += len(frames)
                self.progress(self.report.frames_kept + self.report.frames_encoded, len(frames))
                if is_last:
                    opened = None
            while pending:
                pending.popleft().result()

    def batches(
        self, todo: list[tuple[str, int, int, int]], sources: dict[str, CameraFrames]
    ) -> Iterator[tuple[str, int, int, Tensor, bool]]:
        """(camera, shard, first frame, (b, 3, H, W) uint8, whether the shard ends here)."""
        step = self.plan.settings.batch_size
        for camera, shard, first, count in todo:
            for start in range(first, first + count, step):
                stop = min(start + step, first + count)
                yield camera, shard, start, sources[camera].read(start, stop), stop == first + count

    def encode_batch(self, frames: Tensor, source: CameraFrames, start: int) -> StoredTokens:
        """(b, 3, H, W) uint8 -> stored tokens. Raises FrameError for a frame whose tokens are not finite."""
        parameter = next(self.encoder.parameters())
        pixels = preprocess(frames.to(parameter.device), self.encoder.spec.image_size, parameter.dtype)
        tokens = pool_tokens(self.encoder.encode_preprocessed(pixels).float(), self.plan.settings.pool)
        stored = encode_tokens(tokens, self.plan.settings.dtype)
        finite = (stored.tokens if stored.scale is None else stored.scale).isfinite()
        if not finite.all():
            frame = start + int((~finite.flatten(1).all(1)).nonzero()[0])
            kind = (
                "NaN or infinity" if not tokens[frame - start].isfinite().all() else "values beyond float16"
            )
            raise FrameError(
                f"{source.where(frame)}: its tokens hold {kind}. Check the encoder's weights"
                + (", or choose dtype=bfloat16 or float32" if self.plan.settings.dtype == "float16" else "")
            )
        return StoredTokens(stored.tokens.cpu(), None if stored.scale is None else stored.scale.cpu())

    def write(self, writer: ShardWriter, stored: StoredTokens, is_last: bool) -> None:
        try:
            writer.append(stored)
            if is_last:
                self.digests[writer.key.camera, writer.key.shard] = writer.finish()
        except BaseException:
            writer.__exit__()
            raise

    def manifest(self, started: datetime.datetime) -> Manifest:
        plan, spec = self.plan, self.encoder.spec
        return Manifest(
            identity=plan.identity,
            shard_frames=plan.shard_frames,
            shards={
                camera: tuple(self.digests[name, shard] for name, shard in self.shards() if name == camera)
                for camera in plan.cameras
            },
            statistics={camera: self.statistics(camera) for camera in plan.cameras},
            files=plan.source.files,
            encoder_name=spec.name,
            encoder_note=f"{spec.describe()}; licence: {spec.license}",
            made_with={
                "created": started.isoformat(timespec="seconds"),
                # Where things were on the machine that made it says nothing about the cache.
                "settings": {k: v for k, v in asdict(plan.settings).items() if k not in PLACES},
                "device": str(next(self.encoder.parameters()).device),
                "machine": platform.machine(),
                "versions": {
                    name: importlib.metadata.version(name)
                    for name in ("lerobot_policy_theia", "lerobot", "torch", "torchvision", "transformers")
                },
            },
        )

    def statistics(self, camera: str) -> TokenStatistics:
        """Per-channel mean and standard deviation from the shards' float64 sums, added in shard order."""
        total = torch.zeros(self.layout.dim, dtype=torch.float64)
        total_sq, count = total.clone(), 0
        for name, shard in self.shards():
            if name == camera:
                opened = Shard(**self.where(camera, shard), sha256=self.digests[camera, shard])
                total += opened.tensors["sum"]
                total_sq += opened.tensors["sum_sq"]
                count += opened.key.frames * self.layout.num_tokens
        mean = total / count
        variance = (total_sq / count - mean.square()).clamp_min(0)
        return TokenStatistics(tuple(mean.tolist()), tuple(variance.sqrt().tolist()))
