"""PushT demonstrations: replay the shipped expert actions and record what the simulator shows.

The dataset has the features of `lerobot/pusht`, so that the same commands train on either.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

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

FPS = 10
TASK = "Push the T-shaped block onto the T-shaped target."
IMAGE_SIZE = 96  # pixels; what gym-pusht observes by default, and what lerobot/pusht holds
ARENA = 512.0  # side of the arena, in the simulator's pixels
DEFAULT_ACTIONS = Path(__file__).resolve().parent.parent / "assets" / "pusht_expert_actions.npz"


@dataclass(frozen=True)
class ExpertActions:
    """Open-loop demonstrations: a start and the actions from there.

    Args:
        seeds: (E,) for `env.reset(seed=...)`.
        actions: E arrays (T_e, 2) float32, target positions of the agent in [0, 512]².
    """

    seeds: tuple[int, ...]
    actions: tuple[np.ndarray, ...]

    @classmethod
    def load(cls, path: Path) -> ExpertActions:
        """Read and check an action file (keys `seed`, `length`, `action`, see `assets/README.md`)."""
        try:
            with np.load(path, allow_pickle=False) as file:
                if missing := {"seed", "length", "action"} - set(file.files):
                    raise RecordingError(f"{path} lacks {sorted(missing)}; it has {sorted(file.files)}")
                seed, length, action = file["seed"], file["length"], file["action"]
        except (OSError, ValueError, AttributeError, BadZipFile) as error:  # AttributeError: a single array
            raise RecordingError(f"{path} cannot be read as an action file (.npz): {error}") from error
        if seed.shape != length.shape or action.shape != (length.sum(), 2) or (length < 1).any():
            raise RecordingError(
                f"{path} contradicts itself: seed {seed.shape}, length {length.shape} with sum {length.sum()} "
                f"and minimum {length.min(initial=0)}, action {action.shape}"
            )
        # Written so that NaN is outside, too.
        if outside := int((~((action >= 0) & (action <= ARENA))).any(axis=1).sum()):
            raise RecordingError(f"{path}: {outside} of {len(action)} actions lie outside [0, {ARENA:.0f}]²")
        actions = np.split(action.astype(np.float32), np.cumsum(length)[:-1])
        return cls(tuple(seed.tolist()), tuple(actions))

    def first(self, num_episodes: int | None) -> ExpertActions:
        """The first episodes, or all."""
        available = len(self.seeds)
        if num_episodes is None:
            return self
        if not 1 <= num_episodes <= available:
            raise RecordingError(
                f"{num_episodes} episodes wanted; the action file has 1 to {available} to give"
            )
        return ExpertActions(self.seeds[:num_episodes], self.actions[:num_episodes])


def pusht_features(*, use_videos: bool = True, environment_state: bool = False) -> Features:
    """Features of `lerobot/pusht`, and `observation.environment_state` (16,) on request."""
    motors = {"motors": ["motor_0", "motor_1"]}
    features: Features = {
        "observation.image": camera(IMAGE_SIZE, IMAGE_SIZE, use_videos=use_videos),
        "observation.state": {"dtype": "float32", "shape": (2,), "names": motors},
        "action": {"dtype": "float32", "shape": (2,), "names": motors},
        **outcome_features(),
    }
    if environment_state:
        keypoints = {"keypoints": [f"{axis}{i}" for i in range(8) for axis in "xy"]}
        features["observation.environment_state"] = {"dtype": "float32", "shape": (16,), "names": keypoints}
    return features


def record_pusht(
    root: str | Path | None = None,
    repo_id: str = "local/pusht_expert",
    num_episodes: int | None = None,
    *,
    actions_path: str | Path = DEFAULT_ACTIONS,
    use_videos: bool = True,
    environment_state: bool = False,
    overwrite: bool = False,
    if_missing: bool = False,
    num_workers: int = 0,
    progress: bool = True,
) -> Recording:
    """Replay expert actions in `gym_pusht/PushT-v0` and record a LeRobotDataset v3.

    Args:
        root: folder of the new dataset; None is its place in LeRobot's home.
        repo_id: its name for LeRobot; nothing is uploaded.
        num_episodes: record the first so many; None records all (260).
        actions_path: the action file; the one that ships with the package by default.
        use_videos: AV1 video with LeRobot's default settings; False keeps exact frames as PNG.
        environment_state: also record the 8 corners of the block (x, y in [0, 512]), as gym-pusht's
            `environment_state_agent_pos` observes them.
        overwrite: replace a dataset at `root`.
        if_missing: keep a dataset at `root` if it is whole and of these actions, and return at once.
        num_workers: simulating processes beside this one, which encodes; 0 does all of it here.
        progress: show a progress bar.

    Raises:
        RecordingError: if an episode does not end in success, exactly with its last action.
    """
    actions_path = Path(actions_path)
    expert = ExpertActions.load(actions_path).first(num_episodes)
    check_recorded(max(expert.seeds))
    lengths = [len(actions) for actions in expert.actions]
    plan = Plan(
        root=dataset_root(root, repo_id),
        repo_id=repo_id,
        fps=FPS,
        features=pusht_features(use_videos=use_videos, environment_state=environment_state),
        task=TASK,
        num_episodes=len(lengths),
        num_frames=sum(lengths),
        max_episode_frames=max(lengths),
        origin={"actions_sha256": hashlib.sha256(actions_path.read_bytes()).hexdigest()},
    )
    if there := already_there(plan, overwrite=overwrite, if_missing=if_missing):
        return there
    return write_dataset(plan, _episodes(expert, environment_state, num_workers), progress=progress)


@dataclass(frozen=True)
class _Job:
    """One episode to replay; see `ExpertActions`."""

    index: int
    seed: int
    actions: np.ndarray
    environment_state: bool


def _episodes(expert: ExpertActions, environment_state: bool, num_workers: int) -> Episodes:
    jobs = (
        _Job(index, seed, actions, environment_state)
        for index, (seed, actions) in enumerate(zip(expert.seeds, expert.actions, strict=True))
    )
    return ordered_map(_replay, jobs, num_workers)


@functools.cache
def _environment() -> Any:
    """The simulator as LeRobot evaluates in it, once per process."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # from pygame
            import gym_pusht  # noqa: F401  (registers the environment)
        import gymnasium as gym
    except ImportError as error:
        raise missing_extra("pusht", error) from error
    # No time limit (-1): the action file decides where an episode ends.
    return gym.make(
        "gym_pusht/PushT-v0", obs_type="pixels_agent_pos", max_episode_steps=-1, disable_env_checker=True
    )


def _replay(job: _Job) -> Episode:
    """Replay one episode; error unless it reaches success with its last action and not before."""
    env = _environment()
    pusht = env.unwrapped
    # Rows are (frame, agent position, block corners, reward, done, success).
    rows: list[tuple[Any, ...]] = []
    obs, _ = env.reset(seed=job.seed)
    info: dict[str, Any] = {"is_success": False, "coverage": 0.0}
    for action in job.actions:
        before, corners = obs, pusht.get_keypoints(pusht._block_shapes).flatten()
        obs, reward, terminated, truncated, info = env.step(action)
        done, success = terminated or truncated, bool(info["is_success"])
        rows.append((before["pixels"], before["agent_pos"], corners, [reward], [done], [success]))
        if done:
            break
    if not info["is_success"] or len(rows) != len(job.actions):
        raise RecordingError(
            f"episode {job.index} (seed {job.seed}) does not reproduce: after {len(rows)} of "
            f"{len(job.actions)} actions coverage is {info['coverage']:.4f}, success {bool(info['is_success'])}; "
            f"expected success (coverage > {pusht.success_threshold}) with the last action and not before. Installed: "
            f"{_version('gym-pusht')}, {_version('pymunk')}; the shipped actions were planned in gym-pusht "
            "0.1.8 with pymunk 6.11.1: install those, or use an action file made for these versions."
        )
    frames, positions, corners, rewards, dones, successes = zip(*rows, strict=True)
    columns = {
        "observation.image": np.stack(frames),
        "observation.state": np.asarray(positions, dtype=np.float32),
        "action": job.actions,
        "next.reward": np.asarray(rewards, dtype=np.float32),
        "next.done": np.asarray(dones, dtype=bool),
        "next.success": np.asarray(successes, dtype=bool),
    }
    if job.environment_state:
        columns["observation.environment_state"] = np.asarray(corners, dtype=np.float32)
    return Episode(columns, TASK)


def _version(distribution: str) -> str:
    return f"{distribution} {importlib.metadata.version(distribution)}"


def main(argv: list[str] | None = None) -> int:
    """Command line of `record_pusht`."""
    parser = argparse.ArgumentParser(
        description="Record PushT demonstrations as a LeRobotDataset v3, by replaying the shipped expert actions."
    )
    add_arguments(parser, episodes=None, workers=min(2, os.cpu_count() or 1))
    parser.add_argument("--actions", type=Path, default=DEFAULT_ACTIONS, help="another action file (.npz)")
    args = parser.parse_args(argv)
    try:
        recording = record_pusht(
            args.root,
            args.repo_id or "local/pusht_expert",
            args.episodes,
            actions_path=args.actions,
            use_videos=not args.images,
            environment_state=args.environment_state,
            overwrite=args.overwrite,
            if_missing=args.if_missing,
            num_workers=args.workers,
        )
    except (RecordingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(recording)
    return 0
