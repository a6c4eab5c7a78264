"""Meta-World: many tasks, random states, several cameras, with MuJoCo's truth of each view.

Starts come from `env.reset(seed)` with seeds below those of evaluations; from there the scripted expert acts, with
noise, or anything does.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lerobot_theia.demos.metaworld import IMAGE_SIZE
from lerobot_theia.demos.randomize import CAMERA_MOVE_M, CAMERA_TURN_RAD, jitter
from lerobot_theia.demos.workers import ordered_map
from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import Frame, Item, split_by_group
from lerobot_theia.distill.seeds import corpus_seeds
from lerobot_theia.distill.sources.interface import Column
from lerobot_theia.distill.sources.mujoco import COLUMNS, Photographer, View, cannot_render, import_mujoco

TASKS = (
    "assembly", "basketball", "bin-picking", "box-close", "button-press", "button-press-topdown", "coffee-button",
    "coffee-push", "dial-turn", "disassemble", "door-open", "door-close", "drawer-close", "drawer-open", "faucet-open",
    "hammer", "handle-press", "lever-pull", "peg-insert-side", "pick-place", "plate-slide", "push", "reach",
    "shelf-place", "soccer", "stick-push", "sweep-into", "window-open",
)  # fmt: skip
MAX_STEPS = 30
"""Steps between two pictures, at most."""
CAMERA = "corner2"
"""The camera that LeRobot's Meta-World hands to a policy, in the place and the way up that LeRobot gives it."""


@dataclass(frozen=True)
class Episode:
    """Pictures of one start.

    Args:
        wanted: which of the pictures.
    """

    task: str
    seed: int
    wanted: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MetaworldSource:
    """Random moments of Meta-World tasks.

    Two in five pictures are what a policy sees; two in five are from near there; one is from anywhere about.

    Args:
        tasks: without the version, `drawer-open`.
        episodes: starts per task.
        frames_per_episode: pictures per start.
        seed: of the first start of each task; the others follow. Below 100000.
        validation: share of the episodes held out.
        workers: rendering processes; 0 renders in this one.
    """

    name: str = "metaworld"
    tasks: tuple[str, ...] = TASKS
    episodes: int = 20
    frames_per_episode: int = 8
    seed: int = 0
    validation: float = 0.05
    workers: int = 0
    license: str = "Apache-2.0 (rendered by this project with Meta-World, MIT)"

    shape: ClassVar[tuple[int, int]] = (IMAGE_SIZE, IMAGE_SIZE)
    columns: ClassVar[Mapping[str, Column]] = COLUMNS

    def __post_init__(self) -> None:
        corpus_seeds(f"source {self.name!r}", self.seed, self.episodes)
        for field in ("episodes", "frames_per_episode"):
            if getattr(self, field) < 1:
                raise DistillError(
                    f"source {self.name!r}: {field} is {getattr(self, field)}, must be at least 1"
                )

    @property
    def origin(self) -> Mapping[str, Any]:
        return {
            "kind": "Meta-World, random states and cameras",
            "tasks": list(self.tasks),
            "environment_seeds": [self.seed, self.seed + self.episodes - 1],
            "packages": ["metaworld", "mujoco", "lerobot"],
        }

    def identity(self) -> Mapping[str, Any]:
        return {"type": "metaworld", "version": 1}

    def items(self) -> Sequence[Item]:
        groups = [f"{task}/{seed:05d}" for task, seed, _ in self._plan]
        splits = split_by_group(groups, self.validation, f"source {self.name!r}")
        return [
            Item(f"{group}/{k:02d}", splits[group])
            for group, (_, _, k) in zip(groups, self._plan, strict=True)
        ]

    def stamp(self, start: int, stop: int) -> str:
        return ""

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        wanted: dict[tuple[str, int], list[int]] = {}
        for task, seed, k in self._plan[start:stop]:
            wanted.setdefault((task, seed), []).append(k)
        episodes = [Episode(task, seed, tuple(pictures)) for (task, seed), pictures in wanted.items()]
        for frames in ordered_map(play, episodes, self.workers):
            yield from frames

    @functools.cached_property
    def _plan(self) -> list[tuple[str, int, int]]:
        """(task, seed, picture), a task after the other: making a task's environment takes a second."""
        return [
            (task, seed, k)
            for task in self.tasks
            for seed in corpus_seeds(self.name, self.seed, self.episodes)
            for k in range(self.frames_per_episode)
        ]


def play(episode: Episode) -> list[Frame]:
    """Take the pictures that are wanted."""
    env, photographer = scene(episode.task)
    rng = np.random.default_rng([episode.seed, *episode.task.encode()])
    frames = []
    for k, _ in enumerate(moments(env, episode.seed, rng, max(episode.wanted) + 1)):
        view = random_view(
            rng
        )  # drawn for every picture, wanted or not: the next draws must not depend on it
        if k in episode.wanted:
            frames.append(photographer.take(env.raw.data, view))
    return frames


def moments(env: Any, seed: int, rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Reset and act; yields Meta-World's state (39,) at `count` moments, as the scene stands there."""
    state = env.reset(seed=seed)[0]["full_state"]
    # One in four episodes is not the expert's at all; the others have noise of their own strength.
    noise, expert = rng.uniform(0, 0.5), rng.random() < 0.75
    for k in range(count):
        for _ in range(rng.integers(0 if k == 0 else 1, MAX_STEPS + 1)):
            action = rng.uniform(-1, 1, 4)
            if expert:
                action = env.expert_policy.get_action(state) + noise * rng.normal(size=4)
            state = env.step(np.clip(action, -1, 1).astype(np.float32))[0]["full_state"]
        yield env.full_state  # not `state`: after a success, that is the end of what LeRobot has reset since


def random_view(rng: np.random.Generator) -> View:
    kind = rng.random()
    move, turn = jitter(rng, CAMERA_MOVE_M, CAMERA_TURN_RAD)
    lookat = np.array([0.0, 0.65, 0.1]) + rng.normal(size=3) * 0.05
    distance, azimuth, elevation = rng.uniform(0.7, 1.4), rng.uniform(0, 360), rng.uniform(-70, -15)
    if kind < 0.4:
        return View(CAMERA, turned_over=True)
    if kind < 0.8:
        return View(CAMERA, move, turn, turned_over=True)
    return View(
        None,
        lookat=tuple(lookat.tolist()),
        distance=float(distance),
        azimuth=float(azimuth),
        elevation=float(elevation),
    )


_open: dict[str, tuple[Any, Photographer]] = {}


def scene(task: str) -> tuple[Any, Photographer]:
    """A task's environment, which renders nothing itself, and someone to take pictures of it; one at a time."""
    if task not in _open:
        # Closed before the next is made: a rendering context that goes later would take the next one's textures.
        close_scene()
        _open[task] = _make_scene(task)
    return _open[task]


def close_scene() -> None:
    for _, photographer in _open.values():
        photographer.close()
    _open.clear()


def _make_scene(task: str) -> tuple[Any, Photographer]:
    mujoco = import_mujoco()
    try:
        import lerobot.envs.metaworld as lerobot_metaworld
    except ImportError as error:
        raise DistillError(
            f"{error}. Install Meta-World with: pip install 'lerobot_policy_theia[metaworld]'"
        ) from error
    except (RuntimeError, AttributeError, OSError) as error:
        raise cannot_render(error) from error

    class Unseen(lerobot_metaworld.MetaworldEnv):  # type: ignore[name-defined, misc]
        full_state: np.ndarray  # (39,), of the scene as it stands

        @property
        def raw(self) -> Any:
            return self._env

        def _format_raw_obs(self, raw_obs: np.ndarray) -> dict[str, Any]:
            self.full_state = raw_obs
            return {"full_state": raw_obs}

    name = f"{task}-v3"
    if name not in lerobot_metaworld.TASK_DESCRIPTIONS:
        known = ", ".join(sorted(known.removesuffix("-v3") for known in lerobot_metaworld.TASK_DESCRIPTIONS))
        raise DistillError(f"Meta-World has no task {task!r}; it has {known}")
    env = Unseen(name, obs_type="pixels_agent_pos")
    try:
        placed = placed_bodies(env)
    except (mujoco.FatalError, RuntimeError) as error:
        raise DistillError(
            f"Meta-World's task {task!r} does not start with mujoco {mujoco.__version__} "
            f"({type(error).__name__}: {error}). Install the version that pyproject.toml asks for, or name the tasks to "
            "draw, without this one: +corpus.sources.metaworld.tasks=[...]"
        ) from error
    return env, Photographer(env.raw.model, (IMAGE_SIZE, IMAGE_SIZE), placed)


def placed_bodies(env: Any) -> list[int]:
    """Bodies without a joint of their own that a reset moves: boxes, pegs, nets."""
    positions = []
    for seed in range(3):
        env.reset(seed=seed)
        positions.append(env.raw.model.body_pos.copy())
    moved = np.abs(np.diff(positions, axis=0)).max(axis=(0, 2)) > 1e-6
    return [int(body) for body in np.flatnonzero(moved)]
