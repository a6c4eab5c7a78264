"""Run lerobot-train as users do, and read speed off its log, or off a stopwatch inside it."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

LINE = re.compile(r"updt_s:([\d.]+) data_s:([\d.]+)")
NOT_COMPILED = "compile_model: not compiled"
STOPWATCH = Path(__file__).with_name("stopwatch.py")


@dataclass(frozen=True)
class Steps:
    """Seconds per step, averages over each logged stretch; warm-up left out."""

    update_s: list[float]
    data_s: list[float]

    @property
    def per_s(self) -> float:
        """Steps per second, over all of them."""
        return len(self.update_s) / (sum(self.update_s) + sum(self.data_s))

    @property
    def waiting(self) -> float:
        """Share of a step spent waiting for data."""
        return sum(self.data_s) / (sum(self.update_s) + sum(self.data_s))


@dataclass(frozen=True)
class TimedSteps:
    """Seconds of each step, by what they were spent on; warm-up left out. From `stopwatch.py`."""

    waiting_s: list[float]
    preprocessing_s: list[float]
    update_s: list[float]
    peak_bytes: int
    """Most memory that tensors took on the GPU; 0 on a CPU."""

    @classmethod
    def from_log(cls, log: str, warm_up: int) -> Self:
        (line,) = re.findall(r"STOPWATCH (\{.*\})", log)
        found: dict[str, Any] = json.loads(line)
        return cls(**{name: each[warm_up:] if name.endswith("_s") else each for name, each in found.items()})

    def __len__(self) -> int:
        return len(self.update_s)

    def stretches(self, number: int) -> "list[TimedSteps]":
        """The run in `number` parts of about as many steps."""
        bounds = [round(i * len(self) / number) for i in range(number + 1)]
        return [self.part(start, stop) for start, stop in itertools.pairwise(bounds)]

    def part(self, start: int, stop: int) -> "TimedSteps":
        parts = (self.waiting_s, self.preprocessing_s, self.update_s)
        return TimedSteps(*(part[start:stop] for part in parts), peak_bytes=self.peak_bytes)

    @property
    def per_s(self) -> float:
        """Steps per second, over all of them."""
        return len(self) / (sum(self.waiting_s) + sum(self.preprocessing_s) + sum(self.update_s))


def train(
    output: Path, dataset: Path, repo_id: str, *flags: str, steps: int, log_every: int, warm_up: int = 1
) -> Steps:
    """Train for `steps` steps; the first `warm_up` log lines do not count. Raises with the log's end on failure."""
    program = [str(Path(sys.executable).parent / "lerobot-train")]
    log = run(program, output, dataset, repo_id, *flags, f"--steps={steps}", f"--log_freq={log_every}")
    lines = LINE.findall(log)[warm_up:]
    if not lines:
        raise RuntimeError(f"lerobot-train logged no step after its warm-up:\n{log[-4000:]}")
    return Steps([float(update) for update, _ in lines], [float(data) for _, data in lines])


def train_timed(
    output: Path, dataset: Path, repo_id: str, *flags: str, steps: int, warm_up: int, on: str
) -> TimedSteps:
    """As `train`, with a stopwatch round loader, preprocessing and update, on device `on`; `warm_up` steps do not count.

    Raises RuntimeError where `--policy.compile_model=true` was asked for and the network did not compile.
    """
    program = [sys.executable, str(STOPWATCH)]
    log = run(program, output, dataset, repo_id, *flags, f"--steps={steps}", "--log_freq=1000000", on=on)
    if NOT_COMPILED in log:
        raise RuntimeError(f"compiled arm ran eagerly:\n{log[log.index(NOT_COMPILED) :][:2000]}")
    return TimedSteps.from_log(log, warm_up)


def run(
    program: list[str], output: Path, dataset: Path, repo_id: str, *flags: str, on: str | None = None
) -> str:
    """The log of a training run. Raises RuntimeError with its end on failure."""
    on = on or device()
    shutil.rmtree(output, ignore_errors=True)
    command = [
        *program, *flags, f"--dataset.repo_id={repo_id}", f"--dataset.root={dataset}", f"--output_dir={output}",
        f"--policy.device={on}", "--policy.push_to_hub=false", "--save_checkpoint=false", "--seed=1",
    ]  # fmt: skip
    environment = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}
    if on == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        log, _ = process.communicate(timeout=1800)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # loaders have children of their own
        raise
    finally:
        shutil.rmtree(output, ignore_errors=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} … ended with {process.returncode}:\n{log[-4000:]}")
    return log


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
