"""The one preprocessing function: camera frames, in whatever dress they come, to the ViT's input.

Datasets hand over uint8, or uint8 scaled to float in [0, 1]; simulators float in [0, 1]; all at their own
resolution. Everything goes back to uint8 first, so that one frame gives the same tokens in every dress, bit
for bit. Then squash to a square (no crop), scale to [0, 1], and normalise as the encoder was trained: Theia with mean and
std 0.5.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lerobot_theia.encoder.names import DINOV2, IMAGE_SIZE, THEIA
from lerobot_theia.encoder.resize import resize
from lerobot_theia.encoder.spec import EncoderSpec


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of pixels in [0, 1]: one for all channels, or one for each."""

    mean: float | tuple[float, float, float]
    std: float | tuple[float, float, float]

    def apply_(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in place. Numbers go to a GPU with the kernels: nothing waits for a copy."""
        if isinstance(self.mean, float) and isinstance(self.std, float):
            return pixels.sub_(self.mean).div_(self.std)
        assert isinstance(self.mean, tuple) and isinstance(self.std, tuple)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            pixels[:, channel].sub_(mean).div_(std)
        return pixels


NORMALIZATIONS = {
    THEIA: Normalization(0.5, 0.5),
    DINOV2: Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's
}

# Part of a cache's identity: raise the version whenever the same frame would give other pixels.
PREPROCESSING: dict[str, Any] = {
    "version": 1,
    "size": IMAGE_SIZE,
    "resize": "bilinear, antialiased, squashed",
    "mean": NORMALIZATIONS[THEIA].mean,
    "std": NORMALIZATIONS[THEIA].std,
}


def preprocessing_of(spec: EncoderSpec) -> dict[str, Any]:
    """`PREPROCESSING` of an encoder of any architecture, as JSON values."""
    normalization = NORMALIZATIONS[spec.architecture]
    own = {"size": spec.image_size, "mean": normalization.mean, "std": normalization.std}
    return PREPROCESSING | {
        name: list(value) if isinstance(value, tuple) else value for name, value in own.items()
    }


# bfloat16 is missing on purpose: with 8 bits of mantissa it cannot tell 256 grey levels apart.
_FLOAT_DTYPES = (torch.float16, torch.float32, torch.float64)
_TOLERANCE = 1e-4  # of a float image's range [0, 1]: a fortieth of a grey level
_CACHED = 1 << 20  # values

_ACCEPTED = (
    "accepted are uint8 of shape (B, H, W, 3) or (B, 3, H, W), and float16, float32 or float64 in [0, 1] of "
    "shape (B, 3, H, W)"
)


def to_uint8(images: Tensor) -> Tensor:
    """Frames as uint8 (B, 3, H, W), on their own device; a view where they are uint8 already.

    uint8 of shape (B, 3, H, 3) fits both layouts and is read as channel first, LeRobot's own layout. Raises ValueError
    for anything else, and for floats beyond [0, 1] or NaN. Since the weights are checked for NaN where they are
    loaded, tokens of frames that pass are finite. Looking at floats on a GPU waits for the GPU, once per call.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a torch tensor, got {type(images).__name__}; {_ACCEPTED}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images of shape {tuple(images.shape)} and {images.dtype}; {_ACCEPTED}")
    channel_first = images.shape[1] == 3
    if images.dtype == torch.uint8 and (channel_first or images.shape[3] == 3):
        return images if channel_first else images.permute(0, 3, 1, 2)
    if images.dtype in _FLOAT_DTYPES and channel_first:
        return _grey_levels(images)
    raise ValueError(f"images of shape {tuple(images.shape)} and {images.dtype}; {_ACCEPTED}")


def _grey_levels(images: Tensor) -> Tensor:
    """round(255 x) of float images in [0, 1]."""
    if images.shape[0] == 0:
        return images.to(torch.uint8)
    low, high = torch.stack(torch.aminmax(images)).tolist()  # one pass, one transfer; NaN comes through both
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise ValueError(
            f"float images must lie in [0, 1], found values from {low:g} to {high:g}: pass 0-255 images as "
            "uint8, and images without mean and std normalisation (the encoder applies its own)"
        )
    # On a CPU, products that stay in its cache are made three times faster than all at once.
    at_once = images.shape[0] if images.device.type != "cpu" else max(1, _CACHED // images[0].numel())
    computed_in = torch.promote_types(images.dtype, torch.float32)
    grey_levels = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    for values, target in zip(images.detach().split(at_once), grey_levels.split(at_once), strict=True):
        # Products within the tolerance beyond the range are rounded back into it.
        target.copy_(values.to(computed_in).mul(255).round_())
    return grey_levels


def preprocess(
    images: Tensor,
    size: int = IMAGE_SIZE,
    dtype: torch.dtype = torch.float32,
    normalization: Normalization = NORMALIZATIONS[THEIA],
) -> Tensor:
    """Frames, see `to_uint8`, to the ViT's input (B, 3, size, size), on the frames' own device.

    The result is contiguous whatever the layout of the input, so that the same arithmetic follows.
    """
    pixels = resize(to_uint8(images), size)
    pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return normalization.apply_(pixels.div_(255)).to(dtype)
