"""lerobot-train with a stopwatch: where each step's time goes.

    python benchmarks/stopwatch.py --policy.type=theia_act ...      # flags as for lerobot-train

Three functions that LeRobot's training script calls by name are timed. A step begins where the last one ended: it asks the
loader for a batch (waiting), makes the batch what the policy takes (preprocessing: frames to float, normalisation, transfer
to the device), and updates the policy. On a GPU the work of each is waited for. At the end it prints `STOPWATCH` and JSON.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lerobot.scripts import lerobot_train

PREFIX = "STOPWATCH "


class Stopwatch:
    """Seconds of each step by what they were spent on, and the most memory that tensors took on the GPU."""

    def __init__(self) -> None:
        self.waiting: list[float] = []
        self.preprocessing: list[float] = []
        self.update: list[float] = []
        self.peak_bytes = 0
        self._since = 0.0

    def lap(self) -> float:
        """Seconds since the last lap, with what was sent to the GPU done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        elapsed, self._since = now - self._since, now
        return elapsed

    def batches(self, cycle: Callable[[Any], Iterator]) -> Callable[[Any], Iterator]:
        def timed(loader: Any) -> Iterator:
            self.lap()
            for batch in cycle(loader):
                self.waiting.append(self.lap())
                yield batch

        return timed

    def processors(self, make: Callable[..., tuple]) -> Callable[..., tuple]:
        def timed(*args: Any, **kwargs: Any) -> tuple:
            preprocessor, postprocessor = make(*args, **kwargs)
            return TimedProcessor(preprocessor, self), postprocessor

        return timed

    def updates(self, update_policy: Callable[..., tuple]) -> Callable[..., tuple]:
        def timed(*args: Any, **kwargs: Any) -> tuple:
            done = update_policy(*args, **kwargs)
            self.update.append(self.lap())
            if torch.cuda.is_available():
                # LeRobot begins each update with a reset of this.
                self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated())
            return done

        return timed

    def to_json(self) -> dict[str, Any]:
        return {
            "waiting_s": self.waiting, "preprocessing_s": self.preprocessing, "update_s": self.update,
            "peak_bytes": self.peak_bytes,
        }  # fmt: skip


class TimedProcessor:
    """A processor pipeline. The lap that it ends began when the loader gave the batch."""

    def __init__(self, pipeline: Any, stopwatch: Stopwatch) -> None:
        self._pipeline, self._stopwatch = pipeline, stopwatch

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        processed = self._pipeline(batch)
        self._stopwatch.preprocessing.append(self._stopwatch.lap())
        return processed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


def main() -> None:
    stopwatch = Stopwatch()
    for name, timed in {
        "cycle": stopwatch.batches,
        "make_pre_post_processors": stopwatch.processors,
        "update_policy": stopwatch.updates,
    }.items():
        setattr(lerobot_train, name, timed(getattr(lerobot_train, name)))
    lerobot_train.main()
    print(PREFIX + json.dumps(stopwatch.to_json()), flush=True)


if __name__ == "__main__":
    main()
