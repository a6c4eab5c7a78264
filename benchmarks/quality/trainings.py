"""Make a training's data, then train it, from the beginning or from its last checkpoint on."""

import datetime
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.quality import commands
from benchmarks.quality.checkpoints import checkpoints, last_checkpoint, stride
from benchmarks.quality.clock import Clock, Rate, Record
from benchmarks.quality.places import Work
from benchmarks.quality.processes import run
from benchmarks.quality.rows import FILLED
from benchmarks.quality.settings import SettingsError, Training, digest
from lerobot_theia.cache.files import publish
from lerobot_theia.distill.provenance import code_version

MANY_STEPS = 10**9
SAVES_IN_TIME = 24
"""Checkpoints of a training by the clock: the last one before each time is evaluated."""
SPARE = 0.97
"""Of the steps that should fit into a time, so that a slightly slower stretch does not cut the last ones off."""


@dataclass(frozen=True)
class Runner:
    """Runs commands of one work folder, one at a time."""

    work: Work
    lock: int
    """Open file that each command inherits."""
    calibration_s: float

    def command(self, training: Training, command: Sequence[str], log: Path, watch: Any = None) -> bool:
        print(f"  {Path(command[0]).name} (log: {log})", flush=True)
        return run(
            command, log, environment=commands.environment(training.suite, training.device),
            cwd=commands.CHECKOUT, watch=watch, inherit=(self.lock,),
        )  # fmt: skip

    def prepare(self, training: Training) -> None:
        """Demonstrations and cache: made when they are missing, kept for all trainings that need them."""
        suite, task, arm, work = training.suite, training.task, training.arm, self.work
        logs = work.task(suite, task, arm) / "logs"
        frames, state = (work.dataset(suite, task, arm, sees) for sees in ("pixels", "state"))
        if not is_dataset(frames):
            self.command(training, commands.record(suite, task, arm, work), logs / "record.log")
        if arm.sees == "state" and not is_dataset(state):
            beside = state.with_name(state.name + ".making")
            shutil.rmtree(beside, ignore_errors=True)
            self.command(
                training,
                commands.leave_frames_out(suite, task, arm, work, beside),
                logs / "leave_frames_out.log",
            )
            beside.rename(state)
        report = work.precompute(suite, task, arm)
        if arm.encoder is not None and not has_cache(report):
            report.parent.mkdir(exist_ok=True)
            self.command(
                training,
                commands.precompute(suite, task, arm, work, training.device),
                logs / "precompute.log",
            )
        if arm.encoder is not None and "cores" not in (made := json.loads(report.read_text())):
            # Trainings that follow may be given other cores than encoding had.
            publish(report, [json.dumps(made | {"cores": common.machine()["cores"]}, indent=2).encode()])

    def train(self, training: Training) -> Record:
        """To its last step or the end of its time; what was interrupted goes on from its last checkpoint."""
        folder = self.work.training(training)
        record_path, output, log = folder / "record.json", folder / "run", folder / "train.log"
        record, machine = Record.load(record_path), common.slug(common.machine())
        if record is not None and record.machine not in ("", machine):
            raise SettingsError(
                f"{folder} was trained on {record.machine}, this is {machine}: its times would be another machine's. Give "
                "this one a work folder of its own, work=..."
            )
        if record is not None and record.finished:
            return record
        folder.mkdir(parents=True, exist_ok=True)
        limit_s = 60 * training.most if training.kind == "minutes" else None
        checkpoint = last_checkpoint(output, record)
        if record is None or checkpoint is None:
            shutil.rmtree(output, ignore_errors=True)
            record = Record(**self._length(training), machine=machine, begun=made_with())
            command, before = self._from_the_beginning(training, output, record), 0.0
        else:
            record.forget_after(int(checkpoint.name))
            record.goes_on_with(made_with())
            command, before = commands.resume(checkpoint), record.seconds[int(checkpoint.name)]
            print(f"  goes on after step {int(checkpoint.name):,} of {record.steps:,}", flush=True)
        record.save(record_path)
        busy = common.busy()
        self.command(training, command, log, Clock(record, record_path, before=before, limit_s=limit_s))
        record.keep([int(each.name) for each in checkpoints(output)])
        record.cores_used_by_others = others_busy(busy, common.busy())
        record.finished = True
        record.save(record_path)
        took = max(record.seconds.values(), default=0.0)
        if limit_s is not None and not record.out_of_time and took < FILLED * limit_s:
            print(
                f"  took {took / 60:.1f} of {training.most:g} minutes: faster than measured before. To fill the time, remove "
                f"{folder} and {self.work.root / 'rates'} and run this again, with nothing beside it",
                flush=True,
            )
        return record

    def _from_the_beginning(self, training: Training, output: Path, record: Record) -> list[str]:
        return commands.train(
            training, self.work, output, steps=record.steps, save_every=record.save_every,
            log_every=max(1, record.save_every // 10),
        )  # fmt: skip

    def _length(self, training: Training) -> dict[str, Any]:
        """`steps` and `save_every`."""
        if training.kind == "steps":
            return {
                "steps": int(training.most),
                "save_every": stride([int(each) for each in training.amounts]),
            }
        steps = max(1, int(self._rate(training) * 60 * training.most * SPARE))
        return {"steps": steps, "save_every": max(1, math.ceil(steps / SAVES_IN_TIME))}

    def _rate(self, training: Training) -> float:
        """Steps per second of a short training like this one; measured once for all seeds."""
        alike = training.settings | {"machine": common.slug(common.machine())}
        folder = self.work.root / "rates" / digest(alike, but=("seed", "budget"))
        found = folder / "rate.json"
        if found.is_file():
            return float(json.loads(found.read_text())["steps_per_s"])
        output = folder / "run"
        shutil.rmtree(output, ignore_errors=True)
        rate = Rate(measure_s=self.calibration_s)
        # Far more steps than fit, so that a schedule of the learning rate stands still.
        command = commands.train(
            training, self.work, output, steps=MANY_STEPS, save_every=0, log_every=MANY_STEPS
        )
        self.command(training, command, folder / "train.log", rate)
        shutil.rmtree(output, ignore_errors=True)
        publish(found, [json.dumps({"steps_per_s": rate.per_s}).encode()])
        print(f"  {rate.per_s:.3g} steps/s", flush=True)
        return rate.per_s

    def tidy(self, training: Training, keep: Sequence[int]) -> None:
        """Leave of a finished training the policies that were evaluated, and its log."""
        for checkpoint in checkpoints(self.work.training(training) / "run"):
            if int(checkpoint.name) in keep:
                shutil.rmtree(checkpoint / "training_state", ignore_errors=True)
            else:
                shutil.rmtree(checkpoint, ignore_errors=True)


def made_with() -> dict[str, Any]:
    """Versions, code and date, as they are now."""
    return {
        "versions": common.versions(),
        "code": code_version("benchmarks", "scripts", ":!benchmarks/results"),
        "date": datetime.date.today().isoformat(),
    }


def others_busy(before: Sequence[float], after: Sequence[float]) -> float:
    """Cores that other processes kept busy between two calls of `busy`."""
    clock, all_cores, own = (end - begin for begin, end in zip(before, after, strict=True))
    return max(0.0, (all_cores - own) / clock)


def is_dataset(root: Path) -> bool:
    """Recorders put a dataset into its place when it is whole."""
    return (root / "meta" / "info.json").is_file()


def has_cache(report: Path) -> bool:
    if not report.is_file():
        return False
    path = commands.CHECKOUT / json.loads(report.read_text())["path"]
    return (path / "manifest.json").is_file()
