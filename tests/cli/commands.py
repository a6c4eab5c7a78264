"""Commands as users type them, each a process of its own."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.datasets import REPO_ID

BIN = Path(sys.executable).parent

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
}

SMALL = {
    "theia_act": [
        "--policy.chunk_size=8", "--policy.n_action_steps=4", "--policy.dim_model=32", "--policy.n_heads=2",
        "--policy.dim_feedforward=64", "--policy.n_encoder_layers=1", "--policy.n_vae_encoder_layers=1",
    ],
    "theia_diffusion": [
        "--policy.horizon=8", "--policy.n_action_steps=4", "--policy.down_dims=[16,32]",
        "--policy.diffusion_step_embed_dim=16", "--policy.num_train_timesteps=4", "--policy.drop_n_last_frames=0",
        "--policy.spatial_softmax_num_keypoints=4",
    ],
}  # fmt: skip
"""Networks for a test: what is learned does not matter, only that it runs."""


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str
    """stdout and stderr, as they came."""

    @property
    def losses(self) -> list[float]:
        """One per logged step."""
        return [float(loss) for loss in re.findall(r" loss:([\d.]+)", self.output)]


def run(*command: str | Path, cwd: Path | None = None, timeout_s: int = 300, **environment: str) -> Outcome:
    """Run one of the commands installed beside this Python, offline, on one thread, wherever `cwd` is."""
    process = subprocess.Popen(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=cwd,
        env=os.environ | ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # launchers and loaders have children of their own
        raise
    return Outcome(process.returncode, output)


def train(
    kind: str,
    dataset: Path,
    output: Path,
    *flags: str,
    cache_root: Path,
    steps: int = 2,
    launcher: tuple[str, ...] = ("lerobot-train",),
    repo_id: str = REPO_ID,
) -> Outcome:
    """`lerobot-train` on a tiny dataset, logging each step."""
    return run(
        *launcher,
        f"--policy.type={kind}", "--policy.encoder=random-tiny", f"--policy.cache_root={cache_root}",
        "--policy.push_to_hub=false", "--policy.device=cpu", *SMALL[kind],
        f"--dataset.repo_id={repo_id}", f"--dataset.root={dataset}",
        "--batch_size=4", f"--steps={steps}", "--log_freq=1", "--num_workers=0", "--seed=3",
        f"--output_dir={output}", *flags,
    )  # fmt: skip


def checked(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.output[-6000:]
    return outcome
