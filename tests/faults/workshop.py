"""A tiny dataset and encoder, the cache that they make, and what must hold of one that was interrupted."""

import hashlib
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lerobot_theia.cache import CacheDamagedError, FeatureCache
from lerobot_theia.cache.files import TEMPORARY_PREFIX
from lerobot_theia.cache.manifest import MANIFEST_NAME
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import Report, precompute
from lerobot_theia.scripts import cache as cache_command
from lerobot_theia.scripts.signals import stop
from tests.datasets import REPO_ID, make_dataset
from tests.encoder.published_layout import (
    Shapes,
    backbone_shapes,
    published_config,
    recipe_tensors,
    write_checkpoint,
)
from tests.faults import children
from tests.faults.children import Child, Outcome, Tell
from tests.faults.injection import Fault, inject, never_sync, short_writes

CAMERAS = {"observation.images.top": (16, 16), "observation.images.wrist": (16, 16)}
TOP, WRIST = CAMERAS
EPISODES = (5, 7, 4)


@dataclass(frozen=True)
class Job:
    """What a child is to precompute. float32 tokens of 192 channels: six frames a shard, two batches each."""

    dataset: Path
    encoder: Path
    cameras: tuple[str, ...] | None = None
    batch_size: int = 4

    def settings(self, root: Path, **changes: Any) -> PrecomputeSettings:
        fields = {
            "repo_id": REPO_ID,
            "root": str(self.dataset),
            "cache_root": str(root),
            "encoder": str(self.encoder),
            "cameras": self.cameras,
            "device": "cpu",
            "dtype": "float32",
            "shard_mib": 1,
            "batch_size": self.batch_size,
            "video_backend": "pyav",
        }
        return PrecomputeSettings(**fields | changes)


@dataclass(frozen=True)
class Made:
    """What a child that was not interrupted has to tell."""

    report: Report
    steps: list[str]


def make_encoder(
    folder: Path,
    dim: int = 192,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    more: Shapes | None = None,
) -> Path:
    """A Theia of one layer, in the published layout; `more` tensors are its translator's."""
    tensors = recipe_tensors(backbone_shapes(dim, num_layers=1) | (more or {}))
    tensors["backbone.model.layernorm.bias"] += seed
    return write_checkpoint(folder, config or published_config("tiny", "cdiv"), tensors)


def make_job(
    folder: Path, episodes: tuple[int, ...] = EPISODES, cameras: tuple[str, ...] = tuple(CAMERAS)
) -> Job:
    """Dataset and encoder under `folder`."""
    sizes = {camera: CAMERAS[camera] for camera in cameras}
    dataset = make_dataset(folder / "dataset", cameras=sizes, episodes=episodes, use_videos=False)
    return Job(dataset, make_encoder(folder / "encoder"))


def make_cache(
    tell: Tell, job: Job, root: Path, fault: Fault | None = None, at_most: int = 0, forgetful: bool = False
) -> Made:
    """For children: precompute, with `fault`; tells "planned" when the work is about to begin.

    A kernel writes at most `at_most` bytes at once, if given; a `forgetful` writer does not sync.
    """
    if at_most:
        short_writes(at_most)
    if forgetful:
        never_sync()
    steps = inject(fault)
    report = precompute(job.settings(root), on_plan=lambda plan: tell("planned"))
    return Made(report, steps)


def make_cache_as_command(tell: Tell, job: Job, root: Path) -> tuple[int, list[str]]:
    """For children: precompute as the command does, which signals stop in order. Exit status, and what was said."""
    said: list[str] = []
    try:
        on_signals(stop)
        precompute(job.settings(root), say=said.append, on_plan=lambda plan: tell("planned"))
        on_signals(signal.SIG_IGN)  # too late to be stopped: it is to tell so
    except SystemExit as end:
        return int(end.code or 0), said
    return 0, said


def on_signals(handler: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def repair(tell: Tell, job: Job, cache: Path) -> str:
    """For children: `lerobot-theia-cache verify --repair`; how it ended."""
    places = [f"--dataset-root={job.dataset}", f"--encoder={job.encoder}"]
    sys.argv = ["lerobot-theia-cache", "verify", "--repair", *places, str(cache)]
    try:
        cache_command.main()
    except SystemExit as end:
        return str(end.code)
    return "went on"


def run(
    job: Job, root: Path, fault: Fault | None = None, at_most: int = 0, forgetful: bool = False
) -> Outcome:
    return children.run(make_cache, job, root, fault, at_most, forgetful)


def start(job: Job, root: Path) -> Child:
    return Child(make_cache, job, root)


def made(outcome: Outcome) -> Made:
    """What a child that must have succeeded tells."""
    assert isinstance(outcome.value, Made), outcome.details or f"it ended with {outcome.status}"
    return outcome.value


class Whole:
    """A cache that was never interrupted, to compare others with."""

    def __init__(self, job: Job, root: Path) -> None:
        self.job = job
        found = made(run(job, root))
        self.root, self.path, self.steps = root, found.report.path, found.steps
        self.manifest = FeatureCache.open(self.path).manifest
        self.frames = self.manifest.num_frames * len(self.manifest.cameras)
        self.files = files_under(root)

    def at(self, root: Path) -> Path:
        """Where the same cache is under another root."""
        return root / self.path.relative_to(self.root)

    def complete(self, root: Path) -> dict[str, int]:
        """Shards that have their place under `root`, and their frames. Raises AssertionError unless each is whole."""
        found = {}
        for camera, shard in self.manifest.shard_names():
            place = f"{camera}/{shard:06d}.safetensors"
            path = self.at(root) / place
            if path.exists():
                assert path.read_bytes() == (self.path / place).read_bytes(), (
                    f"{place} has its name, but is not whole"
                )
                found[place] = self.manifest.shard_key(camera, shard).frames
        return found

    def check_interrupted(self, root: Path) -> dict[str, int]:
        """What must hold before the resume: a cache opens only if it is whole. Returns the complete shards."""
        complete = self.complete(root)
        try:
            FeatureCache.open(self.at(root))
        except CacheDamagedError:
            assert not (self.at(root) / MANIFEST_NAME).exists(), "a manifest without a cache that opens"
        else:
            assert sum(complete.values()) == self.frames, "opened with shards missing"
        return complete

    def check_resumed(self, root: Path, report: Report, complete: dict[str, int]) -> None:
        """What must hold after it: the same bytes, nothing besides, and nothing finished computed again."""
        path = self.at(root)
        assert report.path == path
        assert self.complete(root).keys() == self.complete(self.root).keys()
        assert meaning(path) == meaning(self.path), "the manifests differ"
        assert files_under(root) == self.files, "a file is left over, or missing"
        assert FeatureCache.open(path).verify() == []
        kept = sum(complete.values())
        assert (report.frames_kept, report.frames_encoded) == (kept, self.frames - kept), (
            "computed again, or skipped"
        )


def files_under(root: Path) -> set[str]:
    """All files of a cache root, hidden ones too."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def temporaries(root: Path) -> list[Path]:
    return list(root.rglob(f"{TEMPORARY_PREFIX}*"))


def meaning(cache: Path) -> dict[str, Any]:
    """A manifest without `made_with` (time and versions) and the checksum that covers it."""
    body = json.loads((cache / MANIFEST_NAME).read_text())
    return {key: value for key, value in body.items() if key not in ("made_with", "checksum")}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state(root: Path) -> dict[str, tuple]:
    """Everything under a folder, and when it was changed."""
    return {
        name: (sha256(root / name), (root / name).stat().st_mtime_ns) for name in sorted(files_under(root))
    }


def tokens_of(cache: FeatureCache) -> dict[str, torch.Tensor]:
    return {camera: cache.gather(camera, list(range(len(cache)))) for camera in cache.cameras}
