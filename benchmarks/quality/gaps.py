"""What was asked (`configs/question`) and not measured."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
    """A line per suite and question of which something is missing."""
    done = {cell(each["settings"]) for each in results}
    lines = []
    for suite in sorted((CONFIGS / "suite").glob("*.yaml")):
        for question in sorted((CONFIGS / "question").glob("*.yaml")):
            if question.stem in LEFT_OUT:
                continue
            missing = [each for each in asked(suite, question) if each not in done]
            if missing:
                lines.append(f"{suite.stem}, {question.stem}: {names(missing, asked(suite, question))}")
    return lines


def cell(settings: dict[str, Any]) -> tuple[Any, ...]:
    """(suite, task, arm, demonstrations, seed, kind, amount, scene)"""
    names = ("suite", "task", "arm", "demonstrations", "seed")
    budget, scene = settings["budget"], settings["evaluation"].get("scene", "plain")
    return (*(settings[name] for name in names), budget["kind"], budget["amount"], scene)


def asked(suite_path: Path, question_path: Path) -> list[tuple[Any, ...]]:
    """The cells of a question, as far as the suite has so many demonstrations and such scenes."""
    suite = OmegaConf.load(suite_path)
    question = OmegaConf.merge(OmegaConf.create({"suite": suite}), OmegaConf.load(question_path))
    assert isinstance(question, DictConfig)
    scenes = question.get("scenes", ["plain"])
    if "randomized" in scenes and question.suite.randomized is None:
        return []
    return [
        (question.suite.name, task, arm, number, seed, kind, amount, scene)
        for task in question.suite.tasks
        for arm in question.arms
        for number in question.demonstrations
        if number <= question.suite.recorded
        for seed in question.seeds
        for kind in ("steps", "minutes")
        for amount in question[kind]
        for scene in scenes
    ]


def names(missing: Sequence[tuple[Any, ...]], all_of_it: Sequence[tuple[Any, ...]]) -> str:
    """`all of it`, or how many of each arm."""
    if len(missing) == len(all_of_it):
        return f"all of it ({len(all_of_it)} experiments)"
    by_arm: dict[str, int] = defaultdict(int)
    for each in missing:
        by_arm[each[2]] += 1
    arms = ", ".join(f"{number} of `{arm}`" for arm, number in by_arm.items())
    return f"{len(missing)} of {len(all_of_it)} experiments ({arms})"
