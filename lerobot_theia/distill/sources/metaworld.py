"""Meta-World: many tasks, random states, several cameras, with MuJoCo's truth of each view.

Starts come from `env.reset(seed)` with seeds below those of evaluations; from there the scripted expert acts, with
noise, or anything does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lerobot_theia.demos.metaworld import IMAGE_SIZE
from lerobot_theia.demos.randomize import CAMERA_MOVE_M, CAMERA_TURN_RAD, jitter
from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import Frame
from lerobot_theia.distill.sources.mujoco import Photographer, View, cannot_render, import_mujoco
from lerobot_theia.distill.sources.scenes import Episode, ScenesSource

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


@dataclass(frozen=True, kw_only=True)
class MetaworldSource(ScenesSource):
    """Random moments of Meta-World tasks.

    Two in five pictures are what a policy sees; two in five are from near there; one is from anywhere about.

    Args:
        tasks: without the version, `drawer-open`.
    """

    name: str = "metaworld"
    license: str = "Apache-2.0 (rendered by this project with Meta-World, MIT)"
    tasks: tuple[str, ...] = TASKS
    episodes: int = 20

    shape: ClassVar[tuple[int, int]] = (IMAGE_SIZE, IMAGE_SIZE)

    @property
    def scene_names(self) -> Sequence[str]:
        return self.tasks

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

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        check_tasks(self.tasks)  # of all, before the first one's pictures are taken
        return super().read(start, stop)

    @staticmethod
    def play(episode: Episode) -> list[Frame]:
        """Take the pictures that are wanted."""
        env, photographer = scene(episode.scene)
        rng = np.random.default_rng([episode.seed, *episode.scene.encode()])
        frames = []
        for k, _ in enumerate(moments(env, episode.seed, rng, max(episode.wanted) + 1)):
            view = random_view(rng)  # wanted or not: the next draws must not depend on it
            if k in episode.wanted:
                frames.append(photographer.take(env.raw.data, view))
        return frames

    @staticmethod
    def close() -> None:
        close_scene()


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


def import_metaworld() -> Any:
    """LeRobot's Meta-World. Raises DistillError where it is missing or cannot render."""
    try:
        import lerobot.envs.metaworld
    except ImportError as error:
        raise DistillError(
            f"{error}. Install Meta-World with: pip install 'lerobot_policy_theia[metaworld]'"
        ) from error
    except (RuntimeError, AttributeError, OSError) as error:
        raise cannot_render(error) from error
    return lerobot.envs.metaworld


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises DistillError naming those that Meta-World does not have."""
    known = sorted(name.removesuffix("-v3") for name in import_metaworld().TASK_DESCRIPTIONS)
    if unknown := [task for task in tasks if task not in known]:
        raise DistillError(
            f"corpus.sources.metaworld.tasks: Meta-World has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        )


def _make_scene(task: str) -> tuple[Any, Photographer]:
    mujoco = import_mujoco()
    lerobot_metaworld = import_metaworld()

    class Unseen(lerobot_metaworld.MetaworldEnv):  # type: ignore[name-defined, misc]
        full_state: np.ndarray  # (39,), of the scene as it stands

        @property
        def raw(self) -> Any:
            return self._env

        def _format_raw_obs(self, raw_obs: np.ndarray) -> dict[str, Any]:
            self.full_state = raw_obs
            return {"full_state": raw_obs}

    env = Unseen(f"{task}-v3", obs_type="pixels_agent_pos")
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
