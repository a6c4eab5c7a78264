"""How far a training is and how long it has trained, read off what lerobot-train prints.

The clock starts where LeRobot's loop does: imports, opening the dataset and building the policy do not count; loading of
batches, updates and checkpoints do.
"""

import dataclasses
import json
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot_theia.cache.files import publish

BEGAN = "Start offline training"
SAVING = re.compile(r"Checkpoint policy after step (\d+)")
LOSS = re.compile(r" loss:(\S+)")
SETTLE_S = 5.0
"""From the first step on: caches fill, loader workers come up."""
STEPS = re.compile(r"Training:[^|\n]*\|[^|\n]*\| *(\d+)/\d+ ")


@dataclass
class Record:
    """What is known of a training, kept beside its checkpoints so that it can be resumed."""

    steps: int
    """Steps of the whole training."""
    save_every: int
    seconds: dict[int, float] = field(default_factory=dict)
    """Training time at each checkpoint's step."""
    losses: dict[int, float] = field(default_factory=dict)
    """Mean of the last logged stretch before each checkpoint."""
    interruptions: int = 0
    cores_used_by_others: float | None = None
    """While the last run of it trained: how far to trust the times."""
    out_of_time: bool = False
    """The clock ended it before its last step."""
    finished: bool = False
    machine: str = ""
    """Whose times these are; empty if it was begun before this was noted."""
    begun: dict[str, Any] = field(default_factory=dict)
    """Date, versions and code when it began: an evaluation may come later."""
    resumed_with: list[dict[str, Any]] = field(default_factory=list)
    """The same each time when it went on with other versions or code than before."""

    def goes_on_with(self, now: dict[str, Any]) -> None:
        """Note that it was interrupted, and what it goes on with if that is not what it had."""
        self.interruptions += 1
        before = self.resumed_with[-1] if self.resumed_with else self.begun
        if any(before.get(name) != now[name] for name in ("versions", "code")):
            self.resumed_with.append(now)

    @classmethod
    def load(cls, path: Path) -> "Record | None":
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        for name in ("seconds", "losses"):
            found[name] = {int(step): each for step, each in found[name].items()}
        return cls(**found)

    def save(self, path: Path) -> None:
        publish(path, [json.dumps(dataclasses.asdict(self), indent=1).encode()])

    def keep(self, steps: Collection[int]) -> None:
        """Drop what is known of checkpoints at other steps."""
        for kept in (self.seconds, self.losses):
            for each in kept.keys() - set(steps):
                del kept[each]

    def forget_after(self, step: int) -> None:
        """Drop what is known of later checkpoints: they are made again."""
        self.keep([each for each in self.seconds if each <= step])


class Clock:
    """Watches one run of lerobot-train: give it what is printed.

    Args:
        record: is filled and saved to `path` at each checkpoint.
        before: training seconds of earlier runs, up to the checkpoint that this one began with.
        limit_s: training time after which `__call__` says stop; None never does.
    """

    def __init__(
        self, record: Record, path: Path, *, before: float = 0.0, limit_s: float | None = None
    ) -> None:
        self.record, self.path, self.before, self.limit_s = record, path, before, limit_s
        self.began: float | None = None
        self._unread = ""
        self._loss: float | None = None

    @property
    def seconds(self) -> float:
        return self.before + (0.0 if self.began is None else time.monotonic() - self.began)

    def __call__(self, printed: str) -> bool:
        *lines, self._unread = (self._unread + printed).split("\n")
        for line in lines:
            if BEGAN in line:
                self.began = time.monotonic()
            if found := LOSS.search(line):
                self._loss = float(found[1])
            if found := SAVING.search(line):
                self._saved(int(found[1]))
        done = self.record.steps in self.record.seconds  # ending takes a moment, too
        if self.limit_s is not None and self.seconds >= self.limit_s and not done:
            self.record.out_of_time = True
        return self.record.out_of_time

    def _saved(self, step: int) -> None:
        self.record.seconds[step] = self.seconds
        if self._loss is not None:
            self.record.losses[step] = self._loss
        self.record.save(self.path)


class Rate:
    """Measures steps per second for `measure_s`, then says stop. The time until things settled does not count."""

    def __init__(self, *, measure_s: float) -> None:
        self.measure_s = measure_s
        self.points: list[tuple[float, int]] = []
        """(time, step) each time a step was done."""
        self._unread = ""

    def __call__(self, printed: str) -> bool:
        # The bar's last state has no end of line; what is after the last separator may be incomplete.
        *parts, self._unread = re.split(r"[\r\n]", self._unread + printed)
        found = [int(step[1]) for part in parts if (step := STEPS.search(part))]
        if found and (not self.points or found[-1] > self.points[-1][1]):
            self.points.append((time.monotonic(), found[-1]))
        return bool(self.counted) and self.counted[-1][0] - self.counted[0][0] >= self.measure_s

    @property
    def counted(self) -> list[tuple[float, int]]:
        """Those after `SETTLE_S`."""
        first = next((when for when, step in self.points if step > 0), None)
        return [] if first is None else [each for each in self.points if each[0] >= first + SETTLE_S]

    @property
    def per_s(self) -> float:
        """Raises ValueError if there was no time to measure."""
        if len(self.counted) < 2:
            raise ValueError("no two steps to measure a rate between")
        (began, first), (ended, last) = self.counted[0], self.counted[-1]
        return (last - first) / (ended - began)
