"""Datasets and caches for the command tests, each made once by the commands themselves."""

from pathlib import Path

import pytest

from tests.cli.commands import checked, run
from tests.datasets import REPO_ID, make_dataset


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One camera, kept as video."""
    root = tmp_path_factory.mktemp("datasets") / "videos"
    return make_dataset(root, episodes=(10, 12, 9, 11), cameras={"observation.images.top": (48, 64)})


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras of different size, kept as images."""
    return make_dataset(tmp_path_factory.mktemp("datasets") / "images", episodes=(10, 12), use_videos=False)


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory: pytest.TempPathFactory, videos: Path, images: Path) -> Path:
    """Caches of both, in float32, so that training from them can be compared with training online."""
    root = tmp_path_factory.mktemp("caches")
    for dataset in (videos, images):
        checked(
            run(
                "lerobot-theia-precompute", f"+dataset.repo_id={REPO_ID}", f"dataset.root={dataset}",
                "encoder=random_tiny", "dtype=float32", f"cache_root={root / dataset.name}",
            )
        )  # fmt: skip
    return root


@pytest.fixture(scope="session")
def no_caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("no-caches")
