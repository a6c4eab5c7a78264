"""Which checkpoints a training makes, which of them are whole, and which one a budget wants."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.clock import Record
from benchmarks.quality.settings import Budget, SettingsError

SAVES = 10
MOST_SAVES = 50


def stride(amounts: Sequence[int]) -> int:
    """Steps between checkpoints: all amounts are multiples of it, and there are about ten of them.

    Raises:
        SettingsError: if the amounts have no such number in common.
    """
    most, common = max(amounts), math.gcd(*amounts)
    fit = [each for each in range(1, common + 1) if common % each == 0 and most / each <= MOST_SAVES]
    if not fit:
        raise SettingsError(
            f"steps={list(amounts)} are all multiples of {common} only, which is {most // common} checkpoints; take "
            "rounder numbers"
        )
    return min(fit, key=lambda each: abs(most / each - SAVES))


def checkpoint_step(record: Record, budget: Budget) -> int:
    """The checkpoint to evaluate for a budget.

    Raises:
        SettingsError: if none was made in that time.
    """
    if budget.kind == "steps":
        return int(budget.amount)
    in_time = [step for step, seconds in record.seconds.items() if seconds <= 60 * budget.amount]
    if not in_time:
        raise SettingsError(
            f"no checkpoint was made within {budget.amount:g} minutes; the first came after "
            f"{min(record.seconds.values(), default=math.inf) / 60:.2f}. Leave that time out of minutes=[...]"
        )
    return max(in_time)


def checkpoints(output: Path) -> list[Path]:
    """Those that are whole, in order: `last` is set when one is written."""
    last = output / "checkpoints" / "last"
    if not last.is_dir():
        return []
    found = (each for each in last.parent.iterdir() if each.name.isdigit() and each.is_dir())
    return sorted(each for each in found if int(each.name) <= int(last.resolve().name))


def last_checkpoint(output: Path, record: Record | None) -> Path | None:
    """The last one that is whole and whose training time is known."""
    known = (
        [] if record is None else [each for each in checkpoints(output) if int(each.name) in record.seconds]
    )
    return known[-1] if known else None
