"""From the settings of a run to its trainings and experiments, checked before anything is recorded or trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.quality.arms import check_flags, load_arm
from benchmarks.quality.settings import SCENES, SettingsError, Suite, Training, slug
from lerobot_theia.demos.seeds import FIRST_EVALUATION_SEED


def make_plan(config: Mapping[str, Any], device: str) -> list[Training]:
    """Trainings in the order in which they run: a seed of all arms before the next seed.

    Raises:
        SettingsError, ArmError: naming what cannot be.
    """
    suite = Suite.from_config(config["suite"])
    for name, least in {"arms": 1, "seeds": 1, "demonstrations": 1, "steps": 0, "minutes": 0}.items():
        _check_list(name, config[name], least)
    if not config["steps"] and not config["minutes"]:
        raise SettingsError("neither steps=[...] nor minutes=[...]: how long shall policies train?")
    if any(each <= 0 for each in (*config["steps"], *config["minutes"], *config["demonstrations"])):
        raise SettingsError("steps, minutes and demonstrations are larger than 0")
    if any(each != int(each) for each in (*config["steps"], *config["demonstrations"])):
        raise SettingsError("steps and demonstrations are whole numbers")
    if (most := max(config["demonstrations"])) > suite.recorded:
        raise SettingsError(
            f"demonstrations={most}, but suite {suite.name} records suite.recorded={suite.recorded} of each task: ask for "
            f"fewer, demonstrations=[{suite.recorded}], or record more, suite.recorded={most}"
        )
    if suite.first_seed < FIRST_EVALUATION_SEED:
        raise SettingsError(
            f"suite.first_seed={suite.first_seed}: demonstrations and pictures that encoders learned from have seeds below "
            f"{FIRST_EVALUATION_SEED}, and policies are not to be evaluated where they learned; choose a higher one"
        )
    _check_list("scenes", config["scenes"], 1)
    if unknown := sorted(set(config["scenes"]) - set(SCENES)):
        raise SettingsError(f"scenes={unknown}; choose from {', '.join(SCENES)}")
    if any(not isinstance(each, int) or each < 0 for each in config["seeds"]):
        raise SettingsError(f"seeds={list(config['seeds'])}; seeds are whole numbers from 0 on")
    if config["episodes"] < 1:
        raise SettingsError(f"episodes={config['episodes']}; an evaluation has at least one")
    arms = [load_arm(name) for name in config["arms"]]
    for arm in arms:
        check_flags(arm.policy, {**suite.sizes[arm.family], **suite.raw[arm.family], **arm.flags}, arm.name)
        if suite.randomized is None and (arm.randomize or "randomized" in config["scenes"]):
            raise SettingsError(
                f"suite {suite.name} has no randomized scenes: leave out scenes=[randomized], and arms that are "
                f"recorded in them{f', such as {arm.name}' if arm.randomize else ''}; suite=metaworld has them"
            )
        if arm.sees != "pixels" and "randomized" in config["scenes"]:
            raise SettingsError(f"arm {arm.name} sees no scene: scenes=[plain]")
    if len({slug(arm.name) for arm in arms}) < len(arms):
        raise SettingsError(f"two of {', '.join(config['arms'])} would have the same name in results")
    kinds = {"steps": tuple(map(int, config["steps"])), "minutes": tuple(map(float, config["minutes"]))}
    return [
        Training(
            suite=suite, task=task, arm=arm, demonstrations=int(number), seed=seed, kind=kind, amounts=amounts,
            device=device, scenes=tuple(config["scenes"]), quick=bool(config["quick"]),
        )
        for seed in config["seeds"]
        for number in config["demonstrations"]
        for task in suite.tasks
        for arm in arms
        for kind, amounts in kinds.items()
        if amounts
    ]  # fmt: skip


def _check_list(name: str, values: Any, least: int) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise SettingsError(f"{name}={values!r} is no list; write {name}=[{values}]")
    if len(values) < least or len(set(values)) < len(values):
        raise SettingsError(f"{name}={list(values)} is empty or names one twice")
