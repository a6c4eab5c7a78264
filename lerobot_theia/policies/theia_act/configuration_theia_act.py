"""`--policy.type=theia_act`"""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig

from lerobot_theia.data.settings import FeatureSettings
from lerobot_theia.policies.common.augment import AugmentSettings
from lerobot_theia.policies.common.configuration import (
    check_augmentation,
    check_backbone_settings,
    check_inputs,
    identity_for_images,
    said_on_the_command_line,
)


@PreTrainedConfig.register_subclass("theia_act")
@dataclass
class TheiaACTConfig(FeatureSettings, AugmentSettings, ACTConfig):
    """ACT on Theia tokens.

    All of `ACTConfig` but its ResNet settings, and all of `FeatureSettings` and `AugmentSettings`. Cameras may
    differ in size.

    Args:
        compile_model: Compile the network, and the encoder where frames are encoded, with torch.compile; eager, with a
            warning, where that fails.
        compile_mode: Mode of torch.compile, as in LeRobot's diffusion policy.
    """

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: identity_for_images(
            STATE=NormalizationMode.MEAN_STD, ACTION=NormalizationMode.MEAN_STD
        )
    )
    compile_model: bool = False
    compile_mode: str = "reduce-overhead"

    def __post_init__(self) -> None:
        with said_on_the_command_line():
            super().__post_init__()
            check_backbone_settings(self, ACTConfig)
            check_augmentation(self, self.token_pool)

    def validate_features(self) -> None:
        check_inputs(self)
