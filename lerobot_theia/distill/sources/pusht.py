"""PushT frames of random states, drawn by the simulator itself, with the state that was drawn.

States are drawn from generators of their own, never from `env.reset(seed=...)`: an evaluation's starts come from
there, so none of them is in the corpus, whatever its seed. (Seeds are kept below an evaluation's all the same.)
"""

import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import Frame, Item, split_by_group
from lerobot_theia.distill.pusht_geometry import AGENT_RADIUS, ARENA, corners, tee_distance
from lerobot_theia.distill.seeds import corpus_seeds
from lerobot_theia.distill.sources.interface import Column

IMAGE_SIZE = 96
"""Pixels; what gym-pusht observes by default."""
GOAL = (256.0, 256.0, np.pi / 4)
"""x, y, angle of the goal in every evaluation."""
STATE = "pusht"
"""The column: agent x, y; block x, y, angle; goal x, y, angle, in arena units [0, 512] and radians."""
WALL = 7.0
"""Thickness of the walls, with a little play."""


@dataclass(frozen=True, kw_only=True)
class PushTSource:
    """Random states of PushT.

    A block lies anywhere inside the walls, one time in five near the goal's pose; the agent is anywhere outside
    the block, half of the time touching it or nearly so; the goal is that of evaluations or, `random_goals` of the
    time, anywhere.

    Args:
        images: how many.
        seed: image i is drawn from (seed, i); below 100000.
        random_goals: share of images with a goal elsewhere than in evaluations.
        validation: share of images held out.
    """

    name: str = "pusht"
    images: int
    seed: int = 0
    random_goals: float = 0.5
    validation: float = 0.02
    license: str = "Apache-2.0 (drawn by this project with gym-pusht)"

    shape: ClassVar[tuple[int, int]] = (IMAGE_SIZE, IMAGE_SIZE)
    columns: ClassVar[Mapping[str, Column]] = {STATE: Column((8,), "float32")}

    def __post_init__(self) -> None:
        corpus_seeds(self.name, self.seed, 1)
        if self.images < 1:
            raise DistillError(f"source {self.name!r}: images is {self.images}, must be at least 1")
        if not 0 <= self.random_goals <= 1:
            raise DistillError(
                f"source {self.name!r}: random_goals is {self.random_goals}, must be a share from 0 to 1"
            )

    @property
    def origin(self) -> Mapping[str, Any]:
        return {
            "kind": "PushT, random states",
            "seed": self.seed,
            "environment_seeds": "none: no state comes from env.reset(seed=...)",
            "packages": ["gym-pusht", "pymunk", "pygame"],
        }

    def identity(self) -> Mapping[str, Any]:
        return {"type": "pusht", "version": 1, "seed": self.seed, "random_goals": self.random_goals}

    def items(self) -> Sequence[Item]:
        ids = [f"{self.seed}-{i:07d}" for i in range(self.images)]
        splits = split_by_group(ids, self.validation, self.name)
        return [Item(id, splits[id]) for id in ids]

    def stamp(self, start: int, stop: int) -> str:
        return ""

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        for index in range(start, stop):
            yield draw(random_state(np.random.default_rng([self.seed, index]), self.random_goals))


def random_state(rng: np.random.Generator, random_goals: float) -> np.ndarray:
    """(8,) float64, see `STATE`; what overlaps in it could not overlap in the simulator either."""
    goal = np.array(GOAL)
    if rng.random() < random_goals:
        goal = _pose_inside(rng)
    near_goal = rng.random() < 0.2
    block = _pose_inside(rng)
    while near_goal:
        block = goal + rng.normal(size=3) * [12, 12, 0.15]
        near_goal = not _inside(block)
    return np.concatenate([_agent(rng, block), block, goal])


def _pose_inside(rng: np.random.Generator) -> np.ndarray:
    while True:
        pose = np.array([*rng.uniform(0, ARENA, 2), rng.uniform(-np.pi, np.pi)])
        if _inside(pose):
            return pose


def _inside(pose: np.ndarray) -> bool:
    points = corners(pose)
    return bool(((points > WALL) & (points < ARENA - WALL)).all())


def _agent(rng: np.random.Generator, block: np.ndarray) -> np.ndarray:
    reach = 2 * AGENT_RADIUS if rng.random() < 0.5 else np.inf
    low, high = WALL + AGENT_RADIUS, ARENA - WALL - AGENT_RADIUS
    while True:
        places = rng.uniform(low, high, (256, 2))
        distance = tee_distance(places, block)
        fitting = np.flatnonzero((distance >= AGENT_RADIUS) & (distance < reach))
        if len(fitting):
            return places[fitting[0]]
        reach = np.inf  # a block in a corner may leave hardly any room to touch it


@functools.cache
def _environment() -> Any:
    try:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            from gym_pusht.envs.pusht import PushTEnv
    except ImportError as error:
        raise DistillError(
            f"{error}. Install PushT with: pip install 'lerobot_policy_theia[pusht]'"
        ) from error
    env = PushTEnv(obs_type="pixels", observation_width=IMAGE_SIZE, observation_height=IMAGE_SIZE)
    env._setup()
    return env


def draw(state: np.ndarray) -> Frame:
    """The simulator's own picture of a state."""
    env = _environment()
    env.agent.position = tuple(state[:2].tolist())
    # The angle turns the block about its centre of gravity, so the position is set last.
    env.block.angle = float(state[4])
    env.block.position = tuple(state[2:4].tolist())
    env.goal_pose = state[5:8]
    for body in (env.agent, env.block):
        env.space.reindex_shapes_for_body(body)  # or the picture shows where they were
    return Frame(env._render(), {STATE: state.astype(np.float32)})
