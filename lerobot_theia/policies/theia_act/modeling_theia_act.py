"""ACT whose image features are Theia tokens.

The tokens of each camera, as a (D, h, w) map or what a token head makes of it, take the place of the ResNet's feature map:
projected to the model's width and given a 2D sinusoidal position, they join the transformer encoder's input. All else is
LeRobot's ACT.
"""

import copy
from typing import Any

from lerobot.configs import FeatureType
from lerobot.policies.act.modeling_act import (
    ACT,
    ACTPolicy,
    ACTSinusoidalPositionEmbedding2d,
    ACTTemporalEnsembler,
)
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from lerobot_theia.policies.common.compiling import compile_forward
from lerobot_theia.policies.common.heads import compressed
from lerobot_theia.policies.common.policy import TheiaPolicy
from lerobot_theia.policies.theia_act.configuration_theia_act import TheiaACTConfig


class TokenBackbone(nn.Module):
    """Stands where ACT expects its ResNet; the maps it is given are feature maps already."""

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        return {"feature_map": maps}


class TheiaACT(ACT):
    """LeRobot's ACT network on feature maps (B, D, h, w) in `batch["observation.images"]`."""

    def __init__(self, config: TheiaACTConfig, map_shape: tuple[int, int, int]) -> None:
        super().__init__(
            without_cameras(config)
        )  # ACT builds a ResNet for cameras, and downloads its weights
        self.config = config
        self.backbone = TokenBackbone()
        # Not in the backbone, to which LeRobot's preset gives a learning rate of its own.
        self.token_head: nn.Module = nn.Identity()
        dim = map_shape[0]
        if config.token_head == "compression":
            dim = config.token_head_dim
            self.token_head = nn.Sequential(*compressed(map_shape, dim))
        self.encoder_img_feat_input_proj = nn.Conv2d(dim, config.dim_model, kernel_size=1)
        self.encoder_cam_feat_pos_embed = ACTSinusoidalPositionEmbedding2d(config.dim_model // 2)
        if config.compile_model:
            compile_forward(self, config.compile_mode)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor] | tuple[None, None]]:
        inputs: dict[str, Any] = dict(batch)
        inputs[OBS_IMAGES] = maps = [self.token_head(of_camera) for of_camera in batch[OBS_IMAGES]]
        # LeRobot's asks the state for its device, whether the policy has a state or not.
        inputs.setdefault(OBS_STATE, maps[0].new_empty(len(maps[0]), 0))
        return super().forward(inputs)


class TheiaACTPolicy(TheiaPolicy, ACTPolicy):
    """Action Chunking Transformer on frozen Theia features."""

    config_class = TheiaACTConfig
    name = "theia_act"

    def __init__(
        self,
        config: TheiaACTConfig,
        *,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        from_checkpoint: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            dataset_stats: LeRobot's `meta.stats`, with token statistics in it; not needed from a checkpoint.
            from_checkpoint: Weights of encoder and network will be loaded; set by `from_pretrained`.
        """
        super(ACTPolicy, self).__init__(config)  # not ACTPolicy's own, which builds the network with a ResNet
        config.validate_features()
        self.config = config
        self.features = self.build_features(dataset_stats, from_checkpoint)
        self.model = TheiaACT(config, self.features.map_shape)
        if config.temporal_ensemble_coeff is not None:
            self.temporal_ensembler = ACTTemporalEnsembler(config.temporal_ensemble_coeff, config.chunk_size)
        self.reset()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        return super().forward(self.begin_step(batch))

    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        """Called by `select_action` only when it has no action left, so frames in between are never encoded."""
        return super().predict_action_chunk(self.features(batch))


def without_cameras(config: TheiaACTConfig) -> TheiaACTConfig:
    config = copy.copy(config)
    config.input_features = {
        name: feature
        for name, feature in (config.input_features or {}).items()
        if feature.type is not FeatureType.VISUAL
    }
    return config
