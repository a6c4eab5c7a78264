"""Simple augmentation: other light and colours, for the student only.

The teachers see the plain image, so it goes with extracted features and leaves every map where it is.
"""

import torch
from torch import Tensor


def recolour(images: Tensor, strength: float, seed: int, step: int) -> Tensor:
    """Contrast, brightness and a gain per colour channel, drawn per image from seed and step.

    Args:
        images: (B, 3, H, W) uint8.
        strength: 0 changes nothing; 0.3 scales contrast and channels by 0.7 to 1.3 and shifts by up to 0.15 of
            the range.
    """
    if strength == 0:
        return images
    generator = torch.Generator().manual_seed(((seed << 32) + step) % 2**64)
    draws = torch.rand(len(images), 5, generator=generator).mul_(2).sub_(1).mul_(strength)
    draws = draws[..., None, None].to(images.device)
    contrast, shift, gains = 1 + draws[:, :1], 0.5 * draws[:, 1:2], 1 + draws[:, 2:]
    values = images.float() / 255
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    changed = ((values - mean) * contrast + mean) * gains + shift
    return changed.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
