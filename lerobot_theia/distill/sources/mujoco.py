"""MuJoCo scenes: a picture, and beside it depth, segmentation and surface normals of the same view."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lerobot_theia.demos.metaworld import RENDERING_HELP
from lerobot_theia.demos.randomize import Vector, moved
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.frames import Frame
from lerobot_theia.distill.sources.interface import Column

if TYPE_CHECKING:
    import mujoco

TRUTH_SIZE = 64
"""Pixels along a side of the kept maps."""
OVERSAMPLED = 2
"""Maps are rendered at least so many times larger and averaged: soft borders."""
NEAREST_M, FARTHEST_M = 0.1, 20.0
"""Depth is cut off here."""

STATIC, ROBOT, GRIPPER, OBJECT, MARKER = range(5)
CATEGORIES = ("static", "robot", "gripper", "object", "marker")

DEPTH, SEGMENTATION, NORMALS = "mujoco.inverse_depth", "mujoco.segmentation", "mujoco.normals"
COLUMNS: Mapping[str, Column] = {
    DEPTH: Column((TRUTH_SIZE, TRUTH_SIZE), "float16"),
    SEGMENTATION: Column((len(CATEGORIES), TRUTH_SIZE, TRUTH_SIZE), "uint8"),
    NORMALS: Column((3, TRUTH_SIZE, TRUTH_SIZE), "int8"),
}
"""One over the depth along the optical axis, in 1/m, whose mean over a border is not all background; how much of a pixel each category covers, times 255; normals as the camera
sees them (x right, y down, z away from it), times 127, 0 where there is nothing."""


@dataclass(frozen=True)
class View:
    """Where a picture is taken from.

    Args:
        camera: name of a camera of the model, or None for a free one.
        move: offset of a named camera in metres, in its own frame (right, up, back).
        turn: rotation of a named camera in radians, about the same axes.
        turned_over: turn the picture by 180 degrees, as LeRobot does with Meta-World's `corner2`.
        lookat, distance, azimuth, elevation: of a free camera; metres and degrees.
    """

    camera: str | None
    move: Vector = (0.0, 0.0, 0.0)
    turn: Vector = (0.0, 0.0, 0.0)
    turned_over: bool = False
    lookat: Vector = (0.0, 0.0, 0.0)
    distance: float = 1.0
    azimuth: float = 0.0
    elevation: float = -30.0


def import_mujoco() -> Any:
    """MuJoCo. Raises DistillError where it is missing or cannot render."""
    try:
        import mujoco
    except ImportError as error:
        raise DistillError(
            f"{error}. Install a MuJoCo simulator with: pip install 'lerobot_policy_theia[metaworld]' (or [aloha])"
        ) from error
    except (RuntimeError, AttributeError, OSError) as error:
        raise cannot_render(error) from error
    return mujoco


def cannot_render(error: Exception) -> DistillError:
    return DistillError(f"MuJoCo cannot render here ({type(error).__name__}: {error}). {RENDERING_HELP}")


def check_screen() -> None:
    """But for EGL and OSMesa, MuJoCo on Linux draws on a screen. Where there is none, its second attempt ends the process."""
    backend = os.environ.get("MUJOCO_GL", "")
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and backend.lower() not in ("egl", "osmesa") and not screen:
        raise cannot_render(RuntimeError(f"MUJOCO_GL is {backend!r}, and there is no screen"))


class Photographer:
    """Takes pictures of one model.

    Args:
        size: (height, width) of the pictures.
        placed: bodies that a task puts elsewhere at each reset; they count as objects.
    """

    def __init__(self, model: mujoco.MjModel, size: tuple[int, int], placed: Iterable[int] = ()) -> None:
        self._mujoco = import_mujoco()
        check_screen()
        self._model = model
        self._categories = geom_categories(self._mujoco, model, set(placed))
        height, width = truth_shape(*size)
        try:
            self._pictures = self._mujoco.Renderer(model, *size)
            self._truth = self._mujoco.Renderer(model, height, width)
        except (self._mujoco.FatalError, RuntimeError, AttributeError, ImportError, OSError) as error:
            raise cannot_render(error) from error

    def close(self) -> None:
        self._pictures.close()
        self._truth.close()

    def picture(self, data: mujoco.MjData, view: View) -> np.ndarray:
        """(H, W, 3) uint8"""
        self._aim(self._pictures, data, view)
        image = self._pictures.render()
        return np.ascontiguousarray(image[::-1, ::-1] if view.turned_over else image)

    def take(self, data: mujoco.MjData, view: View) -> Frame:
        """A picture, and what is true of it."""
        image = self.picture(data, view)
        self._truth.enable_depth_rendering()
        self._aim(self._truth, data, view)
        depth = self._truth.render().astype(np.float32)
        self._truth.disable_depth_rendering()
        self._truth.enable_segmentation_rendering()
        self._aim(self._truth, data, view)
        objects = self._truth.render()  # (H, W, 2): id and kind of what is seen
        self._truth.disable_segmentation_rendering()
        normals = surface_normals(depth, self._focal(view))
        seen = objects[..., 0] >= 0
        normals *= seen[None]
        segmentation = self._segment(objects)
        if view.turned_over:
            depth, segmentation = depth[::-1, ::-1], segmentation[:, ::-1, ::-1]
            normals = normals[:, ::-1, ::-1] * np.array([-1, -1, 1], dtype=np.float32)[:, None, None]
        truth = {
            DEPTH: averaged(1 / depth.clip(NEAREST_M, FARTHEST_M)),
            SEGMENTATION: averaged(segmentation) * 255,
            NORMALS: averaged(normals) * 127,
        }
        rounded = {name: values if name == DEPTH else values.round() for name, values in truth.items()}
        return Frame(image, {name: values.astype(COLUMNS[name].dtype) for name, values in rounded.items()})

    def _aim(self, renderer: Any, data: mujoco.MjData, view: View) -> None:
        if view.camera is not None:
            renderer.update_scene(data, camera=view.camera)
            for camera in renderer.scene.camera:  # one for each eye
                move_camera(camera, view)
            return
        free = self._mujoco.MjvCamera()
        free.lookat[:] = view.lookat
        free.distance, free.azimuth, free.elevation = view.distance, view.azimuth, view.elevation
        renderer.update_scene(data, camera=free)

    def _focal(self, view: View) -> float:
        """Focal length over the height of the picture."""
        fovy = self._model.vis.global_.fovy
        if view.camera is not None:
            fovy = self._model.cam_fovy[self._model.camera(view.camera).id]
        return float(0.5 / np.tan(np.radians(fovy) / 2))

    def _segment(self, objects: np.ndarray) -> np.ndarray:
        """(5, H, W) float32 of zeros and ones."""
        ids, kinds = objects[..., 0], objects[..., 1]
        is_geom = kinds == int(self._mujoco.mjtObj.mjOBJ_GEOM)
        category = np.where(is_geom, self._categories[np.where(is_geom, ids, 0)], MARKER)
        category = np.where(ids < 0, -1, category)
        return (category[None] == np.arange(len(CATEGORIES))[:, None, None]).astype(np.float32)


def move_camera(camera: Any, view: View) -> None:
    """Move and turn a scene's camera in its own frame."""
    back = -np.array(camera.forward)
    up = np.array(camera.up)
    right = np.cross(up, back)
    axes = np.stack([right, up, back], axis=1)
    camera.pos[:], turned = moved(np.array(camera.pos), axes, view.move, view.turn)
    camera.up[:], camera.forward[:] = turned[:, 1], -turned[:, 2]


def truth_shape(height: int, width: int) -> tuple[int, int]:
    """The smallest (height, width) of the same form whose sides are multiples, OVERSAMPLED at least, of TRUTH_SIZE."""
    form = Fraction(height, width)
    times = -(-OVERSAMPLED // min(form.numerator, form.denominator))
    return TRUTH_SIZE * times * form.numerator, TRUTH_SIZE * times * form.denominator


def surface_normals(depth: np.ndarray, focal: float) -> np.ndarray:
    """(3, H, W) unit normals towards the camera, from depth (H, W) in metres.

    Args:
        focal: focal length over the height of the picture.
    """
    height, width = depth.shape
    x = ((np.arange(width) + 0.5) / height - 0.5 * width / height) / focal
    y = ((np.arange(height) + 0.5) / height - 0.5) / focal
    points = np.stack([depth * x[None, :], depth * y[:, None], depth])
    normals = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=2), axis=0)
    normals *= -np.sign((normals * points).sum(0, keepdims=True))
    length = np.linalg.norm(normals, axis=0, keepdims=True)
    return (normals / np.maximum(length, 1e-12)).astype(np.float32)


def averaged(maps: np.ndarray) -> np.ndarray:
    """(..., H, W) to (..., TRUTH_SIZE, TRUTH_SIZE)."""
    *rest, height, width = maps.shape
    blocks = maps.reshape(*rest, TRUTH_SIZE, height // TRUTH_SIZE, TRUTH_SIZE, width // TRUTH_SIZE)
    return blocks.mean(axis=(-3, -1))


def geom_categories(mujoco: Any, model: mujoco.MjModel, placed: set[int]) -> np.ndarray:
    """A category for each geom, by what its body is.

    A robot is a tree of bodies with an actuator in it; its gripper is what an actuator slides, and what hangs on that.
    An object is any other tree that can move, or that a task puts elsewhere at each reset. The rest is static.
    """
    driven = {
        int(model.jnt_bodyid[model.actuator_trnid[i, 0]])
        for i in range(model.nu)
        if model.actuator_trntype[i] == mujoco.mjtTrn.mjTRN_JOINT
    }
    sliding = {body for body in driven if _has_slide(mujoco, model, body)}
    robots = {int(model.body_rootid[body]) for body in driven}
    movable = {int(model.body_rootid[model.jnt_bodyid[joint]]) for joint in range(model.njnt)}
    movable |= {int(model.body_rootid[body]) for body in placed}
    categories = np.full(max(1, model.ngeom), STATIC)
    for geom in range(model.ngeom):
        body = int(model.geom_bodyid[geom])
        root = int(model.body_rootid[body])
        if root in robots:
            categories[geom] = GRIPPER if sliding & set(_ancestors(model, body)) else ROBOT
        elif root in movable and root != 0:
            categories[geom] = OBJECT
    return categories


def _has_slide(mujoco: Any, model: mujoco.MjModel, body: int) -> bool:
    first = model.body_jntadr[body]
    joints = range(first, first + model.body_jntnum[body])
    return any(model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE for joint in joints)


def _ancestors(model: mujoco.MjModel, body: int) -> list[int]:
    found = [body]
    while found[-1] != 0:
        found.append(int(model.body_parentid[found[-1]]))
    return found
