"""Processors of `theia_diffusion`: those of LeRobot's diffusion. Frames pass through them unchanged."""

from typing import Any

from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from lerobot.processor import PolicyAction, PolicyProcessorPipeline
from torch import Tensor

from lerobot_theia.policies.theia_diffusion.configuration_theia_diffusion import TheiaDiffusionConfig


def make_theia_diffusion_pre_post_processors(
    config: TheiaDiffusionConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """(preprocessor, postprocessor)."""
    return make_diffusion_pre_post_processors(config, dataset_stats)
