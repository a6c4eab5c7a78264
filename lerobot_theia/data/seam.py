"""The one seam into `lerobot-train`.

LeRobot 0.6 builds its datasets in `make_train_eval_datasets`, which `lerobot_train.py` imports by name, and has
no hook there. When the config of a Theia policy is made, that name is bound to a function that calls LeRobot's
own and, if a feature cache fits, hands out datasets that serve from it. A resumed run is given a sampler that
resumes, too. Other policies pass straight through.
"""

import importlib.metadata
import inspect
import logging
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from packaging.specifiers import SpecifierSet

LEROBOT_VERSIONS = SpecifierSet(">=0.6.1,<0.7")
NAME = "make_train_eval_datasets"
SAMPLER = "EpisodeAwareSampler"
TRAIN_SCRIPT = "lerobot.scripts.lerobot_train"

logger = logging.getLogger(__name__)


class SeamError(RuntimeError):
    """LeRobot is not as this plugin knows it; training would run on something else than the user asked for."""


def install() -> None:
    """Bind `NAME` in every loaded module of LeRobot that holds it. Idempotent, and cheap to call again.

    Raises SeamError for a LeRobot of another version or shape.
    """
    check_version()
    script = train_script()
    if script is not None and not hasattr(script, NAME):
        raise SeamError(f"{TRAIN_SCRIPT} has no {NAME}: {remedy()}")
    for module in {id(module): module for module in loaded_modules(script)}.values():
        function = getattr(module, NAME, None)
        if function is not None and not hasattr(function, "lerobot_function"):
            setattr(module, NAME, serving_features(function))


def check_version() -> None:
    version = importlib.metadata.version("lerobot")
    if not LEROBOT_VERSIONS.contains(version, prereleases=True):
        raise SeamError(
            f"LeRobot {version} is installed; this plugin works with {LEROBOT_VERSIONS}. "
            f"Install one of those, or a lerobot_policy_theia made for {version}."
        )


def train_script() -> ModuleType | None:
    """`lerobot_train.py` as loaded: by its name, or as `__main__` under `python -m`."""
    main = sys.modules.get("__main__")
    if getattr(getattr(main, "__spec__", None), "name", None) == TRAIN_SCRIPT:
        return main
    return sys.modules.get(TRAIN_SCRIPT)


def loaded_modules(script: ModuleType | None) -> list[ModuleType]:
    # The factory too: whoever imports the name from there later gets ours.
    found = [script, sys.modules.get("lerobot.datasets.factory"), sys.modules.get("lerobot.datasets")]
    return [module for module in found if module is not None]


def serving_features(original: Callable[[Any], tuple]) -> Callable[[Any], tuple]:
    """Wrap LeRobot's function."""
    parameters = list(inspect.signature(original).parameters)
    if parameters != ["cfg"]:
        raise SeamError(f"{NAME} takes {parameters}, expected ['cfg']: {remedy()}")

    def make_train_eval_datasets(cfg: Any) -> tuple:
        from lerobot_theia.data.serve import serve_features

        bind_sampler(cfg)
        return serve_features(cfg, original)

    make_train_eval_datasets.lerobot_function = original  # type: ignore[attr-defined]
    return make_train_eval_datasets


def bind_sampler(cfg: Any) -> None:
    """The training script makes its sampler after its datasets: in a resumed run of a Theia policy, one that resumes
    where it stopped; in any other, LeRobot's own.
    """
    from lerobot_theia.data.resume import ResumableSampler
    from lerobot_theia.data.settings import FeatureSettings

    script = train_script()
    if script is None:
        return
    bound = getattr(script, SAMPLER, None)
    if cfg.resume and isinstance(cfg.trainable_config, FeatureSettings):
        if bound is None:
            raise SeamError(f"{TRAIN_SCRIPT} has no {SAMPLER}: {remedy()}")
        sampler = partial(ResumableSampler, batch_size=cfg.batch_size)
        sampler.lerobot_class = getattr(bound, "lerobot_class", bound)  # type: ignore[attr-defined]
        setattr(script, SAMPLER, sampler)
    elif bound is not None and hasattr(bound, "lerobot_class"):
        setattr(script, SAMPLER, bound.lerobot_class)


def remedy() -> str:
    return (
        f"LeRobot {importlib.metadata.version('lerobot')} is not as lerobot_policy_theia knows it. "
        f"Install `lerobot{LEROBOT_VERSIONS}` unchanged."
    )
