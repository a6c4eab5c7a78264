"""Tokens as a policy's input: from the batch if the cache put them there, else from the frames in it."""

from collections.abc import Mapping
from typing import Any

import einops
import numpy as np
import torch
from torch import Tensor, nn

from lerobot_theia.cache.pooling import pool_tokens, pooled_grid
from lerobot_theia.cache.storage import decode_tokens
from lerobot_theia.data.keys import scale_key, tokens_key
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.encoder.preprocess import preprocess

SMALLEST_STD = 1e-6


class FrozenFeatures(nn.Module):
    """Frozen encoder, pooling, and standardisation with per-channel statistics.

    Called on a batch, it puts in the place of each camera's frames (B, [S,] 3, H, W) a standardised feature map
    (B, [S,] D, h, w). With that shape it goes wherever LeRobot's policies put an image.

    Args:
        encoder: Turns frames into tokens; part of the policy's checkpoint, never trained.
        cameras: Names of the policy's image inputs.
        pool: Side of the average-pooling window over the patch grid.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: TheiaEncoder, cameras: list[str], pool: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.cameras = cameras
        self.pool = pool
        self.grid = pooled_grid(encoder.spec.grid, pool)
        self.dim = encoder.spec.hidden_size
        # NaN until set, so that a policy without statistics cannot train by mistake.
        self.register_buffer("mean", torch.full((len(cameras), self.dim), torch.nan))
        self.register_buffer("std", torch.full((len(cameras), self.dim), torch.nan))

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(D, h, w) of one frame."""
        return self.dim, self.grid, self.grid

    def set_statistics(self, stats: Mapping[str, Mapping[str, Any]]) -> None:
        """Take each camera's from `stats`, LeRobot's `meta.stats`. Raises ValueError when one is missing."""
        for row, camera in enumerate(self.cameras):
            if tokens_key(camera) not in stats:
                raise ValueError(
                    f"no token statistics for camera {camera!r}: the policy was built outside lerobot-train. Pass "
                    "`dataset_stats` with an entry for each camera: lerobot_theia.data.token_statistics makes them "
                    "from a cache or from a sample of frames."
                )
            for name in ("mean", "std"):
                values = torch.as_tensor(np.asarray(stats[tokens_key(camera)][name]), dtype=torch.float32)
                getattr(self, name)[row] = values

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A copy of `batch` in which cameras hold maps. Tokens of a cache are taken before frames."""
        batch = dict(batch)
        frames = {camera: batch[camera] for camera in self.cameras if tokens_key(camera) not in batch}
        batch |= self.encode(frames)
        for camera in self.cameras:
            if camera not in frames:
                tokens = decode_tokens(batch.pop(tokens_key(camera)), batch.pop(scale_key(camera), None))
                batch[camera] = self.to_map(camera, tokens)
        return batch

    def encode(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Frames (B, [S,] 3, H, W) of any cameras, of any sizes -> maps (B, [S,] D, h, w), in one encoder call."""
        if not frames:
            return {}
        device = self.mean.device
        size = self.encoder.spec.image_size
        pixels = [preprocess(images.to(device).flatten(0, -4), size) for images in frames.values()]
        tokens = pool_tokens(self.encoder.encode_preprocessed(torch.cat(pixels)).float(), self.pool)
        parts = tokens.split([len(part) for part in pixels])
        return {
            camera: self.to_map(camera, part.view(*images.shape[:-3], *part.shape[1:]))
            for (camera, images), part in zip(frames.items(), parts, strict=True)
        }

    def to_map(self, camera: str, tokens: Tensor) -> Tensor:
        """(..., N, D) -> standardised (..., D, h, w)."""
        if tokens.shape[-2:] != (self.grid**2, self.dim):
            raise ValueError(
                f"tokens of camera {camera!r} are {tuple(tokens.shape[-2:])} a frame, this policy takes "
                f"{(self.grid**2, self.dim)}"
            )
        row = self.cameras.index(camera)
        tokens = (tokens - self.mean[row]) / self.std[row].clamp_min(SMALLEST_STD)
        return einops.rearrange(tokens, "... (h w) d -> ... d h w", h=self.grid)
