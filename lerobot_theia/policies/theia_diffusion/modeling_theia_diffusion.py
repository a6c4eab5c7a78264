"""Diffusion Policy whose image features are Theia tokens.

A token head per camera takes the place of the RGB encoder; its vectors condition LeRobot's U-Net as before.
"""

import copy
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel, DiffusionPolicy
from lerobot.policies.utils import populate_queues
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES
from torch import Tensor, nn

from lerobot_theia.policies.common.compiling import compile_forward
from lerobot_theia.policies.common.heads import make_token_head
from lerobot_theia.policies.common.policy import TheiaPolicy
from lerobot_theia.policies.theia_diffusion.configuration_theia_diffusion import TheiaDiffusionConfig


class TheiaDiffusionModel(DiffusionModel):
    """LeRobot's diffusion model on feature maps (B, S, cameras, D, h, w) in `batch["observation.images"]`."""

    def __init__(self, config: TheiaDiffusionConfig, map_shape: tuple[int, int, int]) -> None:
        num_cameras = len(config.image_features)
        num_heads = num_cameras if config.use_separate_rgb_encoder_per_camera else 1
        heads = [
            make_token_head(
                config.token_head,
                map_shape,
                num_keypoints=config.spatial_softmax_num_keypoints,
                feature_dim=config.token_head_dim,
            )
            for _ in range(num_heads)
        ]
        super().__init__(conditioned_on(config, num_cameras * heads[0].feature_dim))
        self.config = config
        if config.compile_model:
            compile_forward(self.unet, config.compile_mode)
        self.rgb_encoder = nn.ModuleList(heads) if config.use_separate_rgb_encoder_per_camera else heads[0]


class Observation:
    """Frames of one step, encoded when an action is first planned from them, and then only once."""

    def __init__(self, frames: dict[str, Tensor]) -> None:
        self.frames = frames
        self.maps: Tensor | None = None  # (B, cameras, D, h, w)


class TheiaDiffusionPolicy(TheiaPolicy, DiffusionPolicy):
    """Diffusion Policy on frozen Theia features."""

    config_class = TheiaDiffusionConfig
    name = "theia_diffusion"

    def __init__(
        self,
        config: TheiaDiffusionConfig,
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
        super(DiffusionPolicy, self).__init__(config)  # not DiffusionPolicy's own, which builds RGB encoders
        config.validate_features()
        self.config = config
        self._queues: dict[str, deque] = {}
        self.features = self.build_features(dataset_stats, from_checkpoint)
        self.diffusion = TheiaDiffusionModel(config, self.features.map_shape)
        self.reset()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, None]:
        return super().forward(self.begin_step(batch))

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """As LeRobot's, but the queue of observations keeps frames until an action is planned from them; copies, as a
        camera may write its next frame where this one was."""
        observation = Observation({camera: batch[camera].clone() for camera in self.config.image_features})
        step: dict[str, Any] = {key: value for key, value in batch.items() if key != ACTION}
        self._queues = populate_queues(self._queues, step | {OBS_IMAGES: observation})
        if not self._queues[ACTION]:
            actions = self.predict_action_chunk(batch, noise=noise)
            self._queues[ACTION].extend(actions.transpose(0, 1))
        return self._queues[ACTION].popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """(B, n_action_steps, action_dim) from the queued observations, or from `batch` if none are queued."""
        observations = self._queues[OBS_IMAGES]
        if not observations:
            return super().predict_action_chunk(self.features(batch), noise=noise)
        self.encode(observations)
        queued = {
            key: torch.stack(list(queue), dim=1)
            for key, queue in self._queues.items()
            if key not in (ACTION, OBS_IMAGES) and queue
        }
        queued[OBS_IMAGES] = torch.stack([observation.maps for observation in observations], dim=1)
        return self.diffusion.generate_actions(queued, noise=noise)

    def encode(self, observations: Iterable[Observation]) -> None:
        """Fill in the maps (B, cameras, D, h, w) of those that have none yet, all in one encoder call."""
        # The first observation fills the queue several times; it is one object.
        waiting = list({id(each): each for each in observations if each.maps is None}.values())
        if not waiting:
            return
        frames = {
            camera: torch.stack([each.frames[camera] for each in waiting], dim=1)
            for camera in self.config.image_features
        }  # (B, waiting, 3, H, W)
        maps = torch.stack(list(self.features.encode(frames).values()), dim=2)
        for each, encoded in zip(waiting, maps.unbind(1), strict=True):
            each.maps, each.frames = encoded, {}


def conditioned_on(config: TheiaDiffusionConfig, width: int) -> TheiaDiffusionConfig:
    """A config for LeRobot's constructor, which would build RGB encoders for cameras.

    All that its U-Net has to know of them is how wide their features are; so they are declared as that many more
    numbers of environment state.
    """
    config = copy.copy(config)
    config.compile_model = False  # ours falls back to eager, and leaves the names of parameters alone
    if config.env_state_feature is not None:
        width += config.env_state_feature.shape[0]
    config.input_features = {
        name: feature
        for name, feature in (config.input_features or {}).items()
        if feature.type not in (FeatureType.VISUAL, FeatureType.ENV)
    }
    config.input_features[OBS_ENV_STATE] = PolicyFeature(type=FeatureType.ENV, shape=(width,))
    return config
