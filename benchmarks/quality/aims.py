"""What this project wants to reach on Push-T, and whether it did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from benchmarks.quality.intervals import overlap
from benchmarks.quality.rows import Row

SHIPPED = "theia-tiny-sim"
"""The encoder that comes with this project."""
MINUTES = 120
CORES = 2
SUCCESS = 0.5
REWARD = 0.9
SEEDS = 3
"""Of training, for a row that is shown first."""
Cell = tuple[float, float, int, str]
"""What rows that are compared have in common: budget, training's budget, demonstrations and, after the same time, machine."""


@dataclass(frozen=True)
class Aim:
    """`met` is None where it was not measured; `narrowly`, if only since intervals overlap."""

    what: str
    found: str
    met: bool | None
    narrowly: bool = False


def aims(rows: Sequence[Row]) -> list[Aim]:
    """Of rows of all machines."""
    pusht = [row for row in rows if row["suite"] == "pusht"]
    ours = [row for row in pusht if row["encoder"] == SHIPPED]
    raw = [row for row in pusht if row["encoder"] is None and row["policy"] in ("act", "diffusion")
           and "observation.image" in row["flags"]["input_features"]]  # fmt: skip
    in_time = [row for row in ours if row.minutes <= MINUTES and row.results[0]["machine"]["cores"] <= CORES]
    # One policy has to have both: of those with enough seeds, the one whose lesser share of its target is the largest.
    best = max(
        in_time,
        key=lambda row: (
            min(len(row.results), SEEDS),
            min(row.success / SUCCESS, row.mean_max_reward / REWARD),
        ),
        default=None,
    )
    return [
        at_least(best, "success rate", attrgetter("success"), SUCCESS, "{:.1%}"),
        at_least(best, "mean max reward", attrgetter("mean_max_reward"), REWARD, "{:.3f}"),
        not_below(ours, raw, "minutes", "after the same time"),
        not_below(ours, raw, "steps", "after the same number of steps"),
    ]


def at_least(row: Row | None, name: str, of: Callable[[Row], float], target: float, form: str) -> Aim:
    what = f"{name} of at least {form.format(target)} with {SHIPPED}, {CORES} cores, at most {MINUTES} minutes of training"
    if row is None:
        return Aim(what, "not measured", None)
    return Aim(what, f"{form.format(of(row))} ({describe(row)})", of(row) >= target)


def not_below(ours: Sequence[Row], raw: Sequence[Row], kind: str, when: str) -> Aim:
    """At the largest budget that both had with as many demonstrations, our best against each of theirs, neither in success
    nor in reward; intervals may overlap. Of a time, on each machine that had it. Encoding is not in the time, but said."""
    what = f"not below LeRobot's policies on raw RGB {when}"

    mine, theirs = cells(ours, kind), cells(raw, kind)
    if not (common := mine.keys() & theirs.keys()):
        return Aim(what, "not measured", None)
    *largest, _ = max(common)
    compared = [(mine[cell][0], theirs[cell]) for cell in sorted(common) if [*cell[:-1]] == largest]
    found = [f"{outcome(best)} against {' and '.join(map(outcome, others))}" for best, others in compared]
    pairs = [(best, each) for best, others in compared for each in others]
    met = all(is_not_below(best, each, within=True) for best, each in pairs)
    narrowly = met and not all(is_not_below(best, each, within=False) for best, each in pairs)
    return Aim(what, "; ".join(found), met, narrowly)


def cells(rows: Sequence[Row], kind: str) -> dict[Cell, list[Row]]:
    """Those with budgets of a kind, by what they have in common, the best first."""
    found: dict[Cell, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (-row.success, -row.mean_max_reward)):
        if row.budget.kind == kind:
            cell = (row.budget.amount, row.budget.of, row["demonstrations"], row.timed_on)
            found.setdefault(cell, []).append(row)
    return found


def is_not_below(row: Row, other: Row, *, within: bool) -> bool:
    """In success and in reward, or `within` their intervals."""
    measures = (("success_rate", "success_interval"), ("mean_max_reward", "mean_max_reward_interval"))
    mine, theirs = row.summary, other.summary
    return all(
        mine[value] >= theirs[value] or (within and overlap(mine[interval], theirs[interval]))
        for value, interval in measures
    )


def outcome(row: Row) -> str:
    encoding = f" and {row.encoding} of encoding" if row.encoding else ""
    return (
        f"{row.success:.1%}, {row.mean_max_reward:.3f} ({describe(row)}, {row.minutes:.1f} minutes{encoding})"
    )


def describe(row: Row) -> str:
    outdated = f", with {row.outdated} than today" if row.outdated else ""
    return (
        f"{row['arm']}, {row['demonstrations']} demonstrations, {row.budget}, {len(row.results)} seed(s), {row.machine}"
        f"{outdated}"
    )
