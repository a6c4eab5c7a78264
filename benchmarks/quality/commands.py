"""The commands of an experiment, as one would type them. Nothing is run here."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from benchmarks.quality.arms import Arm
from benchmarks.quality.places import Work, repo_id
from benchmarks.quality.settings import WARM_UP, Experiment, Suite, Training

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def environment(suite: Suite, device: str) -> dict[str, str]:
    """Variables over those of the caller."""
    own = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false", "SVT_LOG": "1"}
    own |= suite.environment
    if device == "cpu":
        own["ACCELERATE_USE_CPU"] = "true"
    own = {name: os.environ.get(name, value) for name, value in own.items()}
    # lerobot-eval imports benchmarks.quality.envs from here.
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    return own


def record(suite: Suite, task: str, arm: Arm, work: Work) -> list[str]:
    """Frames and true state of the suite's demonstrations, in such scenes as the arm wants; does nothing where they are."""
    script, *arguments = suite.recorder
    return [
        sys.executable, str(CHECKOUT / script), *(each.format(task=task) for each in arguments),
        f"--root={work.dataset(suite, task, arm, 'pixels')}", f"--repo-id={repo_id(suite, task, 'pixels')}",
        f"--episodes={suite.recorded}", "--environment-state", "--if-missing",
        *([f"--randomize={arm.randomize}"] if arm.randomize else []),
    ]  # fmt: skip


def leave_frames_out(suite: Suite, task: str, arm: Arm, work: Work, into: Path) -> list[str]:
    """A copy of the demonstrations without frames: LeRobot's loader would decode them for nobody."""
    return [
        str(BIN / "lerobot-edit-dataset"), f"--repo_id={repo_id(suite, task, 'pixels')}",
        f"--root={work.dataset(suite, task, arm, 'pixels')}", f"--new_repo_id={repo_id(suite, task, 'state')}",
        f"--new_root={into}", "--operation.type=remove_feature",
        f"--operation.feature_names={value(suite.cameras)}",
    ]  # fmt: skip


def precompute(suite: Suite, task: str, arm: Arm, work: Work, device: str) -> list[str]:
    """Cached tokens of an arm's encoder."""
    return [
        str(BIN / "lerobot-theia-precompute"), f"+dataset.repo_id={repo_id(suite, task, 'pixels')}",
        f"dataset.root={quoted(work.dataset(suite, task, arm, 'pixels'))}", f"encoder.name={quoted(arm.encoder)}",
        f"pool={arm.token_pool}", f"cache_root={quoted(work.caches(suite, task, arm))}", f"device={device}",
        f"report={quoted(work.precompute(suite, task, arm))}",
        *([f"augment.views={arm.views}"] if arm.views > 1 else []),
    ]  # fmt: skip


def train(
    training: Training, work: Work, output: Path, *, steps: int, save_every: int, log_every: int
) -> list[str]:
    """lerobot-train from the beginning; `save_every=0` saves nothing."""
    suite, task, arm = training.suite, training.task, training.arm
    flags = dict(training.flags)
    if arm.encoder is not None:
        flags |= {
            "encoder": arm.encoder,
            "features": "cached",
            "cache_root": str(work.caches(suite, task, arm)),
        }
    return [
        str(BIN / "lerobot-train"), f"--policy.type={arm.policy}",
        *(f"--policy.{name}={value(each)}" for name, each in flags.items()),
        *(f"--{name}={value(each)}" for name, each in optimization(training, steps).items()),
        f"--policy.device={training.device}", "--policy.push_to_hub=false",
        f"--dataset.repo_id={repo_id(suite, task, arm.sees)}",
        f"--dataset.root={work.dataset(suite, task, arm, arm.sees)}",
        f"--dataset.episodes={value(list(range(training.demonstrations)))}",
        f"--batch_size={suite.batch_size}", f"--num_workers={arm.num_workers}", f"--seed={training.seed}",
        f"--steps={steps}", f"--log_freq={log_every}",
        *([f"--save_freq={save_every}"] if save_every else ["--save_checkpoint=false"]),
        f"--output_dir={output}",
    ]  # fmt: skip


def optimization(training: Training, steps: int) -> dict[str, Any]:
    """As configured; but of few steps the warm-up is a part only."""
    flags = dict(training.optimization)
    if training.arm.family == "diffusion":
        flags.setdefault("policy.scheduler_warmup_steps", DiffusionConfig.scheduler_warmup_steps)
    for name in flags.keys() & {"policy.scheduler_warmup_steps", "scheduler.num_warmup_steps"}:
        flags[name] = min(flags[name], max(1, round(WARM_UP * steps)))
    return flags


def resume(checkpoint: Path) -> list[str]:
    """lerobot-train from one of its checkpoints on, with the settings it was begun with."""
    config = checkpoint / "pretrained_model" / "train_config.json"
    return [str(BIN / "lerobot-train"), f"--config_path={config}", "--resume=true"]


def evaluate(experiment: Experiment, checkpoint: Path, output: Path) -> list[str]:
    """lerobot-eval in episodes whose seeds no demonstration has."""
    training = experiment.training
    suite = training.suite
    env = {
        name: each.format(task=training.task) if isinstance(each, str) else each
        for name, each in experiment.env.items()
    }
    return [
        str(BIN / "lerobot-eval"), f"--policy.path={checkpoint / 'pretrained_model'}",
        f"--policy.device={training.device}", *(f"--env.{name}={value(each)}" for name, each in env.items()),
        f"--eval.n_episodes={experiment.episodes}", f"--eval.batch_size={min(suite.at_once, experiment.episodes)}",
        "--eval.use_async_envs=false", f"--seed={suite.first_seed}", f"--output_dir={output}",
    ]  # fmt: skip


def value(each: Any) -> str:
    """As LeRobot's parser reads it: text as it is, everything else as JSON."""
    if isinstance(each, str):
        return each
    return json.dumps(each if isinstance(each, Mapping) else list(each) if isinstance(each, tuple) else each)


def quoted(each: object) -> str:
    """As Hydra reads it, whatever characters a path has."""
    return json.dumps(str(each), ensure_ascii=False)
