"""Where feature caches live."""

import os
from pathlib import Path

CACHE_ROOT_VARIABLE = "LEROBOT_THEIA_CACHE"


def default_cache_root() -> Path:
    """The folder that holds caches when no `cache_root` is given.

    In this order: the environment variable `LEROBOT_THEIA_CACHE`; the `cache/` folder of a checkout this
    package runs from; `theia/` in LeRobot's home.
    """
    if variable := os.environ.get(CACHE_ROOT_VARIABLE):
        return Path(variable).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "cache" / "README.md").is_file() and (checkout / "pyproject.toml").is_file():
        return checkout / "cache"
    from lerobot.utils.constants import HF_LEROBOT_HOME

    return HF_LEROBOT_HOME / "theia"


def resolve_cache_root(cache_root: str | Path | None) -> Path:
    return Path(cache_root).expanduser() if cache_root else default_cache_root()
