"""The shapes of PushT: a disc, and a T of two rectangles, in arena units (the arena is 512 wide)."""

import numpy as np
import torch
from torch import Tensor

ARENA = 512.0
AGENT_RADIUS = 15.0

# The T in its own frame, as gym-pusht makes it: (centre x, centre y, half width, half height) of bar and stem.
RECTANGLES = ((0.0, 15.0, 60.0, 15.0), (0.0, 75.0, 15.0, 45.0))


def corners(pose: np.ndarray) -> np.ndarray:
    """(8, 2) corners of a T at pose (x, y, angle)."""
    local = np.array(
        [
            (x + i * width, y + j * height)
            for x, y, width, height in RECTANGLES
            for i in (-1, 1)
            for j in (-1, 1)
        ]
    )
    sin, cos = np.sin(pose[2]), np.cos(pose[2])
    return local @ np.array([[cos, sin], [-sin, cos]]) + pose[:2]


def tee_distance(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(N,) signed distances, negative inside, of points (N, 2) to a T at pose (x, y, angle)."""
    distance = signed_distance(
        to_tee(torch.from_numpy(points)[None], torch.from_numpy(np.asarray(pose, dtype=points.dtype))[None])
    )
    return distance[0].numpy()


def to_tee(points: Tensor, poses: Tensor) -> Tensor:
    """Points ((B or 1), N, 2) in the frames of T's at poses (B, 3): (B, N, 2)."""
    offset = points - poses[:, None, :2]
    cos, sin = poses[:, None, 2].cos(), poses[:, None, 2].sin()
    x, y = offset.unbind(-1)
    return torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1)


def signed_distance(local: Tensor) -> Tensor:
    """Signed distance (...,) to the T of points (..., 2) in its own frame, negative inside.

    Exact outside; inside, it is that to the border of the deeper rectangle.
    """
    distances = []
    # Coordinate by coordinate: reductions over an axis of two are slow, and this runs in every training step.
    along, across = local.unbind(-1)
    for x, y, width, height in RECTANGLES:
        right, down = (along - x).abs_().sub_(width), (across - y).abs_().sub_(height)
        inside = torch.maximum(right, down).clamp_max_(0)
        distances.append(torch.hypot(right.clamp_min_(0), down.clamp_min_(0)).add_(inside))
    return torch.minimum(*distances)


def disc_distance(points: Tensor, centres: Tensor, radius: float) -> Tensor:
    """(B, N) signed distances of points ((B or 1), N, 2) to discs at centres (B, 2)."""
    along, across = (points - centres[:, None]).unbind(-1)
    return torch.hypot(along, across) - radius
