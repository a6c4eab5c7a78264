"""Pictures with what is true in them: random states of PushT, moments of Meta-World tasks and of ALOHA's scenes.

Seeds are neither those of evaluations nor those with which this project's corpora begin, so an encoder distilled from
these was not trained on the same pictures; and those to judge by are other than those to fit.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lerobot_theia.distill.sources import aloha, metaworld
from lerobot_theia.distill.sources.mujoco import View
from lerobot_theia.distill.sources.pusht import STATE, PushTSource
from lerobot_theia.encoder.names import IMAGE_SIZE
from lerobot_theia.encoder.resize import resize

FITTING_SEED, UNSEEN_SEED = 70_000, 80_000
VERSION = 1
"""Of the pictures and quantities: raise it whenever the same settings would give others."""
STILL = 1e-3
"""Metres (or shares of an opening): what varies less, in the frames to fit or in the unseen ones, is a constant."""
ALOHA_OBJECTS = {"transfer-cube": ("box",), "insertion": ("peg", "socket")}
"""Bodies. How the box is turned is not asked: a cube looks the same every quarter turn, and is ten pixels wide here."""
Known = tuple[np.ndarray, dict[str, np.ndarray]]
"""A picture (H, W, 3) uint8, and quantities by name, (t,) each."""


@dataclass(frozen=True)
class Suite:
    """Frames to fit, and after them unseen ones.

    Args:
        images: (n + m, 3, H, W) uint8; large ones in the size that encoders take, squashed as they do it.
        quantities: by name, (n + m, t) float64.
        num_fitting: n.
        about: what the frames are, in words.
        constant: quantities left out, since they are the same in all frames.
    """

    name: str
    images: Tensor
    quantities: dict[str, Tensor]
    num_fitting: int
    about: str
    constant: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Rendering takes minutes, and the next encoder is judged on the same frames."""
        path.parent.mkdir(parents=True, exist_ok=True)
        words = {
            "name": self.name,
            "num_fitting": self.num_fitting,
            "about": self.about,
            "constant": self.constant,
        }
        unfinished = path.with_suffix(".part")
        tensors = {"images": self.images.contiguous()} | {f"is {k}": v for k, v in self.quantities.items()}
        save_file(tensors, unfinished, {"suite": json.dumps(words)})
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Suite":
        with safe_open(path, "pt") as file:
            words = json.loads(file.metadata()["suite"])
            known = {key.removeprefix("is "): file.get_tensor(key) for key in file.keys() if key != "images"}  # noqa: SIM118
            return cls(images=file.get_tensor("images"), quantities=known, **words)


def pusht(name: str, fitting: int, unseen: int, *, random_goals: bool) -> Suite:
    """In arena units; angles as sine and cosine. A goal of evaluations stays where it is, and is no quantity then."""

    def draw(seed: int, count: int) -> Iterator[Known]:
        for frame in PushTSource(images=count, seed=seed, random_goals=float(random_goals)).read(0, count):
            agent, block, angle, goal, goal_angle = np.split(
                frame.truth[STATE].astype(np.float64), [2, 4, 5, 7]
            )
            known = {"agent position": agent, "block position": block, "block angle": on_circle(angle)}
            if random_goals:
                known |= {"goal position": goal, "goal angle": on_circle(goal_angle)}
            yield frame.image, known

    where = "the goal anywhere, too" if random_goals else "the goal where evaluations have it"
    return gathered(name, f"PushT, random states, {where}", draw, fitting, unseen)


def on_circle(angle: np.ndarray) -> np.ndarray:
    return np.concatenate([np.sin(angle), np.cos(angle)])


def metaworld_task(task: str, fitting: int, unseen: int, *, pictures: int = 4) -> Suite:
    """In metres; as a policy sees them, `pictures` of each episode. Raises DistillError without a MuJoCo that renders."""

    def play(seed: int, count: int) -> Iterator[Known]:
        env, photographer = metaworld.scene(task)
        for number in range(-(-count // pictures)):
            rng = np.random.default_rng(seed + number)
            for state in metaworld.moments(env, seed + number, rng, min(pictures, count - number * pictures)):
                image = photographer.picture(env.raw.data, View(metaworld.CAMERA, turned_over=True))
                yield (
                    squashed(image),
                    {
                        "gripper position": state[:3],
                        "gripper opening": state[3:4],
                        "object position": state[4:7],
                        "goal position": env.raw._target_pos.copy(),
                    },
                )

    about = f"Meta-World {task}, {pictures} moments of each episode, the camera of LeRobot"
    suite = gathered(f"metaworld {task}", about, play, fitting, unseen)
    metaworld.close_scene()
    return suite


def aloha_scene(scene: str, fitting: int, unseen: int, *, pictures: int = 4) -> Suite:
    """In metres; directions as sine and cosine. Raises DistillError without a MuJoCo that renders."""

    def play(seed: int, count: int) -> Iterator[Known]:
        opened = aloha.scene(scene)
        for number in range(-(-count // pictures)):
            rng = np.random.default_rng([seed + number, *scene.encode()])
            for data in aloha.moments(opened, rng, min(pictures, count - number * pictures)):
                image = opened.photographer.picture(data, View(aloha.CAMERA))
                yield squashed(image), grippers(data) | objects(data)

    def grippers(data: Any) -> dict[str, np.ndarray]:
        known = {}
        for side in ("left", "right"):
            known[f"{side} gripper position"] = data.body(f"vx300s_{side}/gripper_link").xpos.copy()
            known[f"{side} gripper opening"] = data.joint(f"vx300s_{side}/left_finger").qpos.copy()
        return known

    def objects(data: Any) -> dict[str, np.ndarray]:
        known = {}
        for body in ALOHA_OBJECTS[scene]:
            known[f"{body} position"] = data.body(body).xpos.copy()
            if body != "box":
                # Which end is which cannot be seen, so that the angle of its axis is known up to half a turn.
                x, y = data.body(body).xmat.reshape(3, 3)[:2, 0]
                known[f"{body} direction"] = on_circle(2 * np.arctan2([y], [x]))
        return known

    about = f"ALOHA in simulation, {scene}, {pictures} moments of each episode, the camera of LeRobot"
    suite = gathered(f"aloha {scene}", about, play, fitting, unseen)
    aloha.close_scene()
    return suite


def squashed(image: np.ndarray) -> np.ndarray:
    """As an encoder does first, so that its tokens are the same; a fifth of the bytes."""
    return resize(torch.from_numpy(image).permute(2, 0, 1)[None], IMAGE_SIZE)[0].permute(1, 2, 0).numpy()


def gathered(
    name: str, about: str, source: Callable[[int, int], Iterator[Known]], fitting: int, unseen: int
) -> Suite:
    """From `source`, which is given a seed and a number of frames."""
    frames = [*source(FITTING_SEED, fitting), *source(UNSEEN_SEED, unseen)]
    images = torch.from_numpy(np.stack([image for image, _ in frames])).permute(0, 3, 1, 2)
    values = {each: torch.from_numpy(np.stack([known[each] for _, known in frames])) for each in frames[0][1]}
    parts = {each: (value[:fitting], value[fitting:]) for each, value in values.items()}
    moving = {
        each: value
        for each, value in values.items()
        if min(part.std(0).max() for part in parts[each]) > STILL
    }
    return Suite(name, images, moving, fitting, about, [each for each in values if each not in moving])
