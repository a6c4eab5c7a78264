"""What a teacher is: from images, or from what a simulator knows of them, to a feature map."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lerobot_theia.distill.frames import Frames
from lerobot_theia.encoder.translator import FeatureSize


class Teacher(Protocol):
    """Images to features.

    A teacher that needs columns teaches only the images of sources which have them.
    """

    name: str
    """Its name in the student's checkpoint: a Hub id, a folder's name, or `simulator/<name>`."""
    feature_size: FeatureSize
    """(C, H, W)."""
    license: str
    """Of its weights, in words or as an SPDX identifier."""
    needs: frozenset[str]
    """Columns of truth it looks at; empty for one that looks at pixels."""
    origin: Mapping[str, Any]
    """Model id, revision, hash of its weights: for the provenance file."""

    def identity(self) -> Mapping[str, Any]:
        """Everything its features depend on."""
        ...

    def to(self, device: torch.device) -> None: ...

    def release(self) -> None:
        """Free its memory, since its features are extracted; called again, it makes itself anew."""
        ...

    def __call__(self, frames: Frames) -> Tensor:
        """Features (B, C, H, W), float32, on the frames' device."""
        ...

    def picture(self, features: Tensor) -> Tensor | None:
        """Features (B, C, H, W) as images (B, 3, h, w) in [0, 1]; None to have principal components drawn."""
        ...


def fold(maps: Tensor, grid: int) -> Tensor:
    """Maps (B, C, R, R) to (B, C * k * k, grid, grid), k = R / grid: the pixels of a cell become channels.

    A 16x16 head with more channels gives the resolution of a 64x64 head at a fraction of its cost.
    """
    return torch.nn.functional.pixel_unshuffle(maps, maps.shape[-1] // grid)


def unfold(features: Tensor, resolution: int) -> Tensor:
    """The inverse of `fold`."""
    return torch.nn.functional.pixel_shuffle(features, resolution // features.shape[-1])
