"""`lerobot-theia-distill`: make a Theia from teachers and images (settings: configs/distill)."""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from tqdm import tqdm

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.nested import flat
from lerobot_theia.distill.watcher import Watcher
from lerobot_theia.scripts.configs import config_folder
from lerobot_theia.scripts.signals import end_in_order


class Show(Watcher):
    """A bar with images/s and time left, the losses beside it, and everything to wandb if asked."""

    def __init__(self, config: DictConfig, main: bool) -> None:
        self.main = main
        self.bar: tqdm | None = None
        self.run: Any = None
        if main and config.wandb.enable:
            import wandb

            try:
                self.run = wandb.init(
                    project=config.wandb.project,
                    mode=config.wandb.mode,
                    job_type="distill",
                    config=OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]
                )
            except wandb.Error as error:
                raise DistillError(
                    f"wandb: {error}. Log in with `wandb login`, or wandb.mode=offline, or wandb.enable=false"
                ) from error

    def begin(self, done: int, total: int) -> None:
        if self.main:
            self.bar = tqdm(
                initial=done, total=total, unit="image", smoothing=0.05, dynamic_ncols=True, desc="train"
            )

    def advance(self, images: int) -> None:
        if self.bar is not None:
            self.bar.update(images)

    def log(self, line: Mapping[str, Any]) -> None:
        if not self.main:
            return
        if "validation" in line:
            score = line["validation"]
            teachers = ", ".join(f"{name} {found['cosine']:.4f}" for name, found in score["teachers"].items())
            self.say(f"step {line['step']}: validation loss {score['loss']:.4f} (cosine: {teachers})")
        elif self.bar is not None:
            self.bar.set_postfix_str(f"{line['size']} px, loss {line['loss']:.4f}", refresh=False)
        if self.run is not None:
            self.run.log(numbers(line), step=line["step"])

    def picture(self, step: int, path: Path) -> None:
        if self.run is not None:
            import wandb

            self.run.log({"pictures": wandb.Image(str(path))}, step=step)

    def say(self, text: str) -> None:
        if self.main:
            tqdm.write(text)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def close(self) -> None:
        self.end()
        if self.run is not None:
            self.run.finish()


class Steps:
    """One bar after the other for packing and extracting."""

    def __init__(self, main: bool) -> None:
        self.main = main
        self.what = ""
        self.bar: tqdm | None = None

    def __call__(self, what: str, new: int, total: int) -> None:
        if not self.main:
            return
        if what != self.what:
            self.close()
            self.what, self.bar = what, tqdm(total=total, unit="image", desc=what, dynamic_ncols=True)
        assert self.bar is not None
        self.bar.update(new)
        if self.bar.n >= total:
            self.bar.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Nested numbers under names with slashes, as wandb groups them."""
    return {name: value for name, value in flat(line, "/").items() if isinstance(value, int | float)}


def settings_of(config: DictConfig) -> dict[str, Any]:
    fields = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(fields, dict)
    fields.pop("wandb")
    return {str(name): value for name, value in fields.items()}


@hydra.main(version_base="1.3", config_path=f"{config_folder()}/distill", config_name="distill")
def run(config: DictConfig) -> None:
    from lerobot_theia.cache.errors import CacheError
    from lerobot_theia.cache.paging import keep_freed_memory
    from lerobot_theia.demos.recording import RecordingError
    from lerobot_theia.distill.provenance import command_line
    from lerobot_theia.distill.run import distill
    from lerobot_theia.distill.settings import settings_from

    keep_freed_memory()
    main = os.environ.get("RANK", "0") == "0"  # set by `accelerate launch`
    steps = Steps(main)
    show: Show | None = None
    try:
        settings = settings_from(settings_of(config))
        show = Show(config, main)
        result = distill(settings, show, steps, command_line())
        if result is not None:
            show.say(f"student: {result}")
    except (
        DistillError, CacheError, RecordingError, ValueError, OSError, OmegaConfBaseException, SafetensorError,
    ) as error:  # fmt: skip
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        logging.getLogger(__name__).debug("details", exc_info=True)
        sys.exit(f"lerobot-theia-distill: {error}")
    except SystemExit:
        tqdm.write(
            "stopped; what is packed, extracted and in checkpoints is kept: the same command with resume=true goes on"
        )
        raise
    except torch.OutOfMemoryError as error:
        sys.exit(
            "lerobot-theia-distill: the device is full. While features are extracted, halve feature_batch_size; before training, "
            "training.batch_size (and its learning rate). A run that has begun keeps its batch size, and goes on with "
            f"training.bf16=true, more processes or a smaller size in training.stages ({error})"
        )
    finally:
        steps.close()
        if show is not None:
            show.close()


def main() -> None:
    end_in_order()
    run()


if __name__ == "__main__":
    main()
