"""How a student is trained."""

import math
from dataclasses import dataclass

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.schedule import LearningRate, Stage
from lerobot_theia.encoder.names import IMAGE_SIZE


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a student is trained; the defaults are the published ones.

    Args:
        steps: optimiser steps; or give `epochs`.
        epochs: passes over the corpus; or give `steps`.
        train_blocks: train the last so many blocks, the final norm and the heads only; None trains all.
        batch_size: images per step, over all processes.
        learning_rate: after the warm-up. Published: 5e-4 for 128 images.
        betas, weight_decay: of AdamW; parameters of one dimension and biases do not decay.
        schedule: `constant` or `cosine`.
        warmup: share of the steps.
        stages: resolutions one after the other; see `schedule.Stage`.
        clip_norm: of the gradient; None does not clip.
        bf16: run the forward pass in bfloat16 (autocast); weights and losses stay float32.
        recolour: strength of the augmentation; 0 is none.
        seed: of weights, order of images and augmentation.
        log_every, validate_every, checkpoint_every: in steps.
        validation_images: at most so many held-out images, evenly chosen.
        pictures: images drawn at each validation.
    """

    steps: int | None = None
    epochs: float | None = None
    train_blocks: int | None = None
    batch_size: int = 128
    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    schedule: str = "constant"
    warmup: float = 0.1
    stages: tuple[Stage, ...] = (Stage(size=IMAGE_SIZE, share=1.0),)
    clip_norm: float | None = None
    bf16: bool = False
    recolour: float = 0.0
    seed: int = 0
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 1000
    validation_images: int = 1024
    pictures: int = 6

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise DistillError(
                f"training.steps is {self.steps}, training.epochs {self.epochs}: give one of them, and set the other, where a "
                "configuration has it, to null"
            )
        positive = (
            "steps", "epochs", "batch_size", "clip_norm", "log_every", "validate_every",
            "checkpoint_every", "validation_images",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                nothing = " (null: no clipping)" if name == "clip_norm" else ""
                raise DistillError(f"training.{name} is {value}, must be above 0{nothing}")
        for name in ("weight_decay", "pictures"):
            if not getattr(self, name) >= 0:
                raise DistillError(f"training.{name} is {getattr(self, name)}, must be at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise DistillError(f"training.betas are {list(self.betas)}, must be from 0 up to 1")
        if not self.stages:
            raise DistillError("training.stages is empty: give at least one, `[{size: 224, share: 1}]`")
        self.rate(steps=1)  # which checks what it is given
        if not 0 <= self.seed < 2**32:
            raise DistillError(f"training.seed is {self.seed}, must be at least 0 and below 2^32")
        if not 0 <= self.recolour < 1:
            raise DistillError(f"training.recolour is {self.recolour}, must be from 0 up to 1")

    def rate(self, steps: int) -> LearningRate:
        return LearningRate(peak=self.learning_rate, steps=steps, schedule=self.schedule, warmup=self.warmup)

    def total_steps(self, steps_per_epoch: float) -> int:
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * steps_per_epoch))
