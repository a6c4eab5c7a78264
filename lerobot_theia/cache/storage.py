"""How tokens are stored: three float types, or int8 with one scale per token."""

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPES = (*FLOAT_DTYPES, "int8")

INT8_MAX = 127


@dataclass(frozen=True)
class StoredTokens:
    """Tokens as a shard holds them."""

    tokens: Tensor
    """(B, N, D) in the storage dtype."""
    scale: Tensor | None = None
    """(B, N) float32 for int8: the value of one step. None for floats."""


def torch_dtype(dtype: str) -> torch.dtype:
    """Raises ValueError for a name not in `DTYPES`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not a storage type; choose one of {', '.join(DTYPES)}")
    return FLOAT_DTYPES.get(dtype, torch.int8)


def encode_tokens(tokens: Tensor, dtype: str) -> StoredTokens:
    """(B, N, D) floats -> storage. int8 is symmetric, its scale the token's largest magnitude over 127."""
    if dtype != "int8":
        return StoredTokens(tokens.to(torch_dtype(dtype)))
    tokens = tokens.float()
    scale = tokens.abs().amax(dim=-1) / INT8_MAX  # (B, N)
    # An all-zero token has scale 0; any positive divisor keeps it zero.
    steps = tokens / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return StoredTokens(steps.round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale)


def decode_tokens(tokens: Tensor, scale: Tensor | None = None) -> Tensor:
    """(..., N, D) as stored, and (..., N) scales if int8 -> (..., N, D) float32."""
    tokens = tokens.float()
    return tokens if scale is None else tokens * scale.unsqueeze(-1)


def bytes_per_frame(num_tokens: int, dim: int, dtype: str) -> int:
    """Bytes of one frame's tokens, without file overhead."""
    per_token = dim * torch_dtype(dtype).itemsize + (4 if dtype == "int8" else 0)
    return num_tokens * per_token
