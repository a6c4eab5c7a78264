"""Processors of `theia_act`: those of LeRobot's act. Frames pass through them unchanged."""

from typing import Any

from lerobot.policies.act.processor_act import make_act_pre_post_processors
from lerobot.processor import PolicyAction, PolicyProcessorPipeline
from torch import Tensor

from lerobot_theia.policies.theia_act.configuration_theia_act import TheiaACTConfig


def make_theia_act_pre_post_processors(
    config: TheiaACTConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """(preprocessor, postprocessor)."""
    return make_act_pre_post_processors(config, dataset_stats)
