"""What an experiment is: a suite's task, an arm, how many demonstrations, a seed and a budget; and its name."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.quality.arms import Arm
from lerobot_theia.demos.randomize import VERSION

Values = Mapping[str, Any]
WARM_UP = 0.05
"""Of its steps, a training has at most so many with a rising learning rate. The preset of LeRobot's diffusion has 500, more than
some of the slow arms take."""


class SettingsError(ValueError):
    """Settings that name something which is not there, or contradict each other."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks, their demonstrations, and how policies are evaluated in them. From `configs/suite`."""

    name: str
    what: str
    tasks: tuple[str, ...]
    """Each has a dataset and policies of its own."""
    recorded: int
    """Demonstrations recorded of each task."""
    recorder: tuple[str, ...]
    """Script and arguments; `{task}` stands for the task."""
    recorder_version: int
    """Raised when the same command records something else: what came of earlier demonstrations is not today's."""
    reward: str
    """What the reward is, in words."""
    environment: Mapping[str, str]
    """Variables of all its commands, where the caller has not set them."""
    inputs: Mapping[str, Mapping[str, Values]]
    """By what an arm sees (`pixels`, `state`): name, type and shape of each input feature."""
    env: Mapping[str, Values]
    """By what an arm sees: `--env.*` of lerobot-eval."""
    randomized: Values | None
    """The same for what sees pixels, in a scene that looks different in each episode; None where there is none, and
    recorders cannot either."""
    first_seed: int
    """Of evaluation episodes; each takes the next."""
    episodes: int
    """Of an evaluation, unless a run wants another number."""
    at_once: int
    """Environments that an evaluation steps side by side."""
    batch_size: int
    sizes: Mapping[str, Values]
    """By family (`act`, `diffusion`): `--policy.*` of all its arms."""
    optimization: Mapping[str, Values]
    """By family: further flags of lerobot-train; none are LeRobot's preset."""
    raw: Mapping[str, Values]
    """By family: `--policy.*` of arms that train a network on frames."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Suite":
        return cls(**config | {"tasks": tuple(config["tasks"]), "recorder": tuple(config["recorder"])})

    @property
    def recording(self) -> dict[str, Any]:
        """What demonstrations are, but for the task."""
        script, *arguments = self.recorder
        version = {"recorder_version": self.recorder_version} if self.recorder_version > 1 else {}
        return {"recorder": [Path(script).name, *arguments], **version}

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(name for name, feature in self.inputs["pixels"].items() if feature["type"] == "VISUAL")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much training a policy had: so many steps, or so many minutes on this machine.

    One training goes to the largest of its budgets (`of`); the others are checkpoints on the way.
    """

    kind: Literal["steps", "minutes"]
    amount: float
    of: float

    def __str__(self) -> str:
        part = "" if self.amount == self.of else f"of{self.of:g}"
        return f"{self.amount:g}{part}{'steps' if self.kind == 'steps' else 'min'}"


Scene = Literal["plain", "randomized"]
"""Of evaluation: LeRobot's own, or one that looks different in each episode."""
SCENES: tuple[Scene, ...] = get_args(Scene)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run of lerobot-train, the budgets to evaluate it at, and the scenes to evaluate it in."""

    suite: Suite
    task: str
    arm: Arm
    demonstrations: int
    seed: int
    kind: Literal["steps", "minutes"]
    amounts: tuple[float, ...]
    device: str
    scenes: tuple[Scene, ...] = ("plain",)
    quick: bool = False

    @property
    def most(self) -> float:
        return max(self.amounts)

    @property
    def flags(self) -> dict[str, Any]:
        """`--policy.*`, but for paths and the device."""
        arm, suite = self.arm, self.suite
        raw = suite.raw[arm.family] if arm.sees == "pixels" and arm.encoder is None else {}
        return {**suite.sizes[arm.family], **raw, **arm.flags, "input_features": suite.inputs[arm.sees]}

    @property
    def optimization(self) -> Values:
        """`--optimizer.*`, `--scheduler.*` and the like."""
        own = self.arm.optimization
        return self.suite.optimization[self.arm.family] if own is None else own

    @property
    def settings(self) -> dict[str, Any]:
        """All that makes it another training. Paths and versions do not; an encoder that lies here counts by its weights."""
        arm, suite = self.arm, self.suite
        return {
            "suite": suite.name, "task": self.task, "recorded": suite.recorded,
            **suite.recording, **({"randomize": {"kinds": arm.randomize, "version": VERSION}} if arm.randomize else {}),
            "arm": slug(arm.name), "policy": arm.policy,
            "encoder": encoder_name(arm), "encoder_file": arm.encoder_file_sha256,
            "views": arm.views, "flags": self.flags, "optimization": dict(self.optimization), "warm_up": WARM_UP,
            "batch_size": suite.batch_size, "num_workers": arm.num_workers,
            "demonstrations": self.demonstrations, "seed": self.seed, "device": self.device,
            "budget": {"kind": self.kind, "most": self.most},
        }  # fmt: skip

    @property
    def demos(self) -> str:
        """`260demos`; or `100of260demos`, whose tokens were standardised with those of all."""
        of = "" if self.demonstrations == self.suite.recorded else f"of{self.suite.recorded}"
        return f"{self.demonstrations}{of}demos"

    @property
    def name(self) -> str:
        return "--".join(
            (self.suite.name, self.task, slug(self.arm.name), self.demos, f"seed{self.seed}",
             str(Budget(kind=self.kind, amount=self.most, of=self.most)))
        )  # fmt: skip

    def experiments(self, episodes: int) -> "list[Experiment]":
        return [
            Experiment(
                training=self,
                budget=Budget(kind=self.kind, amount=each, of=self.most),
                episodes=episodes,
                scene=scene,
            )
            for each in sorted(self.amounts)
            for scene in self.scenes
        ]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A training at one of its budgets, evaluated in one kind of scene."""

    training: Training
    budget: Budget
    episodes: int
    scene: Scene = "plain"

    @property
    def name(self) -> str:
        elsewhere = "" if self.scene == "plain" else f"--{self.scene}"
        return self.training.name.rpartition("--")[0] + f"--{self.budget}{elsewhere}"

    @property
    def env(self) -> Values:
        """`--env.*` of lerobot-eval, where `{task}` stands for the task."""
        suite = self.training.suite
        if self.scene == "plain":
            return suite.env[self.training.arm.sees]
        assert suite.randomized is not None  # see make_plan
        return suite.randomized

    @property
    def settings(self) -> dict[str, Any]:
        """All that makes it another experiment."""
        suite = self.training.suite
        evaluation = {
            "episodes": self.episodes, "first_seed": suite.first_seed, "at_once": suite.at_once, "env": self.env,
            **({} if self.scene == "plain" else {"scene": self.scene, "randomize_version": VERSION}),
        }  # fmt: skip
        return {
            **self.training.settings,
            "budget": dataclasses.asdict(self.budget),
            "evaluation": evaluation,
            "quick": self.training.quick,
        }


def digest(settings: Values, but: Collection[str] = ()) -> str:
    """Of values but those of some names, whatever their order: twelve hexadecimal digits."""
    text = json.dumps(
        {name: each for name, each in settings.items() if name not in but}, sort_keys=True, default=list
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def encoder_name(arm: Arm) -> str | None:
    """Without the folder it lies in."""
    return None if arm.encoder is None else slug(f"@{arm.encoder}")[1:]


def slug(name: str) -> str:
    """An arm's name as part of a file's: `theia_act@outputs/my encoder` is `theia_act@my-encoder`."""
    arm, at, encoder = name.partition("@")
    return arm + at + re.sub(r"[^\w.-]+", "-", Path(encoder).name)
