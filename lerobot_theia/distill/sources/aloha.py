"""ALOHA in simulation: two arms over a table, with MuJoCo's truth of each view.

The scenes are gym-aloha's; starts are not. An evaluation's come from `sample_box_pose(seed)`; here objects and arms are
drawn from generators of this source's own, over a wider range.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lerobot_theia.demos.randomize import jitter
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.frames import Frame
from lerobot_theia.distill.sources.mujoco import Photographer, View, import_mujoco
from lerobot_theia.distill.sources.scenes import Episode, ScenesSource

SCENES = {"transfer-cube": "bimanual_viperx_transfer_cube.xml", "insertion": "bimanual_viperx_insertion.xml"}
IMAGE_SHAPE = (480, 640)
CAMERA = "top"
"""The camera that LeRobot's ALOHA hands to a policy."""
ARM_JOINTS = 8
"""Six of the arm and two fingers, left arm first in `qpos` and `ctrl`; objects follow with seven numbers each."""
BASES = ((-0.469, 0.5), (0.469, 0.5))
"""Where the arms stand, x and y in metres; the right one looks back along x."""
TIMESTEPS = 150
"""Steps of the simulation, 2 ms each, towards one target."""


@dataclass(frozen=True, kw_only=True)
class AlohaSource(ScenesSource):
    """Random moments of ALOHA's two scenes: arms on their way between random poses, mostly towards an object.

    Half of the pictures are what a policy sees, three in ten from near there, the others from other cameras.

    Args:
        scenes: `transfer-cube`, `insertion`.
    """

    name: str = "aloha"
    license: str = "Apache-2.0 (rendered by this project with gym-aloha, Apache-2.0)"
    scenes: tuple[str, ...] = tuple(SCENES)
    episodes: int = 60

    shape: ClassVar[tuple[int, int]] = IMAGE_SHAPE

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [scene for scene in self.scenes if scene not in SCENES]:
            raise DistillError(f"source {self.name!r}: no scene {unknown}; choose from {', '.join(SCENES)}")

    @property
    def scene_names(self) -> Sequence[str]:
        return self.scenes

    @property
    def origin(self) -> Mapping[str, Any]:
        return {
            "kind": "ALOHA in simulation, random states and cameras",
            "scenes": list(self.scenes),
            "seeds": [self.seed, self.seed + self.episodes - 1],
            "environment_seeds": "none: no state comes from env.reset(seed=...)",
            "packages": ["gym-aloha", "mujoco"],
        }

    def identity(self) -> Mapping[str, Any]:
        return {"type": "aloha", "version": 1}

    @staticmethod
    def play(episode: Episode) -> list[Frame]:
        """Take the pictures that are wanted."""
        opened = scene(episode.scene)
        rng = np.random.default_rng([episode.seed, *episode.scene.encode()])
        frames = []
        for k, data in enumerate(moments(opened, rng, max(episode.wanted) + 1)):
            view = random_view(rng)  # wanted or not: the next draws must not depend on it
            if k in episode.wanted:
                frames.append(opened.photographer.take(data, view))
        return frames

    @staticmethod
    def close() -> None:
        close_scene()


@dataclass(frozen=True)
class Scene:
    """MuJoCo with one of the scenes, its arms' joints at rest (16,), and someone to take pictures of it."""

    mujoco: Any
    model: Any
    data: Any
    rest: np.ndarray
    photographer: Photographer


def moments(scene: Scene, rng: np.random.Generator, count: int) -> Iterator[Any]:
    """Place objects and arms, and move from target to target; yields MuJoCo's data at `count` moments."""
    model, data, rest = scene.model, scene.data, scene.rest
    scene.mujoco.mj_resetData(model, data)
    data.qpos[: 2 * ARM_JOINTS] = rest
    objects = []
    for first in range(2 * ARM_JOINTS, model.nq, 7):
        place = np.array([rng.uniform(-0.25, 0.25), rng.uniform(0.35, 0.65)])
        yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.5 else rng.normal() * 0.2
        data.qpos[first : first + 7] = [*place, 0.05, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        objects.append(place)
    data.ctrl[:] = rest
    for _ in range(count):
        target = rest + 0.0
        for arm in range(2):
            thing = objects[rng.integers(len(objects))]
            target[arm * ARM_JOINTS : (arm + 1) * ARM_JOINTS] = _target(rng, arm, thing)
        steps = rng.integers(1, TIMESTEPS + 1)
        for step in range(steps):
            data.ctrl[:] += (target - data.ctrl) / (steps - step)
            scene.mujoco.mj_step(model, data)
        yield data


def _target(rng: np.random.Generator, arm: int, thing: np.ndarray) -> np.ndarray:
    """(8,) joints of an arm that turns towards `thing`, more or less, and reaches some way out and down."""
    x, y = thing - np.array(BASES[arm])
    towards = np.arctan2(y, x) if arm == 0 else np.arctan2(-y, -x)
    reach = rng.uniform(0, 1)
    joints = np.array(
        [
            towards + rng.normal() * 0.15,
            -0.96 + 1.2 * reach + rng.normal() * 0.15,
            1.16 - 0.5 * reach + rng.normal() * 0.15,
            rng.normal() * 0.2,
            -0.3 + 0.6 * reach + rng.normal() * 0.2,
            rng.normal() * 0.3,
        ]
    )
    finger = rng.uniform(0.021, 0.057)
    return np.concatenate([joints, [finger, -finger]])


def random_view(rng: np.random.Generator) -> View:
    kind = rng.random()
    move, turn = jitter(rng, 0.03, 0.04)
    other = ("angle", "left_pillar", "right_pillar", "front_close")[rng.integers(4)]
    if kind < 0.5:
        return View(CAMERA)
    return View(CAMERA if kind < 0.8 else other, move, turn)


_open: dict[str, Scene] = {}


def scene(name: str) -> Scene:
    """One at a time."""
    if name not in _open:
        # Closed before the next is made: a rendering context that goes later would take the next one's textures.
        close_scene()
        mujoco = import_mujoco()
        try:
            from gym_aloha.constants import ASSETS_DIR, START_ARM_POSE
        except ImportError as error:
            raise DistillError(
                f"{error}. Install ALOHA with: pip install 'lerobot_policy_theia[aloha]'"
            ) from error
        model = mujoco.MjModel.from_xml_path(str(ASSETS_DIR / SCENES[name]))
        rest = np.array(START_ARM_POSE, dtype=np.float64)
        _open[name] = Scene(mujoco, model, mujoco.MjData(model), rest, Photographer(model, IMAGE_SHAPE))
    return _open[name]


def close_scene() -> None:
    for opened in _open.values():
        opened.photographer.close()
    _open.clear()
