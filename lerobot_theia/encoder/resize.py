"""Antialiased bilinear resize of uint8 images that gives the same grey levels on every device.

torch's CPU kernel for uint8 works in integers, as PIL does: one pass per axis, weights rounded to int16, the
sum rounded back to uint8. On the goldens it equals PIL's resize (96x96, up) or differs from it in 0.2 % of
the values by one level (480x640, down); resizing in float32 differs in 13 %. There is no such kernel for
other devices: a resize there would go through float32, and frames encoded on a GPU would differ from the
same frames encoded on a robot's CPU. So other devices run the very same integer arithmetic, tap by tap.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# torch looks for the finest weights that fit int16, and never goes beyond 22 bits: 255 * 2**22 fits int32.
_MAX_PRECISION = 22
_INT16_LIMIT = 1 << 15


def resize(images: Tensor, size: int) -> Tensor:
    """Squash uint8 images (B, C, H, W) to (B, C, size, size), on their own device."""
    if images.shape[-2:] == (size, size):
        return images
    if images.shape[0] == 0:  # torch's kernel refuses an empty batch
        return images.new_empty((0, images.shape[1], size, size))
    if images.device.type == "cpu":
        return torch.nn.functional.interpolate(
            images, size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )
    return resize_by_taps(images, size)


def resize_by_taps(images: Tensor, size: int) -> Tensor:
    """The arithmetic of torch's uint8 CPU kernel in plain tensor operations: width first, then height."""
    return _resize_axis(_resize_axis(images, size, axis=3), size, axis=2)


def _resize_axis(images: Tensor, size: int, axis: int) -> Tensor:
    if images.shape[axis] == size:
        return images
    positions, weights, precision = _taps_on(images.device, images.shape[axis], size)
    broadcast = [1, 1, 1, 1]
    broadcast[axis] = size
    shape = list(images.shape)
    shape[axis] = size
    # Half of the last bit that is dropped: the shift below then rounds to nearest.
    total = torch.full(shape, 1 << (precision - 1), dtype=torch.int32, device=images.device)
    for position, weight in zip(positions, weights, strict=True):
        total += images.index_select(axis, position) * weight.view(broadcast)
    return (total >> precision).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _taps_on(device: torch.device, size_in: int, size_out: int) -> tuple[Tensor, Tensor, int]:
    """As `_taps`, kept on the device, so that a step copies none."""
    positions, weights, precision = _taps(size_in, size_out)
    return positions.to(device), weights.to(device), precision


def _taps(size_in: int, size_out: int) -> tuple[Tensor, Tensor, int]:
    """Positions (K, size_out) int64, integer weights (K, size_out) int32, and the weights' precision in bits.

    A triangle filter, stretched by the scale where the image shrinks, normalised where it meets the border.
    """
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    center = scale * (np.arange(size_out) + 0.5)
    first = np.maximum((center - stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((center + stretch + 0.5).astype(np.int64), size_in)
    taps = np.arange((end - first).max())[:, None]

    position = first + taps
    inside = position < end
    weight = np.maximum(1.0 - np.abs((position - center + 0.5) * (1.0 / stretch)), 0.0) * inside
    weight /= weight.sum(axis=0)

    precision = 0
    while precision < _MAX_PRECISION and int(0.5 + weight.max() * (1 << (precision + 1))) < _INT16_LIMIT:
        precision += 1
    integer = (0.5 + weight * (1 << precision)).astype(np.int32)
    position = np.where(inside, position, 0)  # weight 0: any valid position will do
    return torch.from_numpy(position), torch.from_numpy(integer), precision
