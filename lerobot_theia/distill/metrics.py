"""Losses of a training: summed between two lines of the log, and the log itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot_theia.cache.files import publish
from lerobot_theia.distill.validate import Score, TeacherScore

METRICS_FILE = "metrics.jsonl"


@dataclass
class Tally:
    """Sums of losses since the last line of the log."""

    steps: int = 0
    images: int = 0
    loss: float = 0.0
    teachers: dict[str, list[float]] = field(default_factory=dict)

    def add(self, loss: float, batch_size: int, losses: Mapping[str, tuple[float, float]]) -> None:
        self.steps += 1
        self.images += batch_size
        self.loss += loss
        for name, (cosine, smooth_l1) in losses.items():
            sums = self.teachers.setdefault(name, [0.0, 0.0, 0.0])
            for i, value in enumerate((cosine, smooth_l1, 1.0)):
                sums[i] += value

    def means(self) -> dict[str, Any]:
        return {
            "loss": self.loss / self.steps,
            "teachers": {
                name: {"cosine": cosine / steps, "smooth_l1": smooth_l1 / steps}
                for name, (cosine, smooth_l1, steps) in self.teachers.items()
            },
        }


class MetricsLog:
    """One JSON object per line; resuming drops the lines of steps that will be taken again."""

    def __init__(self, path: Path, step: int, write: bool) -> None:
        self.path, self._write = path, write
        self.lines: list[dict[str, Any]] = []
        if path.is_file():
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    break  # cut off in the middle of a line
                if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                    break  # not what was written
                if line["step"] <= step and step > 0:
                    self.lines.append(line)
        if write:
            publish(path, [(json.dumps(line) + "\n").encode() for line in self.lines])

    def write(self, line: Mapping[str, Any]) -> None:
        self.lines.append(dict(line))
        if self._write:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def score_of(self, step: int) -> Score | None:
        for line in self.lines:
            if line["step"] == step and "validation" in line:
                return score_of(line["validation"])
        return None


def score_of(found: Mapping[str, Any]) -> Score:
    teachers = {name: TeacherScore(**score) for name, score in found["teachers"].items()}
    return Score(found["loss"], found["size"], found["images"], teachers)
