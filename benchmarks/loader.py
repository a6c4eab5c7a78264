"""Row 1: samples per second that one process gets out of a DataLoader, from a cache and from LeRobot's videos.

PushT expert episodes, theia_diffusion's windows, tiny fp16 tokens; batches, sampler and collate as lerobot-train makes
them, no workers. Tokens are random: what they say does not change how fast they are read.
"""

import time
from collections.abc import Callable, Iterator

import torch
from common import Arm, Outcome, Result, alternate, options, save
from lerobot.datasets import EpisodeAwareSampler
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from synthetic import CAMERA, PUSHT, cache_of_dataset, pusht_dataset
from torch.utils.data import DataLoader, Dataset

from lerobot_theia.data.feature_dataset import FeatureDataset
from lerobot_theia.data.keys import frame_key, tokens_key
from lerobot_theia.data.residency import load_tokens
from lerobot_theia.policies.theia_diffusion.configuration_theia_diffusion import TheiaDiffusionConfig

BATCH_SIZE = 64


def main() -> None:
    chosen = options(__doc__)
    root = pusht_dataset(chosen.work, 2 if chosen.quick else 20)
    policy = TheiaDiffusionConfig(n_obs_steps=2, horizon=16, device="cpu", push_to_hub=False)
    deltas = resolve_delta_timestamps(policy, LeRobotDatasetMetadata(PUSHT, root=root))
    videos = LeRobotDataset(PUSHT, root=root, delta_timestamps=deltas, return_uint8=True)
    cache = cache_of_dataset(root, PUSHT, chosen.work / "caches")
    in_memory = load_tokens(cache, [CAMERA], torch.device("cpu"))
    cameras = {CAMERA: CAMERA}
    datasets = {
        "disk": FeatureDataset(videos, cache, cameras),
        "memory": FeatureDataset(videos, cache, cameras, tokens=in_memory),
        "device-indices": FeatureDataset(videos, cache, cameras, on_device=in_memory.frames),
        "lerobot-video": videos,
    }
    few, many = (1, 2) if chosen.quick else (3, 150)
    arms = {
        name: samples_per_s(dataset, policy, few if dataset is videos else many)
        for name, dataset in datasets.items()
    }
    check(datasets)
    values = alternate(arms, repeats=1 if chosen.quick else 5)
    what = {
        "disk": "FeatureDataset, memory-mapped shards",
        "memory": "FeatureDataset, tokens in one tensor in memory",
        "device-indices": "FeatureDataset, frame indices only (tokens are on the policy's device)",
        "lerobot-video": "LeRobotDataset, 96x96 AV1 video",
    }
    result = {name: Arm(what=what[name], unit="samples/s", values=values[name]) for name in arms}
    base = result["lerobot-video"].median
    save(
        Result(
            name="loader",
            measured="samples/s of one process through a DataLoader, feature cache over LeRobotDataset with video",
            settings={
                "dataset": "PushT expert", "episodes": videos.num_episodes, "frames": videos.num_frames,
                "batch_size": BATCH_SIZE, "n_obs_steps": 2, "horizon": 16, "num_workers": 0,
                "tokens": "14x14x192 float16, random", "video_backend": videos._video_backend,
                "batches_per_repeat": {"cache": many, "video": few},
            },
            arms=result,
            outcomes=[
                Outcome(what=f"{name} over video", value=result[name].median / base, at_least=50, row=1)
                for name in ("disk", "memory", "device-indices")
            ],
            quick=chosen.quick,
        ),
        chosen.out,
    )  # fmt: skip


def samples_per_s(dataset: Dataset, policy: TheiaDiffusionConfig, batches: int) -> Callable[[], float]:
    stream = endless(loader(dataset, policy))

    def measure() -> float:
        began, samples = time.perf_counter(), 0
        for _ in range(batches):
            samples += len(next(stream)["index"])
        return samples / (time.perf_counter() - began)

    return measure


def loader(dataset: Dataset, policy: TheiaDiffusionConfig) -> DataLoader:
    """As lerobot_train.py builds it."""
    sampler = EpisodeAwareSampler(
        dataset.meta.episodes["dataset_from_index"],
        dataset.meta.episodes["dataset_to_index"],
        episode_indices_to_use=dataset.episodes,
        drop_n_last_frames=policy.drop_n_last_frames,
        shuffle=True,
        seed=0,
        absolute_to_relative_idx=dataset.absolute_to_relative_idx,
    )
    return DataLoader(dataset, batch_size=BATCH_SIZE, sampler=sampler, num_workers=0, drop_last=False)


def endless(batches: DataLoader) -> Iterator[dict]:
    while True:
        yield from batches


def check(datasets: dict[str, Dataset]) -> None:
    """All arms serve the same samples."""
    items = {name: dataset[7] for name, dataset in datasets.items()}
    for name, item in items.items():
        for key in ("action", "observation.state", "action_is_pad", f"{CAMERA}_is_pad"):
            assert torch.equal(item[key], items["lerobot-video"][key]), (
                f"{name} differs from LeRobot's in {key}"
            )
    assert torch.equal(items["disk"][tokens_key(CAMERA)], items["memory"][tokens_key(CAMERA)])
    assert items["device-indices"][frame_key(CAMERA)].tolist() == [6, 7]


if __name__ == "__main__":
    main()
