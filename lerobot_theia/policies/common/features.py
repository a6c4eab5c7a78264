"""Tokens as a policy's input: from the batch if the cache put them there, else from the frames in it."""

from collections.abc import Mapping
from typing import Any

import einops
import numpy as np
import torch
from torch import Tensor, nn

from lerobot_theia.cache.pooling import pool_tokens, pooled_grid
from lerobot_theia.cache.storage import decode_tokens
from lerobot_theia.data.keys import frame_key, scale_key, tokens_key
from lerobot_theia.data.residency import LoadedTokens
from lerobot_theia.encoder import TheiaEncoder

SMALLEST_RELATIVE_STD = 2**-8
"""Rounding of bfloat16, the coarsest float storage: a channel that varies less than that (a dark camera, a constant
view) is no signal, and scaling it up would scale up rounding."""


def has_tokens(batch: Mapping[str, Any], camera: str) -> bool:
    """Whether a batch brings a camera's tokens, or says which they are, rather than its frames."""
    return tokens_key(camera) in batch or frame_key(camera) in batch


class FrozenFeatures(nn.Module):
    """Frozen encoder, pooling, and standardisation with per-channel statistics.

    Called on a batch, it puts in the place of each camera's frames (B, [S,] 3, H, W) a standardised feature map
    (B, [S,] D, h, w). With that shape it goes wherever LeRobot's policies put an image.

    Args:
        encoder: Turns frames into tokens; part of the policy's checkpoint, never trained.
        cameras: Names of the policy's image inputs.
        pool: Side of the average-pooling window over the patch grid.
        on_device: Tokens that lie on the policy's device while it trains; no part of its state.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: TheiaEncoder, cameras: list[str], pool: int, on_device: LoadedTokens | None = None
    ) -> None:
        super().__init__()
        self.on_device = on_device
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
            mean, std = (
                torch.as_tensor(np.asarray(stats[tokens_key(camera)][name]), dtype=torch.float32)
                for name in ("mean", "std")
            )
            if mean.shape != (self.dim,) or std.shape != (self.dim,) or not (mean + std).isfinite().all():
                raise ValueError(
                    f"token statistics of camera {camera!r} are {tuple(mean.shape)} and {tuple(std.shape)}, expected "
                    f"{self.dim} finite numbers each"
                )
            self.mean[row] = mean
            self.std[row] = std.maximum(SMALLEST_RELATIVE_STD * mean.abs().clamp_min(1))

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A copy of `batch` in which cameras hold maps. Tokens of a cache are taken before frames."""
        batch = dict(batch)
        cached = [camera for camera in self.cameras if has_tokens(batch, camera)]
        batch |= self.encode({camera: batch[camera] for camera in self.cameras if camera not in cached})
        for camera in cached:
            batch[camera] = self.to_map(camera, self.take_tokens(batch, camera))
        return batch

    def take_tokens(self, batch: dict[str, Any], camera: str) -> Tensor:
        """Remove a camera's tokens from `batch`: (B, [S,] N, D) float32."""
        frames = batch.pop(frame_key(camera), None)
        if frames is None:
            return decode_tokens(batch.pop(tokens_key(camera)), batch.pop(scale_key(camera), None))
        if self.on_device is None:
            raise RuntimeError(
                f"the batch holds frame indices of camera {camera!r}, but this policy has no tokens on its device: it "
                "was not made from the settings that its dataset was (--policy.cache_residency=device)"
            )
        if frames.device != (device := self.on_device.tables[camera].tokens.device):
            raise RuntimeError(
                f"tokens of camera {camera!r} lie on {device}, the batch on {frames.device}; use "
                "--policy.cache_residency=memory or disk"
            )
        stored = self.on_device.take(camera, frames.flatten())
        return decode_tokens(stored.tokens, stored.scale).view(*frames.shape, *stored.tokens.shape[1:])

    def encode(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Frames (B, [S,] 3, H, W) of any cameras, of any sizes -> maps (B, [S,] D, h, w), in one encoder call."""
        if not frames:
            return {}
        device = self.mean.device
        pixels = [self.encoder.preprocess(images.to(device).flatten(0, -4)) for images in frames.values()]
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
        tokens = (tokens - self.mean[row]) / self.std[row]
        return einops.rearrange(tokens, "... (h w) d -> ... d h w", h=self.grid)
