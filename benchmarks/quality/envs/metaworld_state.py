"""`--env.type=metaworld_state`: LeRobot's Meta-World, observed as the simulator's true state.

Its observation is that which the recorder stores as `observation.environment_state`.
"""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE

from benchmarks.quality.envs.one_process import side_by_side

STATE = 39
POSITION = 4


@EnvConfig.register_subclass("metaworld_state")
@dataclass
class MetaworldStateEnv(EnvConfig):
    """One task of Meta-World.

    Args:
        task: as `drawer-open-v3`.
    """

    task: str | None = None
    fps: int = 80
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(4,)),
            "environment_state": PolicyFeature(type=FeatureType.ENV, shape=(STATE,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(POSITION,)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            ACTION: ACTION,
            "environment_state": OBS_ENV_STATE,
            "agent_pos": OBS_STATE,
        }
    )

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """{"metaworld_state": {0: environments}}"""
        return side_by_side(self, n_envs, use_async_envs, state_environment)


def state_environment(task: str) -> gym.Env:
    """Observes {"environment_state": (39,), "agent_pos": (4,)}; renders only for videos."""
    from lerobot.envs.metaworld import MetaworldEnv

    class Environment(MetaworldEnv):
        def __init__(self) -> None:
            super().__init__(task, obs_type="pixels_agent_pos")
            sizes = {"environment_state": STATE, "agent_pos": POSITION}
            self.observation_space = gym.spaces.Dict(
                {name: gym.spaces.Box(-np.inf, np.inf, (size,), np.float64) for name, size in sizes.items()}
            )

        def _format_raw_obs(self, raw_obs: np.ndarray) -> dict[str, np.ndarray]:
            return {"environment_state": raw_obs, "agent_pos": raw_obs[:POSITION]}

    return Environment()
