"""Smaller token grids: average pooling of the encoder's square patch grid."""

import einops
from torch import Tensor


def pooled_grid(grid: int, pool: int) -> int:
    """Side of the grid after pooling. Raises ValueError when the window does not tile the grid."""
    if pool < 1 or grid % pool:
        divisors = [size for size in range(1, grid + 1) if grid % size == 0]
        raise ValueError(f"pool={pool} does not tile the {grid}x{grid} patch grid; choose one of {divisors}")
    return grid // pool


def pool_tokens(tokens: Tensor, pool: int) -> Tensor:
    """(B, N, D) -> (B, N / pool^2, D), the mean of each pool x pool window of the square grid."""
    if pool == 1:
        return tokens
    side = pooled_grid(round(tokens.shape[1] ** 0.5), pool)
    return einops.reduce(tokens, "b (h p w q) d -> b (h w) d", "mean", h=side, w=side, p=pool, q=pool)
