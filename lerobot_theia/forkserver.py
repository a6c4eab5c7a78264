"""Simulators in parallel processes.

LeRobot evaluates several environments at once in processes of a forkserver, where nothing is imported. Packages that
register their environments only on import (gym-pusht, gym-aloha) are unknown there, and `lerobot-eval` ends with
`NamespaceNotFound`. Let the forkserver import those that are installed before it forks.
"""

import importlib.util
import multiprocessing

SIMULATORS = ("gym_pusht", "gym_aloha")


def preload_simulators() -> None:
    """Has an effect until the first process is started; costs nothing where no forkserver is used."""
    installed = [name for name in SIMULATORS if importlib.util.find_spec(name) is not None]
    multiprocessing.set_forkserver_preload(["__main__", *installed])
