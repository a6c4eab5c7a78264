"""Meta-World demonstrations: LeRobot's own environment, driven by Meta-World's scripted experts.

Feature names and camera are those that `lerobot-eval --env.type=metaworld` hands to a policy.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import importlib.metadata
import itertools
import logging
import os
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_theia.demos.randomize import KINDS, Drawn, Scene, choose_kinds
from lerobot_theia.demos.recording import (
    Episode,
    Episodes,
    Features,
    Plan,
    Recording,
    RecordingError,
    add_arguments,
    already_there,
    camera,
    dataset_root,
    missing_extra,
    outcome_features,
    write_dataset,
)
from lerobot_theia.demos.seeds import check_recorded
from lerobot_theia.demos.workers import ordered_map

logger = logging.getLogger(__name__)

FPS = 80  # of LeRobot's MetaworldEnv
IMAGE_SIZE = 480  # pixels; the only size LeRobot's MetaworldEnv renders
MAX_EPISODE_FRAMES = 500  # Meta-World's own limit

RENDERING_HELP = (
    "Set the environment variable MUJOCO_GL before Python starts: MUJOCO_GL=egl with a GPU and its driver; "
    "MUJOCO_GL=osmesa (software) without one, after `apt-get install libosmesa6`."
)


def metaworld_features(
    *, image_size: int = IMAGE_SIZE, use_videos: bool = True, environment_state: bool = False
) -> Features:
    """What LeRobot's Meta-World hands to a policy, and the full state (39,) on request."""
    features: Features = {
        "observation.image": camera(image_size, image_size, use_videos=use_videos),
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        "action": {"dtype": "float32", "shape": (4,), "names": ["dx", "dy", "dz", "gripper"]},
        **outcome_features(),
    }
    if environment_state:
        features["observation.environment_state"] = {"dtype": "float32", "shape": (39,), "names": None}
    return features


def record_metaworld(
    task: str,
    root: str | Path | None = None,
    num_episodes: int = 50,
    seed: int = 0,
    *,
    repo_id: str | None = None,
    image_size: int = IMAGE_SIZE,
    max_failures: int = 20,
    use_videos: bool = True,
    environment_state: bool = False,
    randomize: Sequence[str] = (),
    overwrite: bool = False,
    if_missing: bool = False,
    num_workers: int = 0,
    progress: bool = True,
) -> Recording:
    """Record successful episodes of Meta-World's expert as a LeRobotDataset v3.

    Args:
        task: `drawer-open`, `drawer-open-v3` or `metaworld-drawer-open`.
        root: folder of the new dataset; None is its place in LeRobot's home.
        num_episodes: successful episodes to record.
        seed: of the first episode; every further attempt takes the next one. Evaluate with other seeds.
        repo_id: its name for LeRobot (default: local/metaworld_<task>); nothing is uploaded.
        image_size: side of the stored frames in pixels. The simulator renders 480 in any case, as it does in an
            evaluation; smaller frames are averaged down from that, which saves disk, not rendering.
        max_failures: give up when the expert failed more often.
        use_videos: AV1 video with LeRobot's default settings; False keeps exact frames as PNG.
        environment_state: also record Meta-World's full observation (39,).
        randomize: what looks different in each episode: any of `light`, `camera`, `texture`. An evaluation renders
            the plain scene. What was drawn is kept in the dataset, in meta/randomization.json.
        overwrite: replace a dataset at `root`.
        if_missing: keep a dataset at `root` if it is whole, of this task and from this seed on, and return at once.
        num_workers: simulating processes beside this one, which encodes; 0 does all of it here.
        progress: show a progress bar.

    Raises:
        RecordingError: if the extra is missing, rendering is impossible, or the expert fails too often.
    """
    if num_episodes < 1:
        raise RecordingError(f"{num_episodes} episodes wanted; at least 1 is needed")
    if seed < 0:
        raise RecordingError(f"seed={seed} is below 0; Meta-World's seeds are 0 and up")
    check_recorded(seed + num_episodes - 1 + max_failures)
    if not 16 <= image_size <= IMAGE_SIZE or image_size % 2:
        raise RecordingError(f"image_size {image_size} is not an even number from 16 to {IMAGE_SIZE} pixels")
    kinds = choose_kinds(randomize)
    name, description = _look_up(task)
    repo_id = repo_id or f"local/metaworld_{name.removesuffix('-v3')}"
    plan = Plan(
        root=dataset_root(root, repo_id),
        repo_id=repo_id,
        fps=FPS,
        features=metaworld_features(
            image_size=image_size, use_videos=use_videos, environment_state=environment_state
        ),
        task=description,
        num_episodes=num_episodes,
        num_frames=None,
        max_episode_frames=MAX_EPISODE_FRAMES,
        origin={"task": name, "first_seed": seed},
        randomize=kinds,
    )
    if there := already_there(plan, overwrite=overwrite, if_missing=if_missing):
        return there
    jobs = (_Job(name, s, image_size, environment_state, kinds) for s in itertools.count(seed))
    attempts = ordered_map(_attempt, jobs, num_workers)
    failed: list[int] = []
    successes = _successes(name, attempts, num_episodes, max_failures, failed)
    recording = write_dataset(plan, successes, progress=progress)
    return Recording(
        recording.root, recording.num_episodes, recording.num_frames, recording.seconds, len(failed)
    )


@dataclass(frozen=True)
class _Job:
    """One attempt of the expert: Meta-World's task name and the seed of its reset and of what `randomize` draws."""

    name: str
    seed: int
    image_size: int
    environment_state: bool
    randomize: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Attempt:
    """What came of a job; no episode if the expert failed (its frames are of no use to anyone)."""

    seed: int
    episode: Episode | None


def _successes(
    name: str,
    attempts: Generator[_Attempt, None, None],
    num_episodes: int,
    max_failures: int,
    failed: list[int],
) -> Episodes:
    """Yield the successful episodes until there are enough, and collect the seeds of the others in `failed`."""
    recorded = 0
    with contextlib.closing(attempts):
        for attempt in attempts:
            if attempt.episode is not None:
                yield attempt.episode
                recorded += 1
                if recorded == num_episodes:
                    return
                continue
            failed.append(attempt.seed)
            logger.info("%s: the expert failed with seed %d (%d failures)", name, attempt.seed, len(failed))
            if len(failed) > max_failures:
                raise RecordingError(
                    f"{name}: the expert failed in {len(failed)} of {len(failed) + recorded} episodes (last seeds "
                    f"{failed[-5:]}), more than max_failures={max_failures} allows; {recorded} of "
                    f"{num_episodes} were recorded. Allow more (--max-failures), or choose another task."
                )


@functools.cache
def _import_metaworld() -> Any:
    """LeRobot's Meta-World module, once it is known that it can work."""
    try:
        import mujoco
    except ImportError as error:
        raise missing_extra("metaworld", error) from error
    except (RuntimeError, AttributeError, OSError) as error:
        # MuJoCo looks for the graphics library of MUJOCO_GL when it is imported.
        raise _rendering_error(error) from error
    if mujoco.mjNEQDATA != 11:
        raise RecordingError(
            f"mujoco {mujoco.__version__} stores {mujoco.mjNEQDATA} numbers per constraint, metaworld "
            f"{importlib.metadata.version('metaworld')} sets 11 of them and fails: pip install 'mujoco<3.17'"
        )
    try:
        import lerobot.envs.metaworld as lerobot_metaworld
    except ImportError as error:
        raise missing_extra("metaworld", error) from error
    except (RuntimeError, AttributeError, OSError) as error:
        raise _rendering_error(error) from error
    return lerobot_metaworld


def _rendering_error(error: Exception) -> RecordingError:
    setting = os.environ.get("MUJOCO_GL")
    state = f"MUJOCO_GL={setting}" if setting else "MUJOCO_GL unset"
    return RecordingError(
        f"MuJoCo cannot render here with {state} ({type(error).__name__}: {error}). {RENDERING_HELP}"
    )


def _look_up(task: str) -> tuple[str, str]:
    """Meta-World's name of a task (`drawer-open-v3`) and its description in words."""
    descriptions: dict[str, str] = _import_metaworld().TASK_DESCRIPTIONS
    name = task.removeprefix("metaworld-").removesuffix("-v3") + "-v3"
    if name not in descriptions:
        near = difflib.get_close_matches(name, descriptions, n=3, cutoff=0.4) or sorted(descriptions)
        raise RecordingError(f"Meta-World has no task {task!r}; near: {', '.join(near)}")
    return name, descriptions[name]


@functools.cache
def environment_class() -> Any:
    """LeRobot's environment that also keeps the full state, which the expert looks at, and whose looks can be changed."""
    lerobot_metaworld = _import_metaworld()

    class MetaworldWithState(lerobot_metaworld.MetaworldEnv):  # type: ignore[name-defined, misc]
        full_state: np.ndarray  # (39,)

        @functools.cached_property
        def scene(self) -> Scene:
            self._ensure_env()
            return Scene(self._env.model, self.camera_name)

        def _format_raw_obs(self, raw_obs: np.ndarray) -> dict[str, Any]:
            self.full_state = raw_obs
            return super()._format_raw_obs(raw_obs)

    return MetaworldWithState


@functools.cache
def _environment(name: str) -> Any:
    """Once per process and task."""
    return environment_class()(name, obs_type="pixels_agent_pos")


def _reset(env: Any, seed: int, randomize: tuple[str, ...] = ()) -> tuple[dict[str, np.ndarray], Drawn]:
    """Change the scene and reset, which renders the first frame; and say so clearly if rendering is impossible."""
    import mujoco

    try:
        drawn = env.scene.change(randomize, seed)
        return env.reset(seed=seed)[0], drawn
    except (mujoco.FatalError, RuntimeError, AttributeError, ImportError, OSError) as error:
        raise _rendering_error(error) from error


def _attempt(job: _Job) -> _Attempt:
    """Let the expert act from a seeded start until success or Meta-World's time limit."""
    env = _environment(job.name)
    obs, drawn = _reset(env, job.seed, job.randomize)
    # Rows are (frame, gripper state, full state, action, reward, done, success).
    rows: list[tuple[Any, ...]] = []
    done = success = False
    while not done:
        # Experts overshoot; the simulator clips the motion. Executed, recorded and learned: the clipped action.
        action = np.clip(env.expert_policy.get_action(env.full_state), -1, 1).astype(np.float32)
        before, state = obs, env.full_state
        obs, reward, terminated, truncated, info = env.step(action)
        done, success = terminated or truncated, bool(info["is_success"])
        frame = _shrink(before["pixels"], job.image_size)
        rows.append((frame, before["agent_pos"], state, action, [reward], [done], [success]))
    if not success:
        return _Attempt(job.seed, None)
    frames, positions, states, actions, rewards, dones, successes = zip(*rows, strict=True)
    columns = {
        "observation.image": np.stack(frames),
        "observation.state": np.asarray(positions, dtype=np.float32),
        "action": np.stack(actions),
        "next.reward": np.asarray(rewards, dtype=np.float32),
        "next.done": np.asarray(dones, dtype=bool),
        "next.success": np.asarray(successes, dtype=bool),
    }
    if job.environment_state:
        columns["observation.environment_state"] = np.asarray(states, dtype=np.float32)
    return _Attempt(job.seed, Episode(columns, env.task_description, {"seed": job.seed, **drawn}))


def _shrink(frame: np.ndarray, size: int) -> np.ndarray:
    """(480, 480, 3) uint8 to (size, size, 3) by averaging areas."""
    if size == len(frame):
        return frame
    import cv2

    return cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)


def main(argv: list[str] | None = None) -> int:
    """Command line of `record_metaworld`."""
    parser = argparse.ArgumentParser(
        description="Record successful episodes of a Meta-World expert as a LeRobotDataset v3.",
        epilog=RENDERING_HELP,
    )
    parser.add_argument("--task", required=True, help="for example metaworld-drawer-open")
    add_arguments(parser, episodes=50, workers=min(4, os.cpu_count() or 1))
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first episode (default: %(default)s)"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=IMAGE_SIZE,
        help="side of stored frames, pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--max-failures",
        type=int,
        default=20,
        help="give up after more failed episodes (default: %(default)s)",
    )
    parser.add_argument(
        "--randomize",
        default="",
        metavar="KIND,...",
        help=f"what looks different in each episode: any of {','.join(KINDS)} (default: nothing)",
    )
    args = parser.parse_args(argv)
    try:
        recording = record_metaworld(
            args.task,
            args.root,
            args.episodes,
            args.seed,
            repo_id=args.repo_id,
            image_size=args.image_size,
            max_failures=args.max_failures,
            use_videos=not args.images,
            environment_state=args.environment_state,
            randomize=[kind for kind in args.randomize.split(",") if kind],
            overwrite=args.overwrite,
            if_missing=args.if_missing,
            num_workers=args.workers,
        )
    except (RecordingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(recording)
    return 0
