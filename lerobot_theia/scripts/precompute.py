"""`lerobot-theia-precompute`: encode every camera frame of a dataset once (settings: configs/precompute.yaml)."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from lerobot_theia.scripts.configs import config_folder
from lerobot_theia.scripts.signals import end_in_order

TEXTS = (
    "dataset.repo_id", "dataset.root", "dataset.revision", "encoder.name", "encoder.revision", "cache_root", "report",
    "wandb.project", "wandb.mode",
)  # fmt: skip
"""Settings that are text whatever they look like."""


def settings_of(config: DictConfig) -> dict[str, Any]:
    """Hydra's groups, flattened to the fields of `PrecomputeSettings`. Raises ValueError for values of another kind."""
    from lerobot_theia.cache import augment

    if "repo_id" not in config.dataset:
        raise ValueError(
            "which dataset? Name one of configs/dataset (dataset=pusht) or any LeRobotDataset v3 "
            "(+dataset.repo_id=user/name, with dataset.root=... for a local folder)"
        )
    for name in TEXTS:
        check_text(name, OmegaConf.select(config, name))
    fields = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(fields, dict)
    dataset, encoder = fields.pop("dataset"), fields.pop("encoder")
    for name in ("wandb", "report"):
        fields.pop(name)
    fields["views"], fields["augment"] = augment.from_settings(fields["augment"])
    fields["cameras"] = cameras_of(fields["cameras"])
    return {
        **{str(name): value for name, value in fields.items()},
        "repo_id": dataset["repo_id"],
        "root": dataset["root"],
        "revision": dataset["revision"],
        "encoder": encoder["name"],
        "encoder_revision": encoder["revision"],
    }


def check_text(name: str, value: object) -> None:
    """Hydra makes 1.1 of `1.10`: what was typed is lost, so that we can only ask for it again."""
    if value is not None and type(value) is not str:
        raise ValueError(
            f"{name} was read as {value!r}, and must be text: put it in two pairs of quotes, '{name}=\"...\"', of which "
            "the shell takes one and Hydra the other"
        )


def cameras_of(value: object) -> tuple[str, ...] | None:
    """One name is a list of one. Raises ValueError for what is no name."""
    if value is None:
        return None
    names = value if isinstance(value, list) else [value]
    for name in names:
        check_text("cameras", name)
    return tuple(names)


def check_report(path: Path) -> None:
    """Raises ValueError where the outcome could not be written: better now than after the work."""
    place = path if path.exists() else path.parent
    if path.is_dir() or not path.parent.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(
            f"report={path} cannot be written: name a file in a folder that is there and can be written to"
        )


class Progress:
    """A bar with frames/s and time left, and the same figures to wandb if asked."""

    def __init__(self, config: DictConfig, total: int) -> None:
        self.bar = tqdm(total=total, unit="frame", unit_scale=False, smoothing=0.05, dynamic_ncols=True)
        self.begun = False
        self.run = None
        if config.wandb.enable:
            import wandb

            self.run = wandb.init(
                project=config.wandb.project,
                mode=config.wandb.mode,
                job_type="precompute",
                config=OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]
            )

    def __call__(self, done: int, new: int) -> None:
        if not self.begun:
            # Frames of an earlier run are not this run's speed.
            self.bar.initial = self.bar.n = done
            self.begun = True
        self.bar.update(done - self.bar.n)
        if self.run is not None:
            self.run.log({"frames": done, "frames_per_s": self.bar.format_dict["rate"] or 0.0})

    def close(self) -> None:
        self.bar.close()
        if self.run is not None:
            self.run.finish()


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="precompute")
def run(config: DictConfig) -> None:
    from lerobot_theia.cache.errors import CacheError
    from lerobot_theia.cache.paging import keep_freed_memory
    from lerobot_theia.cache.plan import Plan, PrecomputeSettings
    from lerobot_theia.cache.precompute import precompute

    keep_freed_memory()
    progress: Progress | None = None

    def start(plan: Plan) -> None:
        nonlocal progress
        progress = Progress(config, plan.num_frames)

    def advance(done: int, new: int) -> None:
        assert progress is not None, "the plan comes before progress"
        progress(done, new)

    try:
        settings = PrecomputeSettings(**settings_of(config))
        if config.report:
            check_report(Path(config.report))
        report = precompute(
            settings,
            say=tqdm.write,
            on_plan=start,
            progress=advance,
        )
        if config.report:
            Path(config.report).write_text(json.dumps(report.to_json(), indent=2) + "\n")
    except (CacheError, ValueError, OSError, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        logging.getLogger(__name__).debug("details", exc_info=True)
        sys.exit(f"lerobot-theia-precompute: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(
            f"lerobot-theia-precompute: the device is full at batch_size={config.batch_size}; halve it ({error})"
        )
    except SystemExit:
        if progress is None:
            tqdm.write("stopped before any work; the same command begins it")
        raise
    finally:
        if progress is not None:
            progress.close()


def main() -> None:
    end_in_order()
    run()


if __name__ == "__main__":
    main()
