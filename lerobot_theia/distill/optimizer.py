"""AdamW over what trains."""

import torch
from torch import nn

from lerobot_theia.distill.student import Student
from lerobot_theia.distill.training_settings import TrainingSettings


def make_optimizer(student: Student, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW over what trains; no decay for parameters of one dimension and biases, as published."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name.endswith(".bias") else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
        fused=True,
    )
