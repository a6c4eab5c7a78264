"""PushT as a teacher: where block, goal and agent are, pixel by pixel, drawn from the true state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.frames import Frames
from lerobot_theia.distill.pusht_geometry import (
    AGENT_RADIUS,
    ARENA,
    disc_distance,
    signed_distance,
    to_tee,
)
from lerobot_theia.distill.sources.pusht import STATE
from lerobot_theia.distill.teachers.interface import fold, unfold
from lerobot_theia.encoder.translator import FeatureSize

OBJECTS = ("block", "goal", "agent")
MAPS = {"mask": 3, "distance": 3, "orientation": 4, "coordinates": 6}
"""How many maps each kind is."""


@dataclass(frozen=True, kw_only=True)
class PushTTeacher:
    """Maps of PushT's state. An object counts as seen where another covers it: the student should know.

    Args:
        maps: `mask`: how much of a pixel the object covers, one map per object; `distance`: signed distance to
            its border in arena units, negative inside, one map per object; `orientation`: cosine and sine of its angle
            where it covers a pixel, 0 elsewhere, for block and goal; `coordinates`: where a pixel lies in the frames of block,
            goal and agent, (x, y) in arena units: each pixel of a picture tells the whole pose.
        resolution: pixels along a side of the maps.
        grid: positions along a side of the features; the pixels of a position become channels.
        distance_limit: farther than this, distance does not grow.
    """

    name: str = "simulator/pusht"
    maps: tuple[str, ...] = ("mask", "distance")
    resolution: int = 64
    grid: int = 16
    distance_limit: float = 128.0

    license = "Apache-2.0 (computed by this project)"
    needs = frozenset({STATE})

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", tuple(self.maps))
        if not self.maps or (unknown := [name for name in self.maps if name not in MAPS]):
            raise DistillError(
                f"teacher {self.name!r}: maps {unknown if self.maps else []}; choose from {tuple(MAPS)}"
            )
        if self.grid not in (16, 64) or self.resolution < 1 or self.resolution % self.grid:
            raise DistillError(
                f"teacher {self.name!r}: resolution {self.resolution} must be a multiple of grid {self.grid}, and "
                "grid 16 or 64"
            )

    @property
    def num_maps(self) -> int:
        return sum(MAPS[name] for name in self.maps)

    @property
    def feature_size(self) -> FeatureSize:
        return self.num_maps * (self.resolution // self.grid) ** 2, self.grid, self.grid

    @property
    def origin(self) -> Mapping[str, Any]:
        return dict(self.identity())

    def identity(self) -> Mapping[str, Any]:
        return {
            "type": "pusht",
            "version": 1,
            "maps": list(self.maps),
            "resolution": self.resolution,
            "grid": self.grid,
            "distance_limit": self.distance_limit,
        }

    def to(self, device: torch.device) -> None:
        """Nothing to move: the maps are drawn where the state is."""

    def release(self) -> None:
        """Nothing to free."""

    def __call__(self, frames: Frames) -> Tensor:
        return fold(self.draw(frames.truth[STATE]), self.grid)

    def draw(self, state: Tensor) -> Tensor:
        """States (B, 8), see `sources.pusht.STATE`, to maps (B, `num_maps`, resolution, resolution)."""
        state = state.float()
        agent, block, goal = state[:, :2], state[:, 2:5], state[:, 5:8]
        pixel = ARENA / self.resolution
        axis = (torch.arange(self.resolution, device=state.device) + 0.5) * pixel
        points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).view(1, -1, 2)
        in_block, in_goal = to_tee(points, block), to_tee(points, goal)
        distances = [
            signed_distance(in_block),
            signed_distance(in_goal),
            disc_distance(points, agent, AGENT_RADIUS),
        ]
        masks = [(0.5 - distance / pixel).clamp(0, 1) for distance in distances]
        maps: list[Tensor] = []
        for name in self.maps:
            if name == "mask":
                maps += masks
            elif name == "distance":
                maps += [distance.clamp_max(self.distance_limit) for distance in distances]
            elif name == "coordinates":
                for frame in (in_block, in_goal, points - agent[:, None]):
                    maps += frame.unbind(-1)
            else:
                for angle, mask in ((block[:, 2:], masks[0]), (goal[:, 2:], masks[1])):
                    maps += [angle.cos() * mask, angle.sin() * mask]
        return torch.stack(maps, dim=1).unflatten(2, (self.resolution, self.resolution))

    def picture(self, features: Tensor) -> Tensor | None:
        """The first kind of maps as red (block), green (goal), blue (agent)."""
        if self.maps[0] not in ("mask", "distance"):
            return None
        maps = unfold(features, self.resolution)[:, : len(OBJECTS)]
        if self.maps[0] == "distance":
            maps = 0.5 - maps / (2 * self.distance_limit)
        return maps.clamp(0, 1)
