"""Weights for `random-*` encoders: an untrained ViT from a fixed seed, to try things out offline.

The draws are raw PCG64 bits turned into uniform floats with exact arithmetic, seeded by tensor name: the same
bits on every machine and library version (Gaussian samplers go through log and cos, which differ), and no
global random state is read or moved.

An untrained ViT is a random feature map; the scales below keep it an informative one. Weights have variance
1 / fan-in, so a patch's content arrives at full strength; positions are as strong as content (the usual 0.02
would drown); and what each block adds shrinks with depth, so that tokens stay different from each other
instead of converging to their mean.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

SEED = 224
_POSITION_STD = 0.5


def random_weights(shapes: Mapping[str, torch.Size], num_layers: int) -> dict[str, Tensor]:
    """Tensors (float32) for a ViT's parameters, given their names and shapes."""
    return {name: _random_tensor(name, tuple(shape), num_layers) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: tuple[int, ...], num_layers: int) -> Tensor:
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:  # scale of a layer norm
        return torch.ones(shape)
    if name.endswith(("cls_token", "position_embeddings")):
        return _uniform(name, shape, std=_POSITION_STD)
    fan_in = math.prod(shape[1:])
    std = 1 / math.sqrt(fan_in)
    if name.endswith("output.dense.weight"):  # the last layer of each residual branch, two per block
        std /= math.sqrt(2 * num_layers)
    return _uniform(name, shape, std=std)


def _uniform(name: str, shape: tuple[int, ...], std: float) -> Tensor:
    """Uniform float32 of mean zero: 24 random bits each, scaled once."""
    bits = np.random.PCG64([SEED, zlib.crc32(name.encode())]).random_raw(math.prod(shape)) >> np.uint64(40)
    centred = bits.astype(np.float32) - np.float32(2**23 - 0.5)
    return torch.from_numpy((centred * np.float32(std * math.sqrt(3) / 2**23)).reshape(shape))
