"""MuJoCo as a teacher: depth, segmentation and surface normals, recorded with each picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.frames import Frames
from lerobot_theia.distill.sources.mujoco import CATEGORIES, DEPTH, NORMALS, SEGMENTATION, TRUTH_SIZE
from lerobot_theia.distill.teachers.interface import fold, unfold
from lerobot_theia.encoder.translator import FeatureSize

MAPS = {"depth": 1, "segmentation": len(CATEGORIES), "normals": 3}


@dataclass(frozen=True, kw_only=True)
class MujocoTeacher:
    """Maps of a MuJoCo scene.

    Args:
        maps: `depth`: one over metres, so that what is near counts; `segmentation`: how much of a pixel is static
            scene, robot, gripper, object, marker; `normals`: of surfaces, as the camera sees them.
        resolution: pixels along a side of the maps.
        grid: positions along a side of the features; the pixels of a position become channels.
    """

    name: str = "simulator/mujoco"
    maps: tuple[str, ...] = ("depth", "segmentation", "normals")
    resolution: int = TRUTH_SIZE
    grid: int = 16

    license = "Apache-2.0 (computed by this project)"
    needs = frozenset({DEPTH, SEGMENTATION, NORMALS})

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", tuple(self.maps))
        if not self.maps or (unknown := [name for name in self.maps if name not in MAPS]):
            raise DistillError(
                f"teacher {self.name!r}: maps {unknown if self.maps else []}; choose from {', '.join(MAPS)}"
            )
        if (
            self.grid not in (16, 64)
            or self.resolution < 1
            or self.resolution % self.grid
            or TRUTH_SIZE % self.resolution
        ):
            raise DistillError(
                f"teacher {self.name!r}: resolution {self.resolution} must divide {TRUTH_SIZE} and be a multiple of "
                f"grid {self.grid}, and grid 16 or 64"
            )

    @property
    def feature_size(self) -> FeatureSize:
        channels = sum(MAPS[name] for name in self.maps)
        return channels * (self.resolution // self.grid) ** 2, self.grid, self.grid

    @property
    def origin(self) -> Mapping[str, Any]:
        return dict(self.identity())

    def identity(self) -> Mapping[str, Any]:
        return {
            "type": "mujoco",
            "version": 1,
            "maps": list(self.maps),
            "resolution": self.resolution,
            "grid": self.grid,
        }

    def to(self, device: torch.device) -> None:
        """Nothing to move: the maps come with the images."""

    def release(self) -> None:
        """Nothing to free."""

    def __call__(self, frames: Frames) -> Tensor:
        truth = frames.truth
        drawn = {
            "depth": lambda: truth[DEPTH].float()[:, None],
            "segmentation": lambda: truth[SEGMENTATION].float() / 255,
            "normals": lambda: truth[NORMALS].float() / 127,
        }
        maps = torch.cat([drawn[name]() for name in self.maps], dim=1)
        if self.resolution != TRUTH_SIZE:
            maps = torch.nn.functional.avg_pool2d(maps, TRUTH_SIZE // self.resolution)
        return fold(maps, self.grid)

    def picture(self, features: Tensor) -> Tensor | None:
        """Robot and gripper red, objects green, markers blue, over grey by depth; without segmentation, the first map."""
        maps = dict(
            zip(
                self.maps,
                unfold(features, self.resolution).split([MAPS[name] for name in self.maps], dim=1),
                strict=True,
            )
        )
        if "segmentation" in maps:
            _, robot, gripper, thing, marker = maps["segmentation"].clamp(0, 1).unbind(1)
            colours = torch.stack([robot * 0.6 + gripper, thing, marker], dim=1)
            if "depth" in maps:
                colours = 0.7 * colours + 0.3 * maps["depth"].clamp(0, 1)
            return colours.clamp(0, 1)
        if "depth" in maps:
            return maps["depth"].clamp(0, 1).expand(-1, 3, -1, -1)
        return (maps["normals"] + 1) / 2
