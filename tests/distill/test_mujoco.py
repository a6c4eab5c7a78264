"""MuJoCo as a source and as a teacher: what a picture shows, and what is said of it, are the same view."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco", exc_type=Exception, reason="needs MuJoCo and a way to render")

from lerobot_theia.distill.errors import DistillError  # noqa: E402
from lerobot_theia.distill.frames import Frame, Frames  # noqa: E402
from lerobot_theia.distill.sources.mujoco import (  # noqa: E402
    CATEGORIES,
    DEPTH,
    NORMALS,
    SEGMENTATION,
    Photographer,
    View,
    surface_normals,
    truth_shape,
)
from lerobot_theia.distill.teachers.interface import unfold  # noqa: E402
from lerobot_theia.distill.teachers.mujoco import MujocoTeacher  # noqa: E402

SCENE = """
<mujoco>
  <visual><global offwidth="640" offheight="480"/></visual>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="above" pos="0 0 2" fovy="45"/>
    <geom name="table" type="plane" size="1 1 0.1" rgba="0.5 0.5 0.5 1"/>
    <site name="mark" pos="-0.4 -0.4 0.01" size="0.1" rgba="0 0 1 1"/>
    <body name="cube" pos="0.4 0.2 0.2">
      <freejoint/>
      <geom type="box" size="0.2 0.2 0.2" rgba="0 1 0 1"/>
    </body>
    <body name="arm" pos="-0.4 0.4 0.1">
      <joint name="turn" type="hinge" axis="0 0 1"/>
      <geom type="sphere" size="0.1" rgba="1 0 0 1"/>
      <body name="finger" pos="0.3 0 0">
        <joint name="close" type="slide" axis="1 0 0"/>
        <geom type="sphere" size="0.08" rgba="1 0 0 1"/>
      </body>
    </body>
  </worldbody>
  <actuator><position joint="turn"/><position joint="close"/></actuator>
</mujoco>
"""


@pytest.fixture(scope="module")
def shots() -> Iterator[tuple[Frame, Frame]]:
    """A wide picture from above, and the same turned over."""
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    try:
        photographer = Photographer(model, (48, 64))
    except DistillError as error:
        pytest.skip(str(error))
    yield photographer.take(data, View("above")), photographer.take(data, View("above", turned_over=True))
    photographer.close()


def truth(frame: Frame, name: str) -> np.ndarray:
    return frame.truth[name].astype(np.float32)


def pixel(x: float, y: float, height: float) -> tuple[int, int]:
    """Row and column, in the 64x64 maps, of a point in metres; the camera is 2 m up, the picture 4:3."""
    focal = 0.5 / np.tan(np.radians(45) / 2)
    row = (0.5 - focal * y / (2 - height)) * 64
    column = (0.5 + focal * x / (2 - height) * 48 / 64) * 64
    return int(row), int(column)


def test_depth_is_metric(shots: tuple[Frame, Frame]) -> None:
    depth = 1 / truth(shots[0], DEPTH)
    assert depth[pixel(0, 0, 0)] == pytest.approx(2.0, rel=0.01)
    assert depth[pixel(0.4, 0.2, 0.4)] == pytest.approx(1.6, rel=0.01)


def test_categories(shots: tuple[Frame, Frame]) -> None:
    maps = truth(shots[0], SEGMENTATION) / 255
    for category, place in {
        "static": (0, 0, 0),
        "object": (0.4, 0.2, 0.4),
        "robot": (-0.4, 0.4, 0.2),
        "gripper": (-0.1, 0.4, 0.18),
        "marker": (-0.4, -0.4, 0.1),
    }.items():
        assert maps[CATEGORIES.index(category)][pixel(*place)] == pytest.approx(1, abs=0.01), category
    assert maps.sum(0).max() <= 1.01


def test_normals_look_at_the_camera(shots: tuple[Frame, Frame]) -> None:
    normals = truth(shots[0], NORMALS) / 127
    for place in ((0, 0, 0), (0.4, 0.2, 0.4)):
        assert normals[(slice(None), *pixel(*place))] == pytest.approx([0, 0, -1], abs=0.02)
    right_of_ball, below_ball = pixel(-0.33, 0.4, 0.17), pixel(-0.4, 0.33, 0.17)
    assert normals[0][right_of_ball] > 0.3, "x grows to the right"
    assert normals[1][below_ball] > 0.3, "y grows downwards"


def test_turning_over_turns_everything(shots: tuple[Frame, Frame]) -> None:
    plain, turned = shots
    assert np.array_equal(turned.image, plain.image[::-1, ::-1])
    assert np.array_equal(turned.truth[SEGMENTATION], plain.truth[SEGMENTATION][:, ::-1, ::-1])
    flipped = truth(plain, NORMALS)[:, ::-1, ::-1] * np.array([-1, -1, 1])[:, None, None]
    assert np.abs(truth(turned, NORMALS) - flipped).max() <= 1


def test_the_teacher_stacks_and_folds(shots: tuple[Frame, Frame]) -> None:
    frames = Frames(
        torch.from_numpy(np.stack([s.image for s in shots])).permute(0, 3, 1, 2),
        {name: torch.from_numpy(np.stack([s.truth[name] for s in shots])) for name in shots[0].truth},
    )
    teacher = MujocoTeacher()
    features = teacher(frames)
    assert features.shape == (2, *teacher.feature_size) == (2, 9 * 16, 16, 16)
    maps = unfold(features, 64)
    assert torch.allclose(maps[0, 0], torch.from_numpy(truth(shots[0], DEPTH)))
    assert teacher.picture(features).shape == (2, 3, 64, 64)
    small = MujocoTeacher(maps=("normals",), resolution=16)
    assert small(frames).shape == (2, 3, 16, 16)
    with pytest.raises(DistillError, match=r"maps .'colour'.; choose from depth, segmentation, normals"):
        MujocoTeacher(maps=("colour",))


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="only on Linux does MuJoCo choose what to draw with by MUJOCO_GL",
)
def test_without_a_screen_the_error_names_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    model = mujoco.MjModel.from_xml_string(SCENE)
    for _ in range(2):
        with pytest.raises(DistillError, match=r"cannot render here .*no screen.* MUJOCO_GL=osmesa"):
            Photographer(model, (48, 64))


def test_truth_keeps_the_form_of_the_picture() -> None:
    assert truth_shape(480, 480) == (128, 128)
    assert truth_shape(480, 640) == (192, 256)


def test_normals_of_a_slope() -> None:
    """A plane that recedes to the right by one metre per metre."""
    focal, size = 1.0, 64
    x = ((np.arange(size) + 0.5) / size - 0.5) / focal
    depth = np.tile(2 / (1 - x), (size, 1))
    normal = surface_normals(depth, focal)[:, 32, 32]
    assert normal == pytest.approx(np.array([1, 0, -1]) / np.sqrt(2), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["metaworld", "aloha"])
def test_recorders(kind: str, tmp_path: Path) -> None:
    """Each simulator's own pictures, twice the same, with maps that go with them."""
    pytest.importorskip({"metaworld": "metaworld", "aloha": "gym_aloha"}[kind])
    from lerobot_theia.distill.pack import PackSettings, pack
    from lerobot_theia.distill.settings import make_source

    few = {"metaworld": {"tasks": ["drawer-open", "reach"]}, "aloha": {}}[kind]
    source = make_source(
        kind, {"type": kind, "episodes": 2, "frames_per_episode": 2, "validation": 0.3, **few}
    )
    items = source.items()
    assert len(items) == len({item.id for item in items}) == 8
    try:
        frames = list(source.read(0, 8))
    except DistillError as error:
        if "cannot render" in str(error):
            pytest.skip(str(error))
        raise
    again = next(source.read(3, 4))
    assert isinstance(again, Frame) and isinstance(frames[3], Frame)
    assert np.array_equal(again.image, frames[3].image)
    for name in source.columns:
        assert np.array_equal(again.truth[name], frames[3].truth[name])
    seen = np.stack([frame.truth[SEGMENTATION] for frame in frames if isinstance(frame, Frame)]).mean(
        (0, 2, 3)
    )
    assert (seen[:4] > 0).all(), "static scene, robot, gripper and an object are in view"
    packed = pack(source, PackSettings(root=tmp_path), 0.0)
    assert packed.frames([0]).images.shape == (1, 3, 224, 224)


@pytest.mark.slow
def test_unknown_tasks_are_named_before_any_picture_is_taken() -> None:
    pytest.importorskip("metaworld")
    from lerobot_theia.distill.settings import make_source

    source = make_source("metaworld", {"type": "metaworld", "tasks": ["drawer-open", "draw-open", "reech"]})
    with pytest.raises(DistillError) as refused:
        next(source.read(0, 1))
    if "cannot render" in str(refused.value):
        pytest.skip(str(refused.value))
    assert re.search("has no 'draw-open', 'reech'; it has assembly, .* window-open", str(refused.value))
