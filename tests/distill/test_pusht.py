"""PushT as a source and as a teacher: pictures, states and maps speak of the same thing."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht")
import shapely.affinity
import shapely.geometry as geometry

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.frames import Frame, Frames
from lerobot_theia.distill.pusht_geometry import AGENT_RADIUS, ARENA, RECTANGLES, corners, tee_distance
from lerobot_theia.distill.sources.pusht import GOAL, STATE, PushTSource, draw, random_state
from lerobot_theia.distill.teachers.interface import fold, unfold
from lerobot_theia.distill.teachers.pusht import PushTTeacher

COLOURS = {"block": (119, 136, 153), "goal": (144, 238, 144), "agent": (65, 105, 225)}
"""Of gym-pusht: LightSlateGray, LightGreen, RoyalBlue."""


def drawn(count: int) -> list[Frame]:
    return [frame for frame in PushTSource(images=count).read(0, count) if isinstance(frame, Frame)]


def as_frames(frames: list[Frame]) -> Frames:
    images = torch.from_numpy(np.stack([frame.image for frame in frames])).permute(0, 3, 1, 2)
    return Frames(images, {STATE: torch.from_numpy(np.stack([frame.truth[STATE] for frame in frames]))})


def tee(pose: np.ndarray) -> geometry.base.BaseGeometry:
    boxes = [geometry.box(x - w, y - h, x + w, y + h) for x, y, w, h in RECTANGLES]
    turned = shapely.affinity.rotate(shapely.union_all(boxes), pose[2], origin=(0, 0), use_radians=True)
    return shapely.affinity.translate(turned, pose[0], pose[1])


@pytest.mark.parametrize("name", ["block", "agent"])
def test_masks_lie_where_the_simulator_draws(name: str) -> None:
    frames = drawn(8)
    maps = PushTTeacher(maps=("mask",), resolution=96).draw(as_frames(frames).truth[STATE])
    masks = maps[:, ["block", "goal", "agent"].index(name)].numpy()
    for frame, mask in zip(frames, masks, strict=True):
        seen = np.abs(frame.image.astype(int) - COLOURS[name]).sum(-1) < 90
        assert seen.sum() > 5
        assert (mask[seen] > 0).mean() > 0.95, "where the picture shows the object, the mask covers it"
        assert np.abs(centre(seen) - centre(mask)).max() < 0.6, "in pixels of the picture"


def centre(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    return np.array([(rows * mask).sum(), (columns * mask).sum()]) / mask.sum()


def test_goal_is_where_the_simulator_draws_it_and_hidden_parts_count() -> None:
    state = np.array([400, 400, 256, 256, np.pi / 4, *GOAL])
    maps = PushTTeacher(maps=("mask",), resolution=64).draw(torch.from_numpy(state)[None])
    assert torch.equal(maps[0, 0], maps[0, 1]), "the block covers the goal, which is there all the same"
    frame = draw(np.array([400, 400, 100, 150, 0.0, *GOAL]))
    green = np.abs(frame.image.astype(int) - COLOURS["goal"]).sum(-1) < 60
    assert abs(green.mean() * 64 * 64 - maps[0, 1].sum().item()) < 0.05 * 64 * 64 * green.mean() + 8


def test_distances_are_those_of_the_shapes() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        pose = np.array([*rng.uniform(150, 350, 2), rng.uniform(-3, 3)])
        shape = tee(pose)
        points = rng.uniform(0, ARENA, (200, 2))
        distance = tee_distance(points, pose)
        outside = np.array([shape.distance(geometry.Point(p)) for p in points])
        assert np.allclose(distance[outside > 0], outside[outside > 0], atol=1e-6)
        assert (distance[outside == 0] <= 1e-9).all()
        assert all(shape.boundary.distance(geometry.Point(corner)) < 1e-6 for corner in corners(pose)[:4])


def test_states_could_be_in_the_simulator() -> None:
    states = np.stack([random_state(np.random.default_rng([7, i]), 0.5) for i in range(200)])
    for state in states:
        assert tee_distance(state[None, :2], state[2:5])[0] >= AGENT_RADIUS - 1e-6
        for pose in (state[2:5], state[5:8]):
            assert (corners(pose) > 0).all() and (corners(pose) < ARENA).all()
    fixed = (states[:, 5:] == GOAL).all(1).mean()
    assert 0.35 < fixed < 0.65
    touching = [tee_distance(state[None, :2], state[2:5])[0] < 2 * AGENT_RADIUS for state in states]
    assert 0.4 < np.mean(touching) < 0.75


def test_frames_have_stable_ids_and_contents() -> None:
    few, many = PushTSource(images=5), PushTSource(images=9)
    assert [item.id for item in few.items()] == [item.id for item in many.items()][:5]
    again = [frame for frame in many.read(3, 5) if isinstance(frame, Frame)]
    for first, second in zip(drawn(5)[3:], again, strict=True):
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.truth[STATE], second.truth[STATE])


def test_seeds_of_evaluations_are_refused() -> None:
    with pytest.raises(DistillError, match="100000, where the seeds of evaluations begin"):
        PushTSource(images=5, seed=100_000)


def test_folding_keeps_every_pixel() -> None:
    maps = torch.rand(2, 3, 64, 64)
    folded = fold(maps, 16)
    assert folded.shape == (2, 48, 16, 16)
    assert torch.equal(unfold(folded, 64), maps)
    teacher = PushTTeacher(resolution=64)
    assert teacher(as_frames(drawn(2))).shape == (2, *teacher.feature_size)


def test_orientation_is_that_of_block_and_goal_where_they_are() -> None:
    poses = torch.tensor([[400, 400, 256, 200, 0.5, 120, 400, -2.0]])
    mask = PushTTeacher(maps=("mask",), resolution=64).draw(poses)[0, :2]
    maps = PushTTeacher(maps=("orientation",), resolution=64).draw(poses)[0]
    for i, angle in enumerate((0.5, -2.0)):
        assert torch.allclose(maps[2 * i], math.cos(angle) * mask[i], atol=1e-6)
        assert torch.allclose(maps[2 * i + 1], math.sin(angle) * mask[i], atol=1e-6)


def test_coordinates_of_each_pixel_tell_where_block_goal_and_agent_are() -> None:
    poses = torch.tensor([[400.0, 100, 256, 200, 0.5, 120, 400, -2.0], [10, 20, 300, 80, 3.0, 256, 256, 0.8]])
    maps = PushTTeacher(maps=("coordinates",), resolution=32).draw(poses)
    assert maps.shape == (2, 6, 32, 32)
    axis = (torch.arange(32) + 0.5) * 16
    here = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    for state, (bx, by, gx, gy, ax, ay) in zip(poses, maps, strict=True):
        assert torch.allclose(torch.stack([ax, ay]) + state[:2, None, None], here, atol=1e-3)
        for x, y, (left, top, angle) in ((bx, by, state[2:5]), (gx, gy, state[5:8])):
            back = torch.stack(
                [
                    left + angle.cos() * x - angle.sin() * y,
                    top + angle.sin() * x + angle.cos() * y,
                ]
            )
            assert torch.allclose(back, here, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"maps": ("colour",)}, r"maps \['colour'\]; choose from"),
        ({"maps": ()}, "choose from"),
        ({"resolution": 40}, "resolution 40 must be a multiple of grid 16"),
        ({"grid": 32}, "grid 16 or 64"),
    ],
)
def test_impossible_maps_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        PushTTeacher(**settings)
