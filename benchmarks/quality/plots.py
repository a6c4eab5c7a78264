"""Success against steps, demonstrations and, on each machine, time; one picture per suite."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.pages import pyplot
from benchmarks.quality.intervals import wilson
from benchmarks.quality.rows import Row
from benchmarks.quality.rows import rows as rows_of
from benchmarks.quality.settings import digest

LEGEND_CHARACTERS = 210
"""In a line of the legend, with eight for each sign and space."""
Point = tuple[float, Row]


def draw(rows: Sequence[Row], path: Path) -> None:
    """A PNG of a panel for steps, one for demonstrations, and one for the time on each machine; a panel without results says
    so."""
    plt = pyplot()
    pooled = rows_of([result for row in rows for result in row.results], pool=True)
    most = max(row["demonstrations"] for row in rows)
    full = [row for row in pooled if row["demonstrations"] == most]
    panels: list[tuple[str, list[Row], Callable[[Row], float]]] = [
        (f"steps ({most} demonstrations)", [row for row in full if row.budget.kind == "steps"], lambda row: row.steps),
        *[(name, shown, lambda row: row["demonstrations"]) for name, shown in by_demonstrations(pooled)],
    ]  # fmt: skip
    in_time = [row for row in full if row.budget.kind == "minutes"]
    for machine in sorted({row.machine for row in in_time}) or [""]:
        name = f"minutes of training ({most} demonstrations){f', {machine}' if machine else ''}"
        panels.append((name, [row for row in in_time if row.machine == machine], lambda row: row.minutes))
    labels = sorted({label(alike) for alike in groups(pooled)})
    colours = {
        each: plt.get_cmap("tab10" if len(labels) <= 10 else "tab20")(number % 20)
        for number, each in enumerate(labels)
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.6), sharey=True)
    for axis, (name, shown, of) in zip(axes, panels, strict=True):
        axis.set_xlabel(name, fontsize=8)
        axis.set_ylim(-0.02, 1.02)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        if shown:
            axis.set_xlim(0, 1.05 * max(map(of, shown)))
        else:
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes, fontsize=8)
        for each, points in lines(shown, of).items():
            xs, ys, below, above = zip(*points, strict=True)
            axis.errorbar(
                xs,
                ys,
                yerr=[below, above],
                label=each,
                color=colours[each],
                marker="o",
                ms=3,
                lw=1,
                capsize=2,
            )
    axes[0].set_ylabel("success rate, 95 %", fontsize=8)
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    columns = max(1, min(4, LEGEND_CHARACTERS // max(len(each) + 8 for each in labels)))
    figure.legend(
        list(handles.values()), list(handles), loc="lower center", ncol=columns, fontsize=7, frameon=False
    )
    figure.tight_layout(rect=(0, 0.06 + 0.05 * math.ceil(len(handles) / columns), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without date and version, the same numbers give the same file.
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def lines(
    rows: Sequence[Row], of: Callable[[Row], float]
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Per arm, scene and tasks: (x, success rate, down to the interval's lower end, up to its upper). The rate of several tasks
    is the mean of theirs."""
    found: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for alike in groups(rows):
        rate = statistics.mean(row.success for row in alike)
        episodes = sum(row.independent_episodes for row in alike)
        low, high = wilson(rate * episodes, episodes)
        found[label(alike)].append((statistics.mean(map(of, alike)), rate, rate - low, high - rate))
    return {name: sorted(points) for name, points in found.items()}


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in nothing but the task."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[digest(row.results[0]["settings"], but=("seed", "task")), row.timed_on].append(row)
    return list(found.values())


def label(alike: Sequence[Row]) -> str:
    """Arm, scene, and of which tasks, as far as that is not clear."""
    row = alike[0]
    tasks = "" if row["suite"] == row["task"] else row["task"] if len(alike) == 1 else f"{len(alike)} tasks"
    scene = "" if row.scene == "plain" else f"{row.scene} scene"
    said = ", ".join(filter(None, (tasks, scene, row.of_recorded)))
    return f"{row['arm']}{f' ({said})' if said else ''}"


def by_demonstrations(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """A panel's name and rows for steps, and for the time on each machine: of the budgets with more than one number of
    demonstrations, the largest. If there is none, one panel without rows."""
    at: dict[tuple[str, str], dict[tuple[float, float], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        at[row.budget.kind, row.timed_on][row.budget.of, row.budget.amount].append(row)
    panels = []
    for (kind, machine), budgets in sorted(at.items(), reverse=True):
        several = [each for each in budgets if len({row["demonstrations"] for row in budgets[each]}) > 1]
        if several:
            _, amount = largest = max(several)
            where = f", {machine}" if machine else ""
            panels.append((f"demonstrations ({amount:,g} {kind}{where})", budgets[largest]))
    return panels or [("demonstrations", [])]
