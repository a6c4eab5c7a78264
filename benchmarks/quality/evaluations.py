"""What lerobot-eval found, episode by episode."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.intervals import bootstrap_mean, independent, wilson

KEPT_VIDEOS = 2
"""Of successes, and of failures. lerobot-eval films the first ten episodes."""


STUCK_BELOW = 0.1
"""Best reward of an episode in which the policy has not come to move the block towards its goal."""


class EvaluationError(RuntimeError):
    """The file that lerobot-eval wrote is not what was asked for."""


def read(output: Path, episodes: int, first_seed: int) -> dict[str, Any]:
    """Reward, success and seed of each episode, from `eval_info.json`, and what follows from them.

    Raises:
        EvaluationError: if it has another number of episodes.
    """
    info = json.loads((output / "eval_info.json").read_text())
    (task,) = info["per_task"]
    rewards, successes = task["metrics"]["max_rewards"], task["metrics"]["successes"]
    if not len(rewards) == len(successes) == episodes:
        raise EvaluationError(
            f"{output}/eval_info.json has {len(rewards)} rewards and {len(successes)} successes; wanted {episodes} episodes"
        )
    return {
        **summary([rewards], [successes]),
        "seconds": info["overall"]["eval_s"],
        "max_rewards": rewards,
        "successes": [int(each) for each in successes],
        # lerobot-eval gives each episode the next seed.
        "seeds": list(range(first_seed, first_seed + episodes)),
    }


def summary(rewards: Sequence[Sequence[float]], successes: Sequence[Sequence[bool | int]]) -> dict[str, Any]:
    """Rates with their 95 % intervals: Wilson's of success, bootstrap of the mean of each episode's best reward; and
    the share of episodes that got stuck before they did anything useful.

    Args:
        rewards, successes: (S, n) of S policies, each from the same n starts. Intervals are of the starts.
    """
    best, won = np.asarray(rewards, dtype=np.float64), np.asarray(successes, dtype=np.float64)
    rate, episodes = float(won.mean()), independent(won)
    return {
        "episodes": won.size,
        "success_rate": rate,
        "success_interval": list(wilson(rate * episodes, episodes)),
        "mean_max_reward": float(best.mean()),
        "mean_max_reward_interval": list(bootstrap_mean(best.mean(axis=0).tolist())),
        "stuck": float((best < STUCK_BELOW).mean()),
    }


def keep_videos(output: Path, into: Path) -> dict[str, list[str]]:
    """Copy a few successes and failures; their names. A kind that was not filmed has none."""
    info = json.loads((output / "eval_info.json").read_text())
    (task,) = info["per_task"]
    kept: dict[str, list[str]] = {"successes": [], "failures": []}
    into.mkdir(parents=True, exist_ok=True)
    for number, (video, success) in enumerate(
        zip(task["metrics"]["video_paths"], task["metrics"]["successes"], strict=False)
    ):
        kind = "successes" if success else "failures"
        if len(kept[kind]) < KEPT_VIDEOS:
            name = f"{'success' if success else 'failure'}-{number}.mp4"
            shutil.copyfile(video, into / name)
            kept[kind].append(name)
    return kept
