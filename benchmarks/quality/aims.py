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


@dataclass(frozen=True)
class Aim:
    """`met` is None where it was not measured."""

    what: str
    found: str
    met: bool | None


def aims(rows: Sequence[Row]) -> list[Aim]:
    """Of one machine's rows."""
    pusht = [row for row in rows if row["suite"] == "pusht"]
    ours = [row for row in pusht if row["encoder"] == SHIPPED]
    raw = [row for row in pusht if row["encoder"] is None and row["policy"] in ("act", "diffusion")
           and "observation.image" in row["flags"]["input_features"]]  # fmt: skip
    in_time = [row for row in ours if row.minutes <= MINUTES and row.results[0]["machine"]["cores"] <= CORES]
    # One policy has to have both: the one whose lesser share of its target is the largest.
    best = max(
        in_time, key=lambda row: min(row.success / SUCCESS, row.mean_max_reward / REWARD), default=None
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
    nor in reward; intervals may overlap. Encoding is not in the time, but said."""
    what = f"not below LeRobot's policies on raw RGB {when}"

    def cells(rows: Sequence[Row]) -> dict[tuple[float, float, int], list[Row]]:
        """Rows by budget, training's budget and demonstrations, the best first."""
        found: dict[tuple[float, float, int], list[Row]] = {}
        for row in sorted(rows, key=lambda row: (-row.success, -row.mean_max_reward)):
            if row.budget.kind == kind:
                found.setdefault((row.budget.amount, row.budget.of, row["demonstrations"]), []).append(row)
        return found

    mine, theirs = cells(ours), cells(raw)
    if not (common := mine.keys() & theirs.keys()):
        return Aim(what, "not measured", None)
    best, others = mine[max(common)][0].summary, [row.summary for row in theirs[max(common)]]
    measures = (("success_rate", "success_interval"), ("mean_max_reward", "mean_max_reward_interval"))
    met = all(
        best[value] >= other[value] or overlap(best[interval], other[interval])
        for other in others
        for value, interval in measures
    )
    results = [
        f"{row.success:.1%}, {row.mean_max_reward:.3f} ({describe(row)}, {row.minutes:.1f} minutes"
        f"{f' and {row.encoding} of encoding' if row.encoding else ''})"
        for row in (mine[max(common)][0], *theirs[max(common)])
    ]
    return Aim(what, f"{results[0]} against {' and '.join(results[1:])}", met)


def describe(row: Row) -> str:
    outdated = f", with {row.outdated} than today" if row.outdated else ""
    return f"{row['arm']}, {row['demonstrations']} demonstrations, {row.budget}, {len(row.results)} seed(s){outdated}"
