"""What changes in the course of training: the learning rate and the resolution."""

import math
from dataclasses import dataclass

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.encoder.names import PATCH_SIZE

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up, then constant as published, or a cosine down to `final` of the peak.

    Args:
        peak: learning rate after the warm-up.
        steps: of the whole training.
        warmup: share of the steps.
        start: learning rate of the first step, as a share of the peak.
    """

    peak: float
    steps: int
    schedule: str = "constant"
    warmup: float = 0.1
    start: float = 0.01
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise DistillError(
                f"training.schedule is {self.schedule!r}, must be one of {', '.join(SCHEDULES)}"
            )
        if not self.peak > 0:
            raise DistillError(f"training.learning_rate is {self.peak}, must be above 0")
        if not 0 <= self.warmup < 1:
            raise DistillError(
                f"training.warmup is {self.warmup}, must be a share of the steps, from 0 up to 1"
            )

    def at(self, step: int) -> float:
        warmup_steps = self.warmup * self.steps
        if step < warmup_steps:
            return self.peak * (self.start + (1 - self.start) * step / warmup_steps)
        if self.schedule == "constant":
            return self.peak
        done = (step - warmup_steps) / max(1.0, self.steps - warmup_steps)
        return self.peak * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training at one resolution.

    Args:
        size: pixels along a side at which the student sees the images; a multiple of 16.
        share: of all steps.
    """

    size: int
    share: float

    def __post_init__(self) -> None:
        if self.size < PATCH_SIZE or self.size % PATCH_SIZE:
            raise DistillError(f"stage size {self.size} is not a multiple of {PATCH_SIZE} pixels")
        if not self.share > 0:
            raise DistillError(f"stage share {self.share} must be above 0")


@dataclass(frozen=True)
class Resolution:
    """Stages one after the other; shares are relative."""

    stages: tuple[Stage, ...]
    steps: int

    def at(self, step: int) -> int:
        """The image size of a step."""
        total, end = sum(stage.share for stage in self.stages), 0.0
        for stage in self.stages:
            end += stage.share / total * self.steps
            if step < round(end):
                return stage.size
        return self.stages[-1].size
