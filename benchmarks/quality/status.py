"""What is done and left of a plan, and about how long the rest takes."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.quality.results import Results
from benchmarks.quality.settings import Experiment, Training


def status(plan: Sequence[Training], results: Results, episodes: int) -> str:
    """A line per training, and one for all."""
    done = results.all()
    lines, known, unknown = [], 0.0, 0
    for training in plan:
        everything = training.experiments(episodes)
        left = results.unfinished(everything)
        seconds = estimate(training, left, done)
        known += seconds or 0.0
        unknown += seconds is None
        state = f"{len(everything) - len(left)} of {len(everything)} done"
        if left:
            state += ", time unknown" if seconds is None else f", about {duration(seconds)} left"
        taken = [differing for each in left if (differing := results.in_the_way(each))]
        if taken:
            state += f"; in the way is what was measured with {'; '.join(taken)}: needs replace=true"
        lines.append(f"{training.name}: {state}")
    total = f"left: about {duration(known)}"
    if unknown:
        total += f", and {unknown} training(s) of whose kind none was measured here"
    return "\n".join([*lines, total])


def estimate(training: Training, left: Sequence[Experiment], done: Sequence[dict[str, Any]]) -> float | None:
    """Seconds to train and evaluate, from results in this suite on this machine; None if they say nothing of training.

    A training that is under way counts as if it had not begun. Until an evaluation was timed, evaluating counts as nothing.
    """
    if not left:
        return 0.0
    suite = [each for each in done if each["settings"]["suite"] == training.suite.name]
    same = [each for each in suite if each["settings"]["arm"] == training.settings["arm"]]
    per_episode = [each["evaluation"]["seconds"] / each["evaluation"]["episodes"] for each in same or suite]
    per_step = [each["training"]["seconds"] / each["training"]["steps"] for each in same]
    if training.kind == "steps" and not per_step:
        return None
    evaluating = sum(each.episodes for each in left) * statistics.median(per_episode or [0.0])
    if training.kind == "minutes":
        return 60 * training.most + evaluating
    return training.most * statistics.median(per_step) + evaluating


def duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
