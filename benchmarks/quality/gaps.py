"""What was asked (`configs/question`) and not measured."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.quality.plan import make_plan
from benchmarks.quality.settings import Experiment, digest

CONFIGS = Path(__file__).with_name("configs")
LEFT_OUT = ("quick",)


@dataclass(frozen=True)
class Gap:
    """Something that no question asks, and why."""

    what: str
    why: str
    unless: str
    """Pattern of a suite or an arm with which it would have been measured."""


BEYOND = (
    Gap("ALOHA, transfer cube", "there is no recorder of its demonstrations here", r"aloha"),
    Gap(
        "Published Theia weights, DINOv2",
        "their weights are on the Hugging Face Hub; where that is in reach, `HF_HUB_OFFLINE=0 python benchmarks/quality/run.py arms=[theia_diffusion_2x2@theia-tiny-cdiv,theia_diffusion_2x2@dinov2-small]`",
        r"@(theia-\w+-cd|.*dino)",
    ),
    Gap(
        "LeRobot's policies from ImageNet weights, which are their default",
        "these have to be downloaded; where they were, `arms=[act_imagenet,diffusion_imagenet]`",
        r"_imagenet$",
    ),
)


def beyond(results: Sequence[dict[str, Any]]) -> list[Gap]:
    """Those that no result closes."""
    names = {each["settings"][name] for each in results for name in ("suite", "arm")}
    return [gap for gap in BEYOND if not any(re.search(gap.unless, name) for name in names)]


def gaps(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line per suite and question of which something is missing: what a run of it would measure today."""
    done = {each["settings_digest"] for each in results}
    devices = {each["settings"]["device"] for each in results} | {"cpu"}
    lines = []
    for suite in sorted(path.stem for path in (CONFIGS / "suite").glob("*.yaml")):
        for question in sorted(path.stem for path in (CONFIGS / "question").glob("*.yaml")):
            if question in LEFT_OUT:
                continue
            wanted = [asked(suite, question, device) for device in sorted(devices)]
            missing = [
                same[0].training.arm.name
                for same in zip(*wanted, strict=True)
                if not any(digest(each.settings) in done for each in same)
            ]
            if missing:
                lines.append(f"{suite}, {question}: {names(missing, len(wanted[0]))}")
    return lines


def asked(suite: str, question: str, device: str) -> list[Experiment]:
    """The experiments of a question, as far as the suite has so many demonstrations and such scenes."""
    chosen = [f"suite={suite}", f"question={question}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose("run", overrides=chosen), resolve=True)
    assert isinstance(config, dict)
    config = {str(name): value for name, value in config.items()}
    config["demonstrations"] = [
        each for each in config["demonstrations"] if each <= config["suite"]["recorded"]
    ]
    if not config["demonstrations"] or (
        "randomized" in config["scenes"] and config["suite"]["randomized"] is None
    ):
        return []
    return [
        each for training in make_plan(config, device) for each in training.experiments(config["episodes"])
    ]


def names(missing: Sequence[str], asked: int) -> str:
    """`all of it`, or how many of each arm."""
    if len(missing) == asked:
        return f"all of it ({asked} experiments)"
    arms = ", ".join(f"{number} of `{arm}`" for arm, number in Counter(missing).items())
    return f"{len(missing)} of {asked} experiments ({arms})"
