"""Shared by the encoder's tests: a checkpoint in the published layout, and encoders loaded once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lerobot_theia.encoder.theia import TheiaEncoder
from tests.encoder.published_layout import write_published_checkpoint


@pytest.fixture(scope="session")
def tiny_cdiv_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny-cdiv checkpoint on disk, with the weights of the goldens. Read only."""
    return write_published_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-cdiv", "tiny", "cdiv")


@pytest.fixture(scope="session")
def tiny_cdiv(tiny_cdiv_folder: Path) -> TheiaEncoder:
    return TheiaEncoder.from_pretrained(str(tiny_cdiv_folder))


@pytest.fixture(scope="session")
def random_tiny() -> TheiaEncoder:
    return TheiaEncoder.from_pretrained("random-tiny")


@pytest.fixture
def frames() -> Tensor:
    """Eight uint8 frames (8, 120, 160, 3)."""
    return torch.randint(
        0, 256, (8, 120, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
