"""What environments of one task that step in one process have in common."""

from collections.abc import Callable

import gymnasium as gym
from lerobot.envs.configs import EnvConfig


def side_by_side(
    config: EnvConfig, n_envs: int, use_async_envs: bool, make: Callable[[str], gym.Env]
) -> dict[str, dict[int, gym.vector.VectorEnv]]:
    """{type: {0: environments}}, as `EnvConfig.create_envs` returns them; `make` is given the task.

    Raises:
        ValueError: if no task is named, or several processes are wanted.
    """
    task = config.task
    if task is None:
        raise ValueError(f"--env.task is missing: {config.type} is one task, such as drawer-open-v3")
    if use_async_envs:
        raise ValueError(f"{config.type} steps in one process: pass --eval.use_async_envs=false")
    return {config.type: {0: gym.vector.SyncVectorEnv([lambda: make(task) for _ in range(n_envs)])}}
