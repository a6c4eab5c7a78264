"""The distillation loss: 0.9 cosine + 0.1 SmoothL1 on standardised features."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

COSINE_WEIGHT = 0.9
SMOOTH_L1_WEIGHT = 0.1
MIN_STD = 1e-6


@dataclass(frozen=True)
class Standard:
    """Per-channel mean and standard deviation (C,) of a teacher's features."""

    mean: Tensor
    std: Tensor

    def standardise(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H*W, C) float32 of mean 0 and deviation 1."""
        flat = features.float().flatten(2).transpose(1, 2)
        return (flat - self.mean.to(flat)) / self.std.to(flat).clamp_min(MIN_STD)

    def restore(self, standardised: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C) in the teacher's own units."""
        return standardised.float() * self.std.to(standardised.device) + self.mean.to(standardised.device)


@dataclass(frozen=True)
class TeacherLoss:
    """Losses of one teacher, per image (b,), and which images of the batch these are (None: all)."""

    cosine: Tensor
    smooth_l1: Tensor
    rows: Tensor | None

    @property
    def total(self) -> Tensor:
        return COSINE_WEIGHT * self.cosine + SMOOTH_L1_WEIGHT * self.smooth_l1


def teacher_loss(predicted: Tensor, target: Tensor, rows: Tensor | None = None) -> TeacherLoss:
    """Predicted and true standardised features (b, N, C).

    The cosine is that of whole maps: 1 - cos between the N * C numbers of an image.
    """
    predicted, target = predicted.float(), target.float()
    cosine = 1 - torch.nn.functional.cosine_similarity(predicted.flatten(1), target.flatten(1), dim=1)
    smooth_l1 = torch.nn.functional.smooth_l1_loss(predicted, target, reduction="none").flatten(1).mean(1)
    return TeacherLoss(cosine, smooth_l1, rows)


def batch_loss(losses: Mapping[str, TeacherLoss], weights: Mapping[str, float], batch_size: int) -> Tensor:
    """Mean over images of the weighted mean over the teachers that teach them.

    Where all teachers teach all images, that is the plain mean over teachers.
    """
    device = next(iter(losses.values())).cosine.device
    total = torch.zeros(batch_size, device=device)
    weight = torch.zeros(batch_size, device=device)
    for teacher, loss in losses.items():
        share = weights.get(teacher, 1.0)
        rows = torch.arange(batch_size, device=device) if loss.rows is None else loss.rows
        total = total.index_add(0, rows, share * loss.total)
        weight = weight.index_add(0, rows, torch.full_like(loss.cosine.detach(), share))
    return (total / weight.clamp_min(torch.finfo(torch.float32).tiny)).mean()
