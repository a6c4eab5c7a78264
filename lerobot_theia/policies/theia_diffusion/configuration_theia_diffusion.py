"""`--policy.type=theia_diffusion`"""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from lerobot_theia.data.settings import FeatureSettings
from lerobot_theia.policies.common.augment import AugmentSettings
from lerobot_theia.policies.common.configuration import (
    TOKEN_HEAD_DIM,
    check_augmentation,
    check_backbone_settings,
    check_head_size,
    check_inputs,
    check_token_head,
    identity_for_images,
    said_on_the_command_line,
)

TOKEN_HEADS = {
    "spatial_softmax": False,
    "compression": False,
    "attention": True,
    "flatten": True,
    "mean": True,
}
"""And whether `token_head_dim` is their width."""


@PreTrainedConfig.register_subclass("theia_diffusion")
@dataclass
class TheiaDiffusionConfig(FeatureSettings, AugmentSettings, DiffusionConfig):
    """Diffusion Policy on Theia tokens.

    All of `DiffusionConfig` but its ResNet settings, and all of `FeatureSettings` and `AugmentSettings`. Cameras may
    differ in size.

    Args:
        token_head: What turns a camera's (D, 14, 14) tokens into a vector. `spatial_softmax`: expected positions of
            `spatial_softmax_num_keypoints` learned features, as in-tree. `compression`: the CNN of the Theia paper.
            `attention`: a learned query attends to the tokens. `flatten`: all tokens side by side, projected.
            `mean`: their average, projected.
        token_head_dim: Width of that vector for `attention`, `flatten` and `mean`.
    """

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: identity_for_images(
            STATE=NormalizationMode.MIN_MAX, ACTION=NormalizationMode.MIN_MAX
        )
    )
    token_head: str = "spatial_softmax"
    token_head_dim: int = TOKEN_HEAD_DIM

    def __post_init__(self) -> None:
        with said_on_the_command_line():
            super().__post_init__()
            check_backbone_settings(self, DiffusionConfig)
            check_augmentation(self, self.token_pool)
            check_token_head(self.token_head, self.token_head_dim, TOKEN_HEADS)
            check_head_size(
                "spatial_softmax_num_keypoints", self.spatial_softmax_num_keypoints,
                DiffusionConfig.spatial_softmax_num_keypoints, self.token_head, ["spatial_softmax"],
                "token_head=spatial_softmax",
            )  # fmt: skip

    def validate_features(self) -> None:
        check_inputs(self)
        if self.robot_state_feature is None:
            raise ValueError(
                "theia_diffusion, like LeRobot's diffusion, needs the input 'observation.state'; the dataset has "
                f"{list(self.input_features or {})}. theia_act does without."
            )
