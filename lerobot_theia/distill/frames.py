"""What travels through a distillation: images, and what is known of them beside their pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.encoder.resize import resize

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)


@dataclass(frozen=True)
class Item:
    """One image of a source, before it is read.

    Args:
        id: the same in every run over the same source.
        split: `train` or `validation`.
    """

    id: str
    split: str


@dataclass(frozen=True)
class Frame:
    """One image as a source hands it out.

    Args:
        image: (H, W, 3) uint8.
        truth: name to what a simulator knows of this image; see `Source.columns`.
    """

    image: np.ndarray
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Frames:
    """Some images of one source.

    Args:
        images: (B, 3, H, W) uint8.
        truth: name to (B, ...), the same names for all images of a source.
    """

    images: Tensor
    truth: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def at(self, size: int) -> Tensor:
        """The images squashed to (B, 3, size, size) uint8."""
        return resize(self.images, size)

    def to(self, device: torch.device) -> Self:
        truth = {name: values.to(device, non_blocking=True) for name, values in self.truth.items()}
        return type(self)(self.images.to(device, non_blocking=True), truth)


def split_by_group(groups: Sequence[str], validation: float, what: str) -> dict[str, str]:
    """A split for each group of images that belong together (an episode, a video), the same in every run.

    Groups are ordered by a hash of their name; the first `validation` of them are held out, at least one of
    two or more if `validation` is above 0.
    """
    if not 0 <= validation < 1:
        raise DistillError(f"{what}: validation is {validation}, must be a share from 0 up to 1")
    names = sorted(dict.fromkeys(groups), key=lambda name: sha256(name.encode()).digest())
    held_out = round(validation * len(names))
    if validation > 0 and len(names) > 1:
        held_out = min(max(held_out, 1), len(names) - 1)
    return {name: VALIDATION if i < held_out else TRAIN for i, name in enumerate(names)}
