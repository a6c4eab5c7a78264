"""Where the Hydra configs are: in the package when installed, beside it in a checkout."""

from pathlib import Path


def config_folder() -> str:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "precompute.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no Hydra configs beside or in {package}; reinstall lerobot_policy_theia")
