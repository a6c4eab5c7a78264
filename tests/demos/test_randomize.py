"""Scenes that look different in each episode: by the seed, kind by kind, and nothing that moves."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco", exc_type=Exception, reason="needs MuJoCo")

from lerobot_theia.demos.randomize import FIELDS, HEADLIGHT, KINDS, Scene, choose_kinds, generator, rotation  # noqa: E402
from lerobot_theia.demos.recording import RecordingError  # noqa: E402

MODEL = """
<mujoco>
  <asset>
    <texture name="checks" type="2d" builtin="checker" width="8" height="8" rgb1="1 1 1" rgb2="0 0 0"/>
    <texture name="fade" type="2d" builtin="gradient" width="8" height="8" rgb1="1 1 1" rgb2="0 0 0"/>
    <material name="floor" texture="checks" reflectance="0.4"/>
    <material name="wall" texture="fade"/>
    <material name="paint" rgba="0.2 0.4 0.6 1"/>
  </asset>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1" diffuse="0.5 0.5 0.5"/>
    <light pos="1 0 3" dir="-0.3 0 -1" diffuse="0.3 0.3 0.3"/>
    <camera name="other" pos="1 0 2"/>
    <camera name="eye" pos="0 -1 2" xyaxes="1 0 0 0 0.7 0.7"/>
    <geom type="plane" size="1 1 0.1" material="floor"/>
    <geom type="box" pos="0 1 0.5" size="1 0.1 0.5" material="wall"/>
    <body pos="0 0 0.5">
      <freejoint/>
      <geom type="box" size="0.1 0.1 0.1" rgba="0.8 0.1 0.1 0.5"/>
      <geom type="sphere" pos="0 0 0.2" size="0.1" rgba="0.8 0.1 0.1 1"/>
      <geom type="sphere" pos="0 0 0.4" size="0.1" rgba="0.1 0.8 0.1 1"/>
      <geom type="sphere" pos="0 0 0.6" size="0.1" material="paint"/>
    </body>
  </worldbody>
</mujoco>
"""
OF_KIND = {
    "light": {"light_pos", "light_dir", "light_diffuse", "light_specular", *HEADLIGHT},
    "camera": {"cam_pos", "cam_quat"},
    "texture": {"geom_rgba", "geom_matid", "mat_rgba", "mat_reflectance"},
}
SEEDS = range(20)


@pytest.fixture
def model() -> Any:
    return mujoco.MjModel.from_xml_string(MODEL)


def looks(model: Any) -> dict[str, np.ndarray]:
    return {name: getattr(model, name).copy() for name in FIELDS} | {
        name: getattr(model.vis.headlight, name).copy() for name in HEADLIGHT
    }


def changed(model: Any, before: dict[str, np.ndarray]) -> set[str]:
    return {name for name, values in looks(model).items() if not np.array_equal(values, before[name])}


def every_array(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    for name in dir(model):
        if not name.startswith("_") and isinstance(value := getattr(model, name), np.ndarray):
            yield name, value.copy()


def test_each_kind_changes_what_it_should_and_nothing_else_of_the_model(model: Any) -> None:
    before, whole = looks(model), dict(every_array(model))
    scene = Scene(model, "eye")
    for kind in KINDS:
        seen: set[str] = set()
        for seed in SEEDS:
            scene.change([kind], seed)
            seen |= changed(model, before)
            assert {n for n, v in every_array(model) if not np.array_equal(v, whole[n])} <= OF_KIND[kind]
        assert seen == OF_KIND[kind]
    assert scene.change([], 3) == {}
    assert changed(model, before) == set(), "without kinds it looks as at first"


def test_what_is_drawn_depends_on_the_seed_alone(model: Any) -> None:
    scene, others = Scene(model, "eye"), Scene(mujoco.MjModel.from_xml_string(MODEL), "eye")
    drawn = scene.change(KINDS, 5)
    after = looks(model)
    assert scene.change(KINDS, 6) != drawn
    assert scene.change(KINDS, 5) == drawn, "twice is not twice as far"
    assert changed(model, after) == set()
    assert json.loads(json.dumps(drawn)) == drawn
    for kind in KINDS:
        assert others.change([kind], 5) == {kind: drawn[kind]}, "other kinds make no difference"


def test_looks_do_not_say_where_things_are() -> None:
    """A simulator places its objects with `default_rng(seed)`: numbers of that stream must not be those of a lamp."""
    placing = set(np.random.default_rng(7).random(256))
    for kind in KINDS:
        assert placing.isdisjoint(generator(7, kind).random(256)), kind


def test_only_the_camera_that_takes_the_pictures_moves_and_only_a_little(model: Any) -> None:
    scene, eye, other = Scene(model, "eye"), model.camera("eye").id, model.camera("other").id
    position, quaternion = model.cam_pos[eye].copy(), model.cam_quat[eye].copy()
    fixed = model.cam_pos[other].copy()
    for seed in SEEDS:
        drawn = scene.change(["camera"], seed)["camera"]
        assert np.array_equal(model.cam_pos[other], fixed)
        assert np.linalg.norm(model.cam_quat[eye]) == pytest.approx(1)
        distance = np.linalg.norm(model.cam_pos[eye] - position)
        assert distance == pytest.approx(np.linalg.norm(drawn["move_m"]))
        assert 0 < distance < 0.3
        turned = 2 * np.arccos(min(1.0, abs(float(model.cam_quat[eye] @ quaternion))))
        assert turned == pytest.approx(np.linalg.norm(drawn["turn_rad"]), rel=1e-4)


def test_a_move_to_the_right_is_one_in_the_picture(model: Any) -> None:
    """In the camera's own frame, whose axes are known here: x is right, up is (0, 0.7, 0.7)."""
    axes, data = np.zeros(9), mujoco.MjData(model)
    scene, eye = Scene(model, "eye"), model.camera("eye").id
    before = model.cam_pos[eye].copy()
    mujoco.mju_quat2Mat(axes, model.cam_quat[eye])
    axes = axes.reshape(3, 3)
    assert axes[:, 0] == pytest.approx([1, 0, 0], abs=1e-6)
    drawn = scene.change(["camera"], 1)["camera"]
    assert axes.T @ (model.cam_pos[eye] - before) == pytest.approx(drawn["move_m"], abs=1e-9)
    mujoco.mj_forward(model, data)
    assert data.cam_xmat[eye].reshape(3, 3) == pytest.approx(axes @ rotation(drawn["turn_rad"]), abs=1e-6)


def test_what_had_one_colour_has_one_colour_and_stays_as_transparent(model: Any) -> None:
    scene = Scene(model, "eye")
    red = [2, 3]
    for seed in SEEDS:
        scene.change(["texture"], seed)
        colours = model.geom_rgba
        assert np.array_equal(colours[red[0], :3], colours[red[1], :3])
        assert not np.array_equal(colours[red[0], :3], colours[4, :3])
        assert colours[red, 3] == pytest.approx([0.5, 1])
        assert ((model.mat_rgba >= 0) & (model.mat_rgba <= 1)).all()
        assert sorted(model.geom_matid[:2]) == [0, 1], "textures change places"
        assert model.mat_reflectance[model.geom_matid[:2]] == pytest.approx([0.4, 0]), (
            "shiny things stay shiny"
        )
        assert model.geom_matid[5] == 2, "a plain material has no texture to give"


def test_everything_moves_as_ever(model: Any) -> None:
    def fall() -> np.ndarray:
        data = mujoco.MjData(model)
        for _ in range(200):
            mujoco.mj_step(model, data)
        return data.qpos.copy()

    plain = fall()
    Scene(model, "eye").change(KINDS, 7)
    assert np.array_equal(fall(), plain)


def test_kinds_are_checked_and_put_in_order() -> None:
    assert choose_kinds(["texture", "light", "light"]) == ("light", "texture")
    assert choose_kinds([]) == ()
    with pytest.raises(RecordingError, match=r"randomize=colour,fog is not known.*light,camera,texture"):
        choose_kinds(["fog", "light", "colour"])
