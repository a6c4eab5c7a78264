"""Environments of the suites that LeRobot does not have. `--env.discover_packages_path=benchmarks.quality.envs` registers
them with lerobot-eval."""

from benchmarks.quality.envs import metaworld_randomized, metaworld_state

__all__ = ["metaworld_randomized", "metaworld_state"]
