"""Run experiments: data, training, evaluation at each budget, result."""

import itertools
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import LocalEntryNotFoundError

from benchmarks import common
from benchmarks.quality import commands, evaluations
from benchmarks.quality.arms import ArmError
from benchmarks.quality.checkpoints import checkpoint_step, checkpoints
from benchmarks.quality.clock import Record
from benchmarks.quality.places import Work
from benchmarks.quality.plan import make_plan
from benchmarks.quality.processes import CommandError, InUseError, only_run
from benchmarks.quality.results import Results
from benchmarks.quality.settings import Experiment, SettingsError, Training, encoder_name
from benchmarks.quality.status import status
from benchmarks.quality.trainings import Runner, made_with
from lerobot_theia.cache.files import sha256_of_file
from lerobot_theia.encoder.locate import locate
from lerobot_theia.encoder.names import RANDOM_SIZES, canonical_name

ACTIONS = ("run", "status", "commands")
ERRORS = (ArmError, SettingsError, CommandError, InUseError, evaluations.EvaluationError)
"""What can be wrong with settings or machine; each message says what to do."""


def start(config: Mapping[str, Any]) -> None:
    """Do what `configs/run.yaml` says.

    Raises:
        one of ERRORS.
    """
    if config["action"] not in ACTIONS:
        raise SettingsError(f"action={config['action']!r}; choose one of {', '.join(ACTIONS)}")
    machine = common.machine()
    plan = make_plan(config, config["device"] or ("cuda" if machine["gpu"] else "cpu"))
    quick = bool(config["quick"])
    root = Path(config["work"] or commands.CHECKOUT / "outputs" / ("quality-quick" if quick else "quality"))
    work = Work(root.absolute())
    out = Path(config["out"] or (work.root / "results" if quick else common.RESULTS)).absolute()
    results = Results(out, common.slug(machine))
    if config["action"] == "status":
        print(status(plan, results, config["episodes"]))
    elif config["action"] == "commands":
        print("\n".join(dict.fromkeys(all_commands(plan, work, config["episodes"]))))
    else:
        if not config["replace"]:
            check_free(plan, results, config["episodes"])
        check_encoders([each for each in plan if results.unfinished(each.experiments(config["episodes"]))])
        with only_run(work.root) as lock:
            runner = Runner(work, lock, float(config["calibration_s"]))
            for training in plan:
                run_training(training, runner, results, config["episodes"], machine)


def check_free(plan: Sequence[Training], results: Results, episodes: int) -> None:
    """Raises SettingsError where results would replace those of other settings."""
    experiments = [each for training in plan for each in training.experiments(episodes)]
    taken = [(each, differing) for each in experiments if (differing := results.in_the_way(each))]
    if taken:
        files = "\n".join(f"  {results.path(each)}: {differing}" for each, differing in taken)
        raise SettingsError(
            f"of {len(experiments)} results, {len(taken)} would take the place of what was measured with other settings:\n"
            f"{files}\nTo put new ones in their place, replace=true; to keep them, out=<another folder>, or leave these arms out"
        )


def check_encoders(plan: Sequence[Training]) -> None:
    """Raises SettingsError where weights cannot be had, before others are trained for hours. Those on the Hub are downloaded."""
    for arm, name in {each.arm.name: each.arm.encoder for each in plan}.items():
        if name is None or canonical_name(name) in RANDOM_SIZES:
            continue
        try:
            locate(name)
        except (ValueError, OSError) as error:
            offline = HF_HUB_OFFLINE and isinstance(error.__cause__, LocalEntryNotFoundError)
            remedy = " To have it downloaded, put HF_HUB_OFFLINE=0 before this command." if offline else ""
            raise SettingsError(f"arm {arm}: {error}{remedy}") from error


def run_training(
    training: Training, runner: Runner, results: Results, episodes: int, machine: Mapping[str, Any]
) -> None:
    """Train, and evaluate at each budget that has no result."""
    everything = training.experiments(episodes)
    left = results.unfinished(everything)
    if not left:
        print(f"{training.name}: done", flush=True)
        return
    print(training.name, flush=True)
    runner.prepare(training)
    record = runner.train(training)
    for experiment in left:
        step = checkpoint_step(record, experiment.budget)
        found, videos = evaluate(experiment, step, runner)
        path = results.save(
            experiment,
            {
                "what": training.arm.what,
                "suite": {"what": training.suite.what, "reward": training.suite.reward},
                "training": trained(training, record, step),
                "encoder": encoder(training, runner.work),
                "evaluation": found,
                "videos": videos,
                "video_sha256": {
                    name: sha256_of_file(runner.work.videos(experiment) / name)
                    for name in itertools.chain(*videos.values())
                },
                "machine": machine,
                **made_with(),
            },
        )
        low, high = found["success_interval"]
        print(
            f"  {experiment.name.rpartition(f'seed{training.seed}--')[2]}: success {found['success_rate']:.1%} ({low:.1%} to {high:.1%}), mean max reward "
            f"{found['mean_max_reward']:.3f} -> {path}",
            flush=True,
        )
    runner.tidy(training, [checkpoint_step(record, each.budget) for each in everything])


def evaluate(
    experiment: Experiment, step: int, runner: Runner
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What lerobot-eval finds with the policy after `step` steps, and the names of the videos kept under `videos/`."""
    training, work = experiment.training, runner.work
    checkpoint = checkpoint_after(step, experiment, work)
    output, videos = work.evaluation(experiment), work.videos(experiment)
    for folder in (output, videos):
        shutil.rmtree(folder, ignore_errors=True)
    command = commands.evaluate(experiment, checkpoint, output)
    runner.command(training, command, output.with_name(output.name + ".log"))
    found = evaluations.read(output, experiment.episodes, training.suite.first_seed)
    kept = evaluations.keep_videos(output, videos)
    shutil.rmtree(output)
    return found, kept


def checkpoint_after(step: int, experiment: Experiment, work: Work) -> Path:
    """Raises SettingsError if it was not made, or not kept: only those that were evaluated are."""
    folder = work.training(experiment.training)
    for each in checkpoints(folder / "run"):
        if int(each.name) == step:
            return each
    raise SettingsError(
        f"{experiment.budget} needs the checkpoint after step {step:,}; this training was made for other budgets and did "
        f"not keep it. To train it again, remove {folder}"
    )


def trained(training: Training, record: Record, step: int) -> dict[str, Any]:
    """How the policy after `step` steps came about."""
    return {
        "steps": step,
        "of_steps": record.steps,
        "seconds": record.seconds[step],
        "samples": step * training.suite.batch_size,
        "loss": record.losses.get(step),
        "interruptions": record.interruptions,
        "out_of_time": record.out_of_time,
        "cores_used_by_others": record.cores_used_by_others,
        "begun": record.begun,
        "resumed_with": record.resumed_with,
    }


def encoder(training: Training, work: Work) -> dict[str, Any] | None:
    """Which weights it was, and what encoding cost."""
    if training.arm.encoder is None:
        return None
    report = json.loads(work.precompute(training.suite, training.task, training.arm).read_text())
    frames, per_s = report["frames_encoded"] + report["frames_kept"], report["frames_per_s"] or None
    manifest = json.loads((commands.CHECKOUT / report["path"] / "manifest.json").read_text())
    return {
        "name": encoder_name(training.arm),
        "weights_sha256": manifest["identity"]["encoder"]["weights_sha256"],
        "frames": frames,
        "frames_per_s": per_s,
        "seconds": frames / per_s if per_s else report["seconds"],  # also if it was interrupted
        "cores": report["cores"],
    }


def all_commands(plan: Sequence[Training], work: Work, episodes: int) -> list[str]:
    """In the form in which `run` runs them: it knows when to save, and, measured, how many steps fit into a time; both are 0
    here."""
    lines = []
    for training in plan:
        suite, task, arm, folder = training.suite, training.task, training.arm, work.training(training)
        steps = int(training.most) if training.kind == "steps" else 0
        lines.append(commands.record(suite, task, arm, work))
        if arm.sees == "state":
            state = work.dataset(suite, task, arm, "state")
            lines.append(commands.leave_frames_out(suite, task, arm, work, state))
        if arm.encoder is not None:
            lines.append(commands.precompute(suite, task, arm, work, training.device))
        lines.append(commands.train(training, work, folder / "run", steps=steps, save_every=0, log_every=1))
        lines += [
            commands.evaluate(each, folder / "run" / "checkpoints" / "last", work.evaluation(each))
            for each in training.experiments(episodes)
        ]
    return [shlex.join(line) for line in lines]
