"""What this project wants to reach on Push-T, and whether it did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from benchmarks.quality.intervals import bootstrap_mean, overlap
from benchmarks.quality.rows import Row

SHIPPED = "theia-tiny-sim"
"""The encoder that comes with this project."""
MINUTES = 120
CORES = 2
SUCCESS = 0.5
REWARD = 0.9
SEEDS = 3
"""Of training, for a row that is shown first."""
RAW = ("act", "diffusion")
"""LeRobot's policies, whose success on raw RGB is to be reached."""
MEASURES = {
    "success": ("successes", "success_rate", "success_interval"),
    "mean max reward": ("max_rewards", "mean_max_reward", "mean_max_reward_interval"),
}
"""By name: where episodes, mean and interval of it are."""
Cell = tuple[float, float, int, int, str]
"""What rows that are compared have in common: budget, training's budget, demonstrations, recorded ones and, after the same time, machine."""


@dataclass(frozen=True)
class Aim:
    """`met` is None where it was not measured."""

    what: str
    found: str
    met: bool | None
    but: str = ""
    """What else a reader has to know of the verdict."""


@dataclass(frozen=True)
class Lower:
    """A measure in which one row is below another."""

    measure: str
    interval: tuple[float, float] | None
    """Of the difference, 95 %, where both began from the same starts."""
    overlap: bool
    """Of their own intervals."""

    @property
    def by_chance(self) -> bool:
        """The interval reaches 0; where there is none, their own intervals overlap."""
        return self.overlap if self.interval is None else self.interval[1] >= 0


def aims(rows: Sequence[Row]) -> list[Aim]:
    """Of rows of all machines, those after the same number of steps pooled."""
    pusht = [row for row in rows if row["suite"] == "pusht"]
    ours = [row for row in pusht if row["encoder"] == SHIPPED]
    raw = [row for row in pusht if row["encoder"] is None and row["policy"] in RAW
           and "observation.image" in row["flags"]["input_features"]]  # fmt: skip
    in_time = [row for row in ours if row.minutes <= MINUTES and row.cores <= CORES]
    # One policy has to have both: of those with enough seeds, the one whose lesser share of its target is the largest.
    best = max(
        in_time,
        key=lambda row: (
            min(row.seeds, SEEDS),
            min(row.success / SUCCESS, row.mean_max_reward / REWARD),
        ),
        default=None,
    )
    return [
        at_least(best, "success rate", attrgetter("success"), SUCCESS, "{:.1%}"),
        at_least(best, "mean max reward", attrgetter("mean_max_reward"), REWARD, "{:.3f}"),
        not_below(ours, raw, "minutes", "after the same time", best),
        not_below(ours, raw, "steps", "after the same number of steps", best),
    ]


def at_least(row: Row | None, name: str, of: Callable[[Row], float], target: float, form: str) -> Aim:
    what = f"{name} of at least {form.format(target)} with {SHIPPED}, {CORES} cores, at most {MINUTES} minutes of training"
    if row is None:
        return Aim(what, "not measured", None)
    return Aim(what, f"{form.format(of(row))} ({describe(row)})", of(row) >= target)


def not_below(ours: Sequence[Row], raw: Sequence[Row], kind: str, when: str, leader: Row | None) -> Aim:
    """At the largest budget that both had with as many demonstrations, our best against each of theirs, neither in success
    nor in reward, or no further than chance. Of a time, on each machine that had it. Encoding is not in the time, but said.

    The best here need not be the `leader`, the row that stands for the first aims. Where it is not, and the leader's arm is
    below one of theirs, that is said, too."""
    what = f"not below LeRobot's policies on raw RGB {when}"

    mine, theirs = cells(ours, kind), cells(raw, kind)
    if not (common := mine.keys() & theirs.keys()):
        return Aim(what, "not measured", None)
    *largest, _ = max(common)
    compared = [(mine[cell], theirs[cell]) for cell in sorted(common) if [*cell[:-1]] == largest]
    found = [
        f"{outcome(best)} against {' and '.join(map(outcome, others))}" for (best, *_), others in compared
    ]
    below = [each for (best, *_), others in compared for other in others for each in lower(best, other)]
    missing = sorted({*RAW} - {other["policy"] for _, others in compared for other in others})
    but = [said(each) for each in below] + [f"`{each}` on raw RGB was not measured" for each in missing]
    but += [
        f"`{row['arm']}`, of the first rows, is {' and '.join(map(said, lowers))} than `{other['arm']}`"
        for (best, *rest), others in compared
        for row in rest
        if leader is not None and best["arm"] != leader["arm"] == row["arm"]
        for other in others
        if (lowers := lower(row, other))
    ]
    return Aim(what, "; ".join(found), all(each.by_chance for each in below), "; ".join(but))


def cells(rows: Sequence[Row], kind: str) -> dict[Cell, list[Row]]:
    """Those with budgets of a kind, by what they have in common, the best first."""
    found: dict[Cell, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (-row.success, -row.mean_max_reward)):
        if row.budget.kind == kind:
            cell = (row.budget.amount, row.budget.of, row["demonstrations"], row["recorded"], row.timed_on)
            found.setdefault(cell, []).append(row)
    return found


def lower(row: Row, other: Row) -> list[Lower]:
    """The measures in which it is.

    All policies meet the same starts, and what is hard for one is hard for the other. So the difference of each start counts:
    two intervals may overlap where the difference is beyond chance.
    """
    found = []
    for measure, (episodes, mean, interval) in MEASURES.items():
        if row.summary[mean] >= other.summary[mean]:
            continue
        overlaps = overlap(row.summary[interval], other.summary[interval])
        if row.starts != other.starts:
            found.append(Lower(measure, None, overlaps))
            continue
        mine, theirs = (
            np.mean([each["evaluation"][episodes] for each in one.results], axis=0) for one in (row, other)
        )
        found.append(Lower(measure, bootstrap_mean((mine - theirs).tolist()), overlaps))
    return found


def said(each: Lower) -> str:
    """`lower in success by 2.0 to 12.0 points on the same starts, though the intervals overlap`"""
    if each.interval is None:
        return f"lower in {each.measure}" + (", the intervals overlap" if each.overlap else "")
    scale, form, unit = (100, ".1f", " points") if each.measure == "success" else (1, ".3f", "")
    least, most = (f"{0.0 - scale * end:{form}}" for end in reversed(each.interval))
    text = f"lower in {each.measure} by {least} to {most}{unit} on the same starts"
    if each.by_chance:
        return f"{text}, which may be chance"
    return f"{text}, though the intervals overlap" if each.overlap else text


def outcome(row: Row) -> str:
    encoding = f" and {row.encoding} of encoding" if row.encoding else ""
    return (
        f"{row.success:.1%}, {row.mean_max_reward:.3f} ({describe(row)}, {row.minutes:.1f} minutes{encoding})"
    )


def describe(row: Row) -> str:
    outdated = f", with {row.outdated} than today" if row.outdated else ""
    return (
        f"{row['arm']}, {row.demonstrations} demonstrations, {row.budget}, {row.seeds} seed(s), {row.machine}"
        f"{outdated}"
    )
