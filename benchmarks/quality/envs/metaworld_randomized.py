"""`--env.type=metaworld_randomized`: LeRobot's Meta-World in a scene that looks different in each episode.

Looks are those that recorders draw for the same seed; what happens is what happens in the plain scene.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from lerobot.envs.configs import EnvConfig, MetaworldEnv

from benchmarks.quality.envs.one_process import side_by_side
from lerobot_theia.demos.metaworld import environment_class
from lerobot_theia.demos.randomize import KINDS, choose_kinds


@EnvConfig.register_subclass("metaworld_randomized")
@dataclass
class MetaworldRandomizedEnv(MetaworldEnv):
    """One task of Meta-World.

    Args:
        task: as `drawer-open-v3`.
        randomize: what looks different: any of `light`, `camera`, `texture`, with commas between.
    """

    task: str | None = None  # type: ignore[assignment]  # LeRobot's own default is a task that is no longer there
    randomize: str = ",".join(KINDS)

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """{"metaworld_randomized": {0: environments}}"""
        make = randomized_class(choose_kinds(self.randomize.split(",")))
        return side_by_side(self, n_envs, use_async_envs, lambda task: make(task, **self.gym_kwargs))


def randomized_class(kinds: tuple[str, ...]) -> Any:
    """Meta-World whose looks are drawn at each reset that has a seed. Without one, as LeRobot resets after an episode's last
    step, they stay."""

    class Randomized(environment_class()):  # type: ignore[misc]
        def reset(self, seed: int | None = None, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            if seed is not None:
                self.scene.change(kinds, seed)
            return super().reset(seed=seed, **kwargs)

    return Randomized
