"""`lerobot-train` on a cache: killed and resumed it takes the same steps; a worker that dies ends it."""

import functools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import precompute
from tests.cli.commands import ENVIRONMENT, SMALL
from tests.datasets import REPO_ID, make_dataset
from tests.faults.workshop import make_encoder

pytestmark = [pytest.mark.slow, pytest.mark.faults]

STEPS, BATCH_SIZE = 24, 4
FRAMES = (10, 12, 9, 7)
STEPS_PER_EPOCH = 6
"""The last episode of each task is held out, 22 frames remain: the last batch is short; two processes fill it up."""
AUGMENTED = ("--policy.token_dropout=0.2", "--policy.token_noise=0.1", "--policy.grid_shift=1")
TELLING = str(Path(__file__).with_name("train_telling.py"))
CHECKOUT = str(Path(__file__).resolve().parents[2])
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Workplace:
    dataset: Path
    encoder: Path
    caches: Path


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A dataset of 38 frames, an encoder of one layer, and the cache they make."""
    folder = tmp_path_factory.mktemp("training")
    cameras = {"observation.image": (16, 16)}  # PushT's names, so that it can evaluate
    dataset = make_dataset(
        folder / "dataset", episodes=FRAMES, cameras=cameras, use_videos=False, state_dim=2
    )
    place = Workplace(dataset, make_encoder(folder / "encoder"), folder / "caches")
    precompute(
        PrecomputeSettings(
            repo_id=REPO_ID, root=str(dataset), encoder=str(place.encoder), cache_root=str(place.caches), pool=7,
            device="cpu",
        )
    )  # fmt: skip
    return place


class Run:
    """One `lerobot-train` process, or several under `torchrun`, and the losses it tells."""

    def __init__(self, output: Path, name: str, *flags: str, processes: int = 1, stay_at: int = 0) -> None:
        self.output, self.log = output, output.with_name(f"{output.name}-{name}.log")
        self.told = str(self.log.with_suffix(""))
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
        command = [sys.executable, *(launcher if processes > 1 else []), TELLING, *flags]
        told = {"TELL": self.told, "STAY_AT": str(stay_at), "PYTHONPATH": CHECKOUT}
        environment = os.environ | ENVIRONMENT | told
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    @property
    def losses(self) -> dict[int, str]:
        """By step, exact."""
        told = Path(f"{self.told}.losses")
        lines = told.read_text().splitlines() if told.exists() else []
        return {int(step): loss for step, loss in (line.split() for line in lines)}

    def samples(self, process: int) -> list[list[int]]:
        """Of each batch."""
        lines = Path(f"{self.told}.samples.{process}").read_text().splitlines()
        return [[int(sample) for sample in line.split()] for line in lines]

    def wait_for(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while step not in self.losses:
            assert self.process.poll() is None, self.log.read_text()[-6000:]
            assert time.monotonic() < deadline, f"step {step} never came"
            time.sleep(0.005)

    def kill(self) -> None:
        """All its processes at once, as a node that loses power."""
        for process in [*self.process.children(recursive=True), self.process]:
            process.kill()
        self.process.wait()

    def finish(self) -> str:
        """Wait for a good end; returns the log."""
        assert self.wait() == 0, self.log.read_text()[-6000:]
        return self.log.read_text()

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE_S)
        except psutil.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it hangs: {self.log.read_text()[-3000:]}") from None

    def result(self) -> dict[str, bytes]:
        """What the last checkpoint holds of the training."""
        checkpoint = self.output / f"checkpoints/{STEPS:06d}"
        files = ("pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors")
        return {name: (checkpoint / name).read_bytes() for name in files}


@pytest.fixture
def started() -> Iterator[list[Run]]:
    runs: list[Run] = []
    yield runs
    for run in runs:
        if run.process.poll() is None:
            run.kill()


def begin(
    kind: str, place: Workplace, output: Path, name: str, *flags: str, processes: int = 1, stay_at: int = 0
) -> Run:
    return Run(
        output, name,
        f"--policy.type={kind}", f"--policy.encoder={place.encoder}", f"--policy.cache_root={place.caches}",
        "--policy.features=cached", "--policy.token_pool=7", "--policy.push_to_hub=false", "--policy.device=cpu",
        *SMALL[kind], *AUGMENTED, f"--dataset.repo_id={REPO_ID}", f"--dataset.root={place.dataset}", f"--batch_size={BATCH_SIZE}",
        "--dataset.eval_split=0.25", f"--steps={STEPS}", "--log_freq=1", "--seed=3", f"--output_dir={output}", *flags, processes=processes,
        stay_at=stay_at,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole_runs(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Run]:
    """Runs that were not interrupted, without workers and from disk: whatever else a run has, it takes their steps."""

    @functools.cache
    def whole(kind: str, processes: int) -> Run:
        output = tmp_path_factory.mktemp("whole") / "run"
        flags = ("--num_workers=0", "--policy.cache_residency=disk", f"--save_freq={STEPS}")
        run = begin(kind, workplace, output, "whole", *flags, processes=processes)
        run.finish()
        assert list(run.losses) == list(range(1, STEPS + 1))
        assert len(set(run.losses.values())) == STEPS
        return run

    return whole


@dataclass(frozen=True)
class Case:
    kind: str
    every: int
    """Steps between checkpoints."""
    flags: tuple[str, ...]
    processes: int = 1


CASES = {
    "act, no workers, disk": Case("theia_act", 4, ("--num_workers=0", "--policy.cache_residency=disk")),
    "diffusion, two workers, memory": Case(
        "theia_diffusion", 3, ("--num_workers=2", "--policy.cache_residency=memory")
    ),
    "act, workers that end with each epoch": Case(
        "theia_act", 5, ("--num_workers=1", "--persistent_workers=false")
    ),
    "diffusion, indices only, evaluated, checkpoints where an epoch ends": Case(
        "theia_diffusion",
        STEPS_PER_EPOCH,
        (
            "--num_workers=0", "--policy.cache_residency=device", "--eval_steps=2", "--env.type=pusht",
            "--env.episode_length=9", f"--env_eval_freq={STEPS_PER_EPOCH}", "--eval.n_episodes=1",
            "--eval.batch_size=1", "--eval.use_async_envs=false",
        ),
    ),
    "diffusion, two processes": Case("theia_diffusion", 4, ("--num_workers=0",), processes=2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_it_takes_the_steps_of_an_uninterrupted_run(
    name: str,
    workplace: Workplace,
    whole_runs: Callable[[str, int], Run],
    started: list[Run],
    tmp_path: Path,
) -> None:
    case = CASES[name]
    whole = whole_runs(case.kind, case.processes)

    at = random.Random(name).randrange(case.every + 1, STEPS)
    flags = (*case.flags, f"--save_freq={case.every}")
    killed = begin(
        case.kind, workplace, tmp_path / "run", "killed", *flags, processes=case.processes, stay_at=STEPS - 1
    )
    started.append(killed)
    killed.wait_for(at)
    killed.kill()

    last = tmp_path / "run/checkpoints/last/pretrained_model/train_config.json"
    resumed = Run(
        tmp_path / "run", "resumed", f"--config_path={last}", "--resume=true", processes=case.processes
    )
    started.append(resumed)
    log = resumed.finish()
    assert "Theia features: cached" in log
    assert ("eval_loss" in log and "pc_success" in log) == ("evaluated" in name)
    assert 1 < min(resumed.losses) <= max(killed.losses) + 1
    assert killed.losses | resumed.losses == whole.losses, f"killed at {at}"
    assert resumed.result() == whole.result()


def test_two_processes_share_each_epoch(whole_runs: Callable[[str, int], Run]) -> None:
    run, frames = whole_runs("theia_diffusion", 2), 22
    steps = list(zip(run.samples(0), run.samples(1), strict=True))
    epochs = [steps[begin : begin + 3] for begin in range(0, STEPS, 3)]
    assert len(epochs) == 8
    for epoch in epochs:
        served = [sample for step in epoch for batch in step for sample in batch]
        assert sorted(served[:frames]) == list(range(frames))
        assert served[frames:] == served[:2], "the last batch is filled up with the first samples"
    assert len({str(epoch) for epoch in epochs}) == 8, "each epoch has an order of its own"


def test_a_killed_loader_worker_ends_the_run_with_an_error(
    workplace: Workplace, started: list[Run], tmp_path: Path
) -> None:
    run = begin("theia_act", workplace, tmp_path / "run", "run", "--num_workers=2", "--steps=1000000")
    started.append(run)
    run.wait_for(3)
    workers = [
        child for child in run.process.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    assert run.wait() not in (0, -signal.SIGKILL)
    assert re.search(rf"DataLoader worker \(pid.*{workers[0].pid}\).* (killed|exited)", run.log.read_text())
    assert not any(worker.is_running() for worker in workers)
