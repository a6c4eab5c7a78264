"""Training configs without a policy's network, and a dataset with every kind of column."""

from pathlib import Path
from typing import Any

import pytest
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.policies.theia_act.configuration_theia_act import TheiaACTConfig
from tests.datasets import REPO_ID, column, make_dataset

EVERY_KIND = {
    "observation.one": column("float32", 1),
    "observation.matrix": column("float32", 2, 3),
    "observation.double": column("float64", 2),
    "count": column("int64", 1),
    "small_counts": column("int32", 3),
    "flags": column("bool", 2),
}


def cache_of(dataset: Path, root: Path, **changes: Any) -> FeatureCache:
    fields: dict[str, Any] = {
        "repo_id": REPO_ID, "root": str(dataset), "cache_root": str(root), "encoder": "random-tiny",
        "device": "cpu", "pool": 7,
    }  # fmt: skip
    return FeatureCache.open(precompute(PrecomputeSettings(**fields | changes)).path)


@pytest.fixture(scope="session")
def rich_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five episodes over five parquet files, columns of every kind, images. Read only."""
    return make_dataset(
        tmp_path_factory.mktemp("datasets") / "rich",
        episodes=(3, 2, 4, 2, 4),
        use_videos=False,
        episodes_per_file=1,
        state_dim=1,
        extra_features=EVERY_KIND,
    )


@pytest.fixture(scope="session")
def rich_cache(rich_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return cache_of(rich_dataset, tmp_path_factory.mktemp("caches"))


def train_config(dataset: Path, policy: Any = None, **changes: Any) -> TrainPipelineConfig:
    """What `lerobot-train` hands to `make_train_eval_datasets`; `changes` are of its `dataset`."""
    fields: dict[str, Any] = {"repo_id": REPO_ID, "root": str(dataset)}
    return TrainPipelineConfig(dataset=DatasetConfig(**fields | changes), policy=policy or act())


def act(**changes: Any) -> TheiaACTConfig:
    fields: dict[str, Any] = {
        "encoder": "random-tiny", "device": "cpu", "push_to_hub": False, "chunk_size": 3, "n_action_steps": 3,
    }  # fmt: skip
    return TheiaACTConfig(**fields | changes)
