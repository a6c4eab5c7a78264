"""The pictures of augmented views; what is done to them is drawn in `augment.py`."""

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from lerobot_theia.cache.augment import Augment, View, draw

LEAST_BLUR = 0.1
"""Pixels. A smaller sigma changes nothing that uint8 can hold."""


def apply(view: View, frames: Tensor) -> Tensor:
    """Pictures (b, 3, S, S) uint8 of one episode as the view has them, likewise."""
    frames = moved(frames, view)
    frames = functional.adjust_brightness(frames, view.brightness)
    frames = functional.adjust_contrast(frames, view.contrast)
    frames = functional.adjust_saturation(frames, view.saturation)
    if view.hue:
        frames = functional.adjust_hue(frames, view.hue)
    if view.blur >= LEAST_BLUR:
        radius = math.ceil(3 * view.blur)
        frames = functional.gaussian_blur(frames, [2 * radius + 1] * 2, [view.blur] * 2)
    return frames


def moved(frames: Tensor, view: View) -> Tensor:
    """Cut a square out of the pictures, repeated at the edges, and scale it back to their size."""
    side = frames.shape[-1]
    cut = round(side / view.scale)
    left, top = (round((side - cut) / 2 - side * shift) for shift in (view.dx, view.dy))
    edge = max(0, -left, -top, left + cut - side, top + cut - side)
    if edge == 0 and cut == side:
        return frames
    padded = functional.pad(frames, [edge] * 4, padding_mode="edge")
    return functional.resized_crop(padded, top + edge, left + edge, cut, cut, [side, side], antialias=True)


def all_views(
    frames: Tensor, episodes: list[tuple[int, int]], augment: Augment, views: int, camera: str
) -> Tensor:
    """The views of each frame, one frame after the other.

    Args:
        frames: (b, 3, S, S) uint8, resized for the encoder.
        episodes: (episode, number of frames), in the order of the frames.

    Returns: (b * views, 3, S, S) uint8.
    """
    parts = []
    for (episode, count), part in zip(episodes, frames.split([count for _, count in episodes]), strict=True):
        drawn = [apply(draw(augment, camera, episode, view), part) for view in range(1, views)]
        parts.append(torch.stack([part, *drawn], dim=1).flatten(0, 1))
        assert len(parts[-1]) == count * views
    return torch.cat(parts)
