"""`--policy.type=theia_act`"""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig

from lerobot_theia.data.settings import FeatureSettings
from lerobot_theia.policies.common.augment import AugmentSettings
from lerobot_theia.policies.common.configuration import (
    TOKEN_HEAD_DIM,
    check_augmentation,
    check_backbone_settings,
    check_inputs,
    check_token_head,
    identity_for_images,
    said_on_the_command_line,
)

TOKEN_HEADS = {"linear": False, "compression": True}
"""And whether `token_head_dim` is their width."""


@PreTrainedConfig.register_subclass("theia_act")
@dataclass
class TheiaACTConfig(FeatureSettings, AugmentSettings, ACTConfig):
    """ACT on Theia tokens.

    All of `ACTConfig` but its ResNet settings, and all of `FeatureSettings` and `AugmentSettings`. Cameras may
    differ in size.

    Args:
        token_head: What stands between a camera's (D, 14, 14) tokens and ACT's transformer. `linear`: each token, projected,
            is one of its inputs. `compression`: the convolutions of the Theia paper, as far as 3x3 positions, which learn to
            look at neighbouring tokens together and leave nine inputs.
        token_head_dim: Channels of `compression`.
        compile_model: Compile the network, and the encoder where frames are encoded, with torch.compile; eager, with a
            warning, where that fails.
        compile_mode: Mode of torch.compile, as in LeRobot's diffusion policy.
    """

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: identity_for_images(
            STATE=NormalizationMode.MEAN_STD, ACTION=NormalizationMode.MEAN_STD
        )
    )
    token_head: str = "linear"
    token_head_dim: int = TOKEN_HEAD_DIM
    compile_model: bool = False
    compile_mode: str = "reduce-overhead"

    def __post_init__(self) -> None:
        with said_on_the_command_line():
            super().__post_init__()
            check_backbone_settings(self, ACTConfig)
            check_augmentation(self, self.token_pool)
            check_token_head(self.token_head, self.token_head_dim, TOKEN_HEADS)

    def validate_features(self) -> None:
        check_inputs(self)
