"""Run lerobot-train as users do, and read speed off its log."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

LINE = re.compile(r"updt_s:([\d.]+) data_s:([\d.]+)")


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


def train(
    output: Path, dataset: Path, repo_id: str, *flags: str, steps: int, log_every: int, warm_up: int = 1
) -> Steps:
    """Train for `steps` steps; the first `warm_up` log lines do not count. Raises with the log's end on failure."""
    shutil.rmtree(output, ignore_errors=True)
    command = [
        str(Path(sys.executable).parent / "lerobot-train"), *flags,
        f"--dataset.repo_id={repo_id}", f"--dataset.root={dataset}", f"--output_dir={output}",
        f"--policy.device={device()}", "--policy.push_to_hub=false", "--save_checkpoint=false", "--seed=1",
        f"--steps={steps}", f"--log_freq={log_every}",
    ]  # fmt: skip
    environment = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}
    if device() == "cpu":
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
    lines = LINE.findall(log)[warm_up:]
    if process.returncode or not lines:
        raise RuntimeError(f"{' '.join(command[:3])} … ended with {process.returncode}:\n{log[-4000:]}")
    return Steps([float(update) for update, _ in lines], [float(data) for _, data in lines])


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
