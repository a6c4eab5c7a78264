"""Policies small enough for a test, and batches for them, without any dataset."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from lerobot_theia.cache.pooling import pool_tokens
from lerobot_theia.data.keys import tokens_key
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.policies.common.policy import TheiaPolicy
from lerobot_theia.policies.theia_act.configuration_theia_act import TheiaACTConfig
from lerobot_theia.policies.theia_act.modeling_theia_act import TheiaACTPolicy
from lerobot_theia.policies.theia_diffusion.configuration_theia_diffusion import TheiaDiffusionConfig
from lerobot_theia.policies.theia_diffusion.modeling_theia_diffusion import TheiaDiffusionPolicy

POLICIES = ("theia_act", "theia_diffusion")
ONE_CAMERA = {"observation.image": (96, 96)}
TWO_CAMERAS = {"observation.images.top": (48, 64), "observation.images.wrist": (96, 96)}
SMALL = {
    "theia_act": {
        "chunk_size": 8, "n_action_steps": 4, "dim_model": 32, "n_heads": 2, "dim_feedforward": 64,
        "n_encoder_layers": 1, "n_vae_encoder_layers": 1, "dropout": 0.0,
    },
    "theia_diffusion": {
        "horizon": 8, "n_action_steps": 4, "down_dims": (16, 32), "diffusion_step_embed_dim": 16,
        "num_train_timesteps": 4,
    },
}  # fmt: skip
AUGMENTED = {"token_dropout": 0.3, "token_noise": 0.1, "grid_shift": 2}
"""All augmentations at once."""
CLASSES = {
    "theia_act": (TheiaACTConfig, TheiaACTPolicy),
    "theia_diffusion": (TheiaDiffusionConfig, TheiaDiffusionPolicy),
}


def token_statistics(cameras: dict[str, tuple[int, int]], dim: int = 192) -> dict[str, dict[str, np.ndarray]]:
    """Plausible ones, different for each camera."""
    rng = np.random.default_rng(0)
    return {
        tokens_key(camera): {
            "mean": rng.normal(size=dim).astype(np.float32),
            "std": rng.uniform(0.5, 2, dim).astype(np.float32),
        }
        for camera in cameras
    }


def make_config(kind: str, cameras: dict[str, tuple[int, int]] = ONE_CAMERA, **changes: Any) -> Any:
    visual = {name: PolicyFeature(FeatureType.VISUAL, (3, *size)) for name, size in cameras.items()}
    fields = {
        "input_features": {OBS_STATE: PolicyFeature(FeatureType.STATE, (3,)), **visual},
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (2,))},
        "device": "cpu",
        "encoder": "random-tiny",
        "push_to_hub": False,
    }
    return CLASSES[kind][0](**(fields | SMALL[kind] | changes))


def make_policy(kind: str, cameras: dict[str, tuple[int, int]] = ONE_CAMERA, **changes: Any) -> TheiaPolicy:
    torch.manual_seed(0)
    config = make_config(kind, cameras, **changes)
    return CLASSES[kind][1](config, dataset_stats=token_statistics(cameras))


def training_batch(policy: TheiaPolicy, size: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Frames as lerobot-train hands them over: float32 in [0, 1], with a step dimension if the policy looks back."""
    generator = torch.Generator().manual_seed(seed)
    config = policy.config
    steps = () if config.observation_delta_indices is None else (len(config.observation_delta_indices),)
    horizon = len(config.action_delta_indices)
    batch = {
        name: torch.randint(0, 256, (size, *steps, *feature.shape), generator=generator, dtype=torch.uint8)
        / 255
        for name, feature in config.image_features.items()
    }
    batch[OBS_STATE] = torch.randn(size, *steps, 3, generator=generator)
    batch[ACTION] = torch.rand(size, horizon, 2, generator=generator) * 2 - 1
    batch["action_is_pad"] = torch.zeros(size, horizon, dtype=torch.bool)
    return batch


def observation(policy: TheiaPolicy, size: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """One step of `size` environments, as LeRobot's observation processor makes it."""
    batch = training_batch(policy, size, seed)
    steps = policy.config.observation_delta_indices is not None
    return {
        key: value[:, -1] if steps else value for key, value in batch.items() if key.startswith("observation")
    }


def with_tokens(batch: dict[str, Tensor], policy: TheiaPolicy, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same batch as a cache of `dtype` would give it: tokens, and no frames."""
    encoder: TheiaEncoder = policy.features.encoder
    cached = {key: value for key, value in batch.items() if key not in policy.config.image_features}
    for camera in policy.config.image_features:
        frames = batch[camera]
        tokens = pool_tokens(encoder(frames.flatten(0, -4)), policy.config.token_pool).to(dtype)
        cached[tokens_key(camera)] = tokens.view(*frames.shape[:-3], *tokens.shape[1:])
    return cached


@pytest.fixture
def count_encoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Batch sizes of all encoder calls so far."""
    calls: list[int] = []
    encode = TheiaEncoder.encode_preprocessed

    def counting(self: TheiaEncoder, pixels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(pixels))
        return encode(self, pixels, *args, **kwargs)

    monkeypatch.setattr(TheiaEncoder, "encode_preprocessed", counting)
    return lambda: calls
