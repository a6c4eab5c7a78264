"""Augmentation of tokens while a policy trains: no frame is decoded for it, and no cache grows.

It acts on standardised feature maps, in which 0 is a camera's mean token and 1 a channel's standard deviation. So it is
the same for tokens from a cache, of whatever type, and for frames encoded in the step.
"""

import math
from dataclasses import dataclass

import einops
import torch
from torch import Tensor


@dataclass
class AugmentSettings:
    """Mixed into a policy's config, so that each field is a `--policy.*` flag. All are off at 0.

    Args:
        token_dropout: Probability with which a patch token is replaced by its camera's mean token; at least 0, below 1.
            The same tokens of a sample are replaced in all its observation steps; the others are not scaled up.
        token_noise: Standard deviation of Gaussian noise that is added to tokens, in units of each channel's standard
            deviation over the dataset. Each token of each step has noise of its own.
        grid_shift: A sample's token grid is moved by up to so many positions along x and along y, with its edges
            repeated; less than the grid's side. One shift per sample and camera, for all its observation steps.
    """

    token_dropout: float = 0.0
    token_noise: float = 0.0
    grid_shift: int = 0


def augment(maps: Tensor, settings: AugmentSettings) -> Tensor:
    """Maps (B, [S,] D, h, w) of one camera, with other draws for each sample from the generator of their device.

    What is off draws nothing. Dropping comes last, so that a token that is gone is the mean, without noise.
    """
    side = maps.shape[-1]
    tokens = einops.rearrange(maps, "... d h w -> ... (h w) d")  # a view: so they lie in memory
    if settings.grid_shift:
        tokens = shift(tokens, side, settings.grid_shift)
    if settings.token_noise:
        tokens = torch.add(tokens, torch.randn_like(tokens), alpha=settings.token_noise)
    if settings.token_dropout:
        tokens = drop(tokens, settings.token_dropout)
    return einops.rearrange(tokens, "... (h w) d -> ... d h w", h=side)


def shift(tokens: Tensor, side: int, reach: int) -> Tensor:
    """Each position of a (side x side) grid takes the token `reach` positions away or less, or the nearest on the edge."""
    batch, *steps, count, dim = tokens.shape
    offsets = torch.randint(-reach, reach + 1, (2, batch, 1), device=tokens.device)
    rows, columns = (torch.arange(side, device=tokens.device) + offsets).clamp(0, side - 1)  # (B, side) each
    taken = rows[:, :, None] * side + columns[:, None, :]
    frames = torch.arange(batch * math.prod(steps), device=tokens.device).view(batch, -1, 1)
    places = frames * count + taken.view(batch, 1, count)  # (B, S, N), among the tokens of all frames
    return tokens.reshape(-1, dim).index_select(0, places.flatten()).view(tokens.shape)


def drop(tokens: Tensor, probability: float) -> Tensor:
    """Zeros in the place of whole tokens."""
    batch, *steps, count, _ = tokens.shape
    chances = torch.rand(batch, *[1] * len(steps), count, 1, device=tokens.device)
    return tokens.masked_fill(chances < probability, 0)
