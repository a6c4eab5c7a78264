"""Per-channel statistics of tokens, which policies standardise with.

They travel as LeRobot's own do: in `dataset.meta.stats`, under `tokens_key(camera)`.
"""

import copy
import itertools
import logging
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset
from torch import Tensor

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.frames import CameraFrames
from lerobot_theia.cache.pooling import pool_tokens
from lerobot_theia.data.keys import tokens_key
from lerobot_theia.encoder import TheiaEncoder

logger = logging.getLogger(__name__)

SAMPLED_FRAMES = 256
ENCODE_AT_ONCE = 32
SEED = 0


def statistics_of_cache(cache: FeatureCache, cameras: dict[str, str]) -> dict[str, dict[str, np.ndarray]]:
    """`cameras`: name in the dataset -> name in the policy."""
    return {
        tokens_key(name): {
            "mean": np.asarray(cache.manifest.statistics[camera].mean, dtype=np.float32),
            "std": np.asarray(cache.manifest.statistics[camera].std, dtype=np.float32),
        }
        for camera, name in cameras.items()
    }


@torch.no_grad()
def statistics_of_sample(
    dataset: LeRobotDataset | StreamingLeRobotDataset,
    encoder: TheiaEncoder,
    cameras: dict[str, str],
    pool: int,
) -> dict[str, dict[str, np.ndarray]]:
    """The same from a sample of the selected episodes' frames, for training without a cache.

    The sample is a function of a fixed seed; of a stream, it is its first frames.
    """
    streaming = isinstance(dataset, StreamingLeRobotDataset)
    sample = stream_frames(dataset, cameras) if streaming else sampled_frames(dataset, cameras)
    sums = {camera: torch.zeros(2, encoder.spec.hidden_size, dtype=torch.float64) for camera in cameras}
    count = dict.fromkeys(cameras, 0)
    for camera, frames in sample:
        tokens = pool_tokens(encoder(frames), pool).flatten(0, 1).cpu().double()  # (n * N, D)
        sums[camera] += torch.stack([tokens.sum(0), tokens.square().sum(0)])
        count[camera] += len(tokens)
    if streaming and not all(count.values()):
        raise ValueError(
            f"{dataset.repo_id}: --dataset.streaming=true gave no frame for token statistics; with --num_workers=0 LeRobot "
            "makes a stream of no shards, so use --num_workers=1 or more, or a feature cache"
        )
    statistics = {}
    for camera, name in cameras.items():
        mean, mean_square = sums[camera] / count[camera]
        statistics[tokens_key(name)] = {
            "mean": mean.float().numpy(),
            "std": (mean_square - mean.square()).clamp_min(0).sqrt().float().numpy(),
        }
    logger.info("token statistics of %s from a sample of the dataset's frames", list(cameras))
    return statistics


def sampled_frames(dataset: LeRobotDataset, cameras: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """(camera, (n, 3, H, W) uint8) over a seeded choice of frames, in order of their index."""
    index = dataset.hf_dataset.data.column("index").to_numpy()
    chosen = np.random.default_rng(SEED).permutation(index)[:SAMPLED_FRAMES]
    for camera in cameras:
        source = CameraFrames(dataset, camera)
        for frames in np.array_split(np.sort(chosen), max(1, len(chosen) // ENCODE_AT_ONCE)):
            yield camera, torch.cat([source.read(int(frame), int(frame) + 1) for frame in frames])


def stream_frames(dataset: StreamingLeRobotDataset, cameras: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    # Reading leaves video decoders in a stream, which do not travel to loader workers, and moves its random numbers on.
    beside = copy.copy(dataset)
    beside.rng = copy.deepcopy(dataset.rng)
    for item in itertools.islice(beside, SAMPLED_FRAMES):
        for camera in cameras:
            frames = item[camera]  # (3, H, W) or (S, 3, H, W)
            yield camera, frames.reshape(-1, *frames.shape[-3:])[-1:]
