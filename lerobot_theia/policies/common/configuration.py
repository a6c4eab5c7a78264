"""Checks both configs make."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from draccus.utils import ParsingError
from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig

from lerobot_theia.encoder.names import IMAGE_SIZE, PATCH_SIZE
from lerobot_theia.policies.common.augment import AugmentSettings

TOKEN_HEAD_DIM = 256
"""Default width of token heads."""
RGB_BACKBONE_FIELDS = (
    "vision_backbone",
    "pretrained_backbone_weights",
    "replace_final_stride_with_dilation",
    "optimizer_lr_backbone",
    "resize_shape",
    "crop_ratio",
    "crop_shape",
    "crop_is_random",
    "use_group_norm",
)
"""Settings of the ResNet that Theia replaces."""


class InvalidSettingError(ParsingError):
    """A setting of a policy that cannot be; the message names it and the way out.

    No ValueError: of those that a config raises, `lerobot-train` shows no word.
    """


@contextlib.contextmanager
def said_on_the_command_line() -> Iterator[None]:
    """Raises InvalidSettingError for ValueErrors of checks, LeRobot's own included."""
    try:
        yield
    except ValueError as error:
        raise InvalidSettingError(str(error)) from error


def check_backbone_settings(config: PreTrainedConfig, parent: type[PreTrainedConfig]) -> None:
    """A setting that has no effect must not look as if it had one."""
    defaults = {field.name: field.default for field in dataclasses.fields(parent)}
    for name in RGB_BACKBONE_FIELDS:
        if name in defaults and getattr(config, name) != defaults[name]:
            raise ValueError(
                f"{name}={getattr(config, name)!r} concerns the ResNet of {parent.__name__}, which the frozen Theia "
                f"encoder replaces; leave it at {defaults[name]!r}. Theia sees whole frames, resized to 224x224."
            )
    mode = config.normalization_mapping.get("VISUAL", NormalizationMode.IDENTITY)  # type: ignore[attr-defined]
    if mode != NormalizationMode.IDENTITY:
        raise ValueError(
            f"normalization_mapping VISUAL={mode} would change frames before the encoder sees them; it must be "
            "IDENTITY. Theia's own preprocessing normalises."
        )


def check_augmentation(config: AugmentSettings, token_pool: int) -> None:
    grid = max(1, IMAGE_SIZE // PATCH_SIZE // token_pool)  # a pool that does not tile it is refused elsewhere
    if not 0 <= config.token_dropout < 1:
        raise ValueError(
            f"token_dropout={config.token_dropout} must be a probability from 0 (off) to below 1, where no token would be left"
        )
    if not 0 <= config.token_noise < math.inf:
        raise ValueError(
            f"token_noise={config.token_noise} must be a number of standard deviations, at least 0 (off), such as 0.1"
        )
    if not isinstance(config.grid_shift, int) or not 0 <= config.grid_shift < grid:
        raise ValueError(
            f"grid_shift={config.grid_shift} must be a whole number of positions from 0 (off) to {grid - 1}: with "
            f"token_pool={token_pool} the grid is {grid}x{grid}"
        )


def check_token_head(token_head: str, dim: int, heads: Mapping[str, bool]) -> None:
    """`heads` are those of a policy, and whether `dim` is the width of each."""
    if token_head not in heads:
        raise ValueError(f"token_head={token_head!r}; choose one of {', '.join(heads)}")
    wide = [name for name, is_wide in heads.items() if is_wide]
    way_out = f"a head whose width it is: {', '.join(wide)}"
    check_head_size("token_head_dim", dim, TOKEN_HEAD_DIM, token_head, wide, way_out)


def check_head_size(
    name: str, size: int, usual: int, token_head: str, heads: Sequence[str], way_out: str
) -> None:
    """A size of `heads` only, which without effect on `token_head` stays the usual one."""
    if size < 1:
        raise ValueError(f"{name}={size} must be at least 1")
    if size != usual and token_head not in heads:
        raise ValueError(
            f"{name}={size} has no effect on token_head={token_head}; leave it at {usual}, or choose {way_out}"
        )


def check_inputs(config: PreTrainedConfig) -> None:
    if not config.image_features:
        raise ValueError(
            f"{config.type} needs at least one camera among its input features, got "
            f"{list(config.input_features or {})}. Without cameras use LeRobot's own policies."
        )
    for name, feature in config.image_features.items():
        if len(feature.shape) != 3 or feature.shape[0] != 3:
            raise ValueError(
                f"input {name!r} has shape {feature.shape}; Theia encodes RGB frames (3, H, W). Leave grayscale and "
                "depth cameras out with --policy.input_features."
            )


def identity_for_images(**modes: NormalizationMode) -> dict[str, NormalizationMode]:
    return {FeatureType.VISUAL.value: NormalizationMode.IDENTITY, **modes}
