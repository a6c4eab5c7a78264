"""Long runs: memory, open files and maps, over 20,000 batches and over a precompute of 200,000 small frames.

Batches: PushT, theia_diffusion's windows, tiny fp16 tokens from disk, through a DataLoader without workers and with
two. Frames: a video of 32x32 pictures, encoded with a Theia of one layer, so that it takes minutes.

Counted are this process and its children. Memory is what no file backs: anonymous memory, and shared memory divided
among those who share it. Pages of mapped shards are not counted: the kernel drops them when it needs to. A curve has
at most a hundred points; its first tenth is warm-up. Growth is the median of the last tenth less that of the
first one after the warm-up.
"""

import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from common import Arm, Outcome, Result, options, save
from lerobot.datasets import EpisodeAwareSampler
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.utils import cycle
from safetensors.torch import save_file
from synthetic import CAMERA, PUSHT, TEXTURES, cache_of_dataset, pusht_dataset, texture_dataset
from torch.utils.data import DataLoader

from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.data.feature_dataset import FeatureDataset
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.policies.theia_diffusion.configuration_theia_diffusion import TheiaDiffusionConfig

BATCH_SIZE = 64
POINTS = 100
MOST_GROWN = {"MB": 16, "descriptors": 0, "maps": 16}
"""Memory: less than a kilobyte per batch, a hundred bytes per frame. Maps come and go with the allocator's arenas."""


@dataclass
class Curve:
    """Points in time of a long run."""

    memory: list[float] = field(default_factory=list)
    """In MB."""
    descriptors: list[int] = field(default_factory=list)
    maps: list[int] = field(default_factory=list)

    def look(self) -> None:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        living = [process for process in processes if process.status() != psutil.STATUS_ZOMBIE]
        folders = [Path(f"/proc/{process.pid}") for process in living]
        self.memory.append(sum(unbacked_kb(folder) for folder in folders) * 1024 / 1e6)
        self.descriptors.append(sum(len(list((folder / "fd").iterdir())) for folder in folders))
        self.maps.append(sum((folder / "maps").read_text().count("\n") for folder in folders))

    def arms(self, run: str) -> dict[str, Arm]:
        curves = {
            "memory": (self.memory, "MB"),
            "open files": (self.descriptors, "descriptors"),
            "maps": (self.maps, "maps"),
        }
        return {f"{what}, {run}": Arm(what=f"{what} during {run}, from its beginning to its end", unit=unit,
                                      values=[float(value) for value in values])
                for what, (values, unit) in curves.items()}  # fmt: skip


def unbacked_kb(process: Path) -> int:
    lines = (process / "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def growth(arm: Arm) -> float:
    tenth = max(1, len(arm.values) // 10)
    early, late = arm.values[tenth : 2 * tenth], arm.values[-tenth:]
    return statistics.median(late) - statistics.median(early)


def batches(work: Path, workers: int, count: int, episodes: int) -> Curve:
    root = pusht_dataset(work, episodes)
    policy = TheiaDiffusionConfig(n_obs_steps=2, horizon=16, device="cpu", push_to_hub=False)
    deltas = resolve_delta_timestamps(policy, LeRobotDatasetMetadata(PUSHT, root=root))
    videos = LeRobotDataset(PUSHT, root=root, delta_timestamps=deltas, return_uint8=True)
    dataset = FeatureDataset(videos, cache_of_dataset(root, PUSHT, work / "caches"), {CAMERA: CAMERA})
    sampler = EpisodeAwareSampler(
        dataset.meta.episodes["dataset_from_index"], dataset.meta.episodes["dataset_to_index"],
        drop_n_last_frames=policy.drop_n_last_frames, shuffle=True,
    )  # fmt: skip
    loader = DataLoader(
        dataset, batch_size=BATCH_SIZE, sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None, multiprocessing_context="spawn" if workers else None,
    )  # type: ignore[arg-type]  # fmt: skip
    curve = Curve()
    for number, batch in enumerate(itertools.islice(cycle(loader), count), start=1):
        assert len(batch["index"])
        if number * POINTS % count < POINTS:
            curve.look()
    return curve


def frames(work: Path, episodes: int, length: int) -> Curve:
    root = texture_dataset(
        work, vcodec="h264", episodes=episodes, frames=length, height=32, width=32, cameras=1
    )
    curve, total, done = Curve(), episodes * length, 0

    def progress(complete: int, new: int) -> None:
        nonlocal done
        if (done + new) * POINTS // total > done * POINTS // total:
            curve.look()
        done += new

    with tempfile.TemporaryDirectory(dir=work) as folder:
        report = precompute(
            PrecomputeSettings(
                repo_id=TEXTURES, root=str(root), encoder=str(one_layer(Path(folder) / "encoder")), pool=14,
                cache_root=folder, device="cpu", video_backend="pyav", shard_mib=1,
            ),
            say=lambda line: None,
            progress=progress,
        )  # fmt: skip
    assert report.frames_encoded == done == total
    return curve


def one_layer(folder: Path) -> Path:
    """`random-tiny` cut off after its first layer, in the published layout."""
    state = TheiaEncoder.from_pretrained("random-tiny").state_dict()
    kept = {name: each for name, each in state.items() if ".layer." not in name or ".layer.0." in name}
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"backbone": "facebook/deit-tiny-patch16-224", "image_size": 224})
    )
    save_file(kept, folder / "model.safetensors")
    return folder


def main() -> None:
    chosen = options(__doc__)
    count, episodes = (200, 2) if chosen.quick else (20_000, 20)
    frame_episodes, length = (4, 100) if chosen.quick else (200, 1000)
    runs: dict[str, Callable[[], Curve]] = {
        f"{count:,} batches, no workers": lambda: batches(chosen.work, 0, count, episodes),
        f"{count:,} batches, two workers": lambda: batches(chosen.work, 2, count, episodes),
        f"precompute of {frame_episodes * length:,} frames": lambda: frames(
            chosen.work, frame_episodes, length
        ),
    }
    arms: dict[str, Arm] = {}
    for run, measure in runs.items():
        arms |= measure().arms(run)
    save(
        Result(
            name="endurance",
            measured="growth of memory, open files and maps over long runs",
            settings={
                "batch_size": BATCH_SIZE, "tokens": "14x14x192 float16, random", "cache_residency": "disk",
                "frames": "32x32 H.264", "encoder": "one layer of random-tiny, pool 14",
            },
            arms=arms,
            outcomes=[
                Outcome(what=f"growth: {name}", value=growth(arm), at_most=MOST_GROWN[arm.unit])
                for name, arm in arms.items()
            ],
            quick=chosen.quick,
        ),
        chosen.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
