"""Domain randomisation: a MuJoCo scene that looks different in each episode and behaves as always.

What is drawn depends on the episode's seed and on nothing else; each kind has a generator of its own, so that asking for
one more does not change the others. Nothing that moves is touched: an expert that acts on the state acts as ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lerobot_theia.demos.recording import RecordingError

if TYPE_CHECKING:
    import mujoco

KINDS = ("light", "camera", "texture")
"""light: strength, tint, place and direction of each lamp, and of the headlight; camera: its pose; texture: colours, and
which texture covers what."""

VERSION = 1
"""Of what is drawn for a seed. Whatever changes that raises it: benchmarks tell their results apart by it."""

CAMERA_MOVE_M = 0.05
"""Standard deviation of a camera's move along each of its axes."""
CAMERA_TURN_RAD = 0.05
"""Standard deviation of its turn about each of them."""
LAMP_MOVE_M = 0.3
LAMP_TURN_RAD = 0.3
NEW_COLOUR = 0.5
"""Share of the random colour in a new one; the rest is the old."""

FIELDS = (
    "light_pos", "light_dir", "light_diffuse", "light_specular", "cam_pos", "cam_quat", "geom_rgba", "geom_matid",
    "mat_rgba", "mat_reflectance",
)  # fmt: skip
HEADLIGHT = ("ambient", "diffuse")

Vector = tuple[float, float, float]
Drawn = dict[str, dict[str, Any]]
"""Kind -> what was drawn, in numbers and lists, for JSON."""


def choose_kinds(wanted: Iterable[str]) -> tuple[str, ...]:
    """`wanted` in the order of KINDS. Raises RecordingError for what is none."""
    wanted = set(wanted)
    if unknown := sorted(wanted - set(KINDS)):
        raise RecordingError(f"randomize={','.join(unknown)} is not known; choose from {','.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in wanted)


class Scene:
    """The looks of a model, which can be changed, and are changed back first.

    Args:
        model: as it looks now is what it goes back to.
        camera: name of the camera that takes the pictures.
    """

    def __init__(self, model: mujoco.MjModel, camera: str) -> None:
        self._model = model
        self._camera = model.camera(camera).id
        self._original = {name: getattr(model, name).copy() for name in FIELDS}
        self._headlight = {name: getattr(model.vis.headlight, name).copy() for name in HEADLIGHT}

    def change(self, kinds: Iterable[str], seed: int) -> Drawn:
        """Look as at first, but for `kinds`. Takes effect with the simulator's next step, so do it before a reset."""
        for name, values in self._original.items():
            getattr(self._model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = values
        changes = {"light": self._light, "camera": self._move, "texture": self._cover}
        return {kind: changes[kind](generator(seed, kind)) for kind in kinds}

    def _light(self, rng: np.random.Generator) -> dict[str, Any]:
        model, lamps = self._model, self._model.nlight
        headlight = rng.uniform(0.4, 1.2)
        strength = rng.uniform(0.3, 1.7, (lamps, 1))
        tint = rng.uniform(0.8, 1.2, (lamps, 3))
        move = rng.normal(size=(lamps, 3)) * LAMP_MOVE_M
        turn = rng.normal(size=(lamps, 3)) * LAMP_TURN_RAD
        for name in HEADLIGHT:
            getattr(model.vis.headlight, name)[:] *= headlight
        model.light_diffuse[:] *= strength * tint
        model.light_specular[:] *= strength
        model.light_pos[:] += move
        for lamp in range(lamps):
            model.light_dir[lamp] = rotation(turn[lamp]) @ model.light_dir[lamp]
        return {
            "headlight": float(headlight),
            "strength": strength[:, 0].tolist(),
            "tint": tint.tolist(),
            "move_m": move.tolist(),
            "turn_rad": turn.tolist(),
        }

    def _move(self, rng: np.random.Generator) -> dict[str, Any]:
        import mujoco

        model, camera = self._model, self._camera
        move, turn = jitter(rng, CAMERA_MOVE_M, CAMERA_TURN_RAD)
        axes = np.zeros(9)
        mujoco.mju_quat2Mat(axes, model.cam_quat[camera])
        position, turned = moved(model.cam_pos[camera], axes.reshape(3, 3), move, turn)
        model.cam_pos[camera] = position
        mujoco.mju_mat2Quat(model.cam_quat[camera], turned.flatten())
        return {"move_m": list(move), "turn_rad": list(turn)}

    def _cover(self, rng: np.random.Generator) -> dict[str, Any]:
        """Textured materials change places and are tinted; other materials, and parts without any, are recoloured.

        What had one colour has one colour again.
        """
        model = self._model
        has_texture = (model.mat_texid.reshape(model.nmat, -1) >= 0).any(1)
        textured, plain = np.flatnonzero(has_texture), np.flatnonzero(~has_texture)
        places = rng.permutation(textured)
        new_material = np.arange(model.nmat)
        new_material[textured] = places
        tint = rng.uniform(0.5, 1, (len(textured), 3))
        materials = rng.uniform(0, 1, (len(plain), 3))
        bare = np.flatnonzero(model.geom_matid < 0)
        old, which = np.unique(model.geom_rgba[bare, :3], axis=0, return_inverse=True)
        parts = rng.uniform(0, 1, old.shape)

        covered = model.geom_matid >= 0
        model.geom_matid[covered] = new_material[model.geom_matid[covered]]
        # A place stays as shiny as it was: a table like a mirror would show a second robot.
        model.mat_reflectance[places] = model.mat_reflectance[textured]
        model.mat_rgba[textured, :3] *= tint
        model.mat_rgba[plain, :3] = mixed(model.mat_rgba[plain, :3], materials)
        model.geom_rgba[bare, :3] = mixed(old, parts)[which.reshape(-1)]
        return {
            "textured_materials": places.tolist(),
            "tint": tint.tolist(),
            "material_colours": materials.tolist(),
            "part_colours": parts.tolist(),
        }


def generator(seed: int, kind: str) -> np.random.Generator:
    """Of a kind and an episode's seed. Not `default_rng([seed, 0])`: zeros at the end do not count, and `default_rng(seed)`
    is what a simulator places its objects with, so the light would say where they are."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(KINDS.index(kind),)))


def mixed(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return (1 - NEW_COLOUR) * old + NEW_COLOUR * new


def jitter(rng: np.random.Generator, move_m: float, turn_rad: float) -> tuple[Vector, Vector]:
    """A camera's small move, and turn as a rotation vector, both in its own frame (right, up, back)."""
    move, turn = rng.normal(size=3) * move_m, rng.normal(size=3) * turn_rad
    return _vector(move), _vector(turn)


def _vector(values: np.ndarray) -> Vector:
    x, y, z = values.tolist()
    return x, y, z


def moved(
    position: np.ndarray, axes: np.ndarray, move: Vector, turn: Vector
) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and axes (3, 3), columns right, up, back, of a camera after a move and a turn in its own frame."""
    return position + axes @ np.array(move), axes @ rotation(turn)


def rotation(turn: Vector | np.ndarray) -> np.ndarray:
    """(3, 3) for a rotation vector in radians."""
    angle = float(np.linalg.norm(turn))
    if angle == 0:
        return np.eye(3)
    x, y, z = np.array(turn) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
