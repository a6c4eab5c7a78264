"""Shared by all rooms: tiny datasets, an encoder, and a cache, each made once and then only read."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.encoder import EncoderSpec, TheiaEncoder
from tests.datasets import REPO_ID, make_dataset

SCHEDULING = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
"""Of the process that runs the tests, as it was started."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and the machine may be shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def stays_an_ordinary_process() -> Iterator[None]:
    """What encodes AV1 needs `ordinary_scheduling`."""
    yield
    assert not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) == SCHEDULING


@pytest.fixture(scope="session")
def video_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 frames in three episodes, two cameras of different size, one video file per camera. Read only."""
    return make_dataset(tmp_path_factory.mktemp("datasets") / "video")


@pytest.fixture(scope="session")
def image_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with images in three parquet files. Read only."""
    return make_dataset(tmp_path_factory.mktemp("datasets") / "image", use_videos=False, episodes_per_file=1)


@pytest.fixture(scope="session")
def tiny_encoder() -> TheiaEncoder:
    """`random-tiny`: the architecture of the published one, weights from a fixed seed."""
    return TheiaEncoder.from_pretrained("random-tiny")


@pytest.fixture(scope="session")
def tiny_spec(tiny_encoder: TheiaEncoder) -> EncoderSpec:
    return tiny_encoder.spec


@pytest.fixture(scope="session")
def video_cache(video_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """float16 tokens of `video_dataset`: per camera a shard of 13 frames and one of 3. Read only."""
    root = tmp_path_factory.mktemp("caches")
    report = precompute(
        PrecomputeSettings(
            repo_id=REPO_ID,
            root=str(video_dataset),
            encoder="random-tiny",
            cache_root=str(root),
            device="cpu",
            shard_mib=1,
        )
    )
    return FeatureCache.open(report.path)


@pytest.fixture(autouse=True)
def quiet_third_parties() -> None:
    """Keep reports of failures readable: torchcodec's absence is a page of traceback per dataset."""
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
