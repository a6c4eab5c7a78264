"""The training loop: one or several processes, bfloat16 or float32, resumed exactly."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin
from torch import Tensor, nn

from lerobot_theia.cache.pipeline import Ahead
from lerobot_theia.distill.augment import recolour
from lerobot_theia.distill.checkpoint import (
    Position,
    load_checkpoint,
    newest_position,
    save_checkpoint,
)
from lerobot_theia.distill.corpus import Corpus, Order, evenly
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.frames import VALIDATION
from lerobot_theia.distill.lessons import Batch, Lesson, read_batch, targets
from lerobot_theia.distill.loss import batch_loss, teacher_loss
from lerobot_theia.distill.metrics import METRICS_FILE, MetricsLog, Tally, score_of
from lerobot_theia.distill.optimizer import make_optimizer
from lerobot_theia.distill.pictures import draw_pictures
from lerobot_theia.distill.schedule import Resolution
from lerobot_theia.distill.student import Student
from lerobot_theia.distill.training_settings import TrainingSettings
from lerobot_theia.distill.validate import Score, validate
from lerobot_theia.distill.watcher import Watcher

PICTURES_FOLDER = "pictures"
BATCHES_AHEAD = 2
SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@dataclass(frozen=True)
class Trained:
    """How a training ended."""

    steps: int
    images: int
    seconds: float
    sessions: int
    history: tuple[dict[str, Any], ...]
    first: Score
    last: Score


class Training:
    """A student, its lessons, and the steps between.

    Args:
        run: what must be the same when the run is resumed: names of settings and values.
        session: what is written down of this session, if it takes a step; see `Position.history`.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        student: Student,
        corpus: Corpus,
        lessons: Sequence[Lesson],
        output_dir: Path,
        run: Mapping[str, Any],
        session: Mapping[str, Any],
        accelerator: Accelerator,
        watcher: Watcher,
    ) -> None:
        self.settings, self.corpus, self.lessons = settings, corpus, list(lessons)
        self.output_dir, self.accelerator, self.watcher = output_dir, accelerator, watcher
        self.run, self.session = dict(run), dict(session)
        self.order = Order(corpus.epoch, settings.batch_size, settings.seed)
        self.steps = settings.total_steps(self.order.steps_per_epoch)
        self.resolution = Resolution(settings.stages, self.steps)
        self.rate = settings.rate(self.steps)
        self.weights = {lesson.teacher.name: lesson.weight for lesson in lessons}
        self.held_out = evenly(corpus.indices[VALIDATION], settings.validation_images)
        self.student = student
        student.to(accelerator.device)
        self.optimizer = make_optimizer(student, settings)
        self.position = Position(0, 0.0, 0, self.run)
        self.first: Score | None = None

    def resume(self, folder: Path, position: Position) -> None:
        """Go on from a checkpoint of this run. Raises DistillError if that has more steps than are wanted."""
        if position.step > self.steps:
            raise DistillError(
                f"{folder} has {position.step} steps; wanted are {self.steps}: raise training.steps (or epochs), or begin anew in "
                "another output_dir"
            )
        load_checkpoint(folder, self.student, self.optimizer)
        self.position = position
        self.first = None if position.first is None else score_of(position.first)

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """Of the sessions that took a step, and of this one if any step is left."""
        step = self.position.step
        return self.position.history + (({"from_step": step} | self.session,) if step < self.steps else ())

    def train(self) -> Trained:
        """Train to the end."""
        settings, main = self.settings, self.accelerator.is_main_process
        step = self.position.step
        began = time.perf_counter()
        earlier, sessions = self.position.seconds, self.position.sessions + 1
        history = self.history
        log = MetricsLog(self.output_dir / METRICS_FILE, step, main)
        several = self.accelerator.num_processes > 1
        model: nn.Module = self.accelerator.prepare(self.student) if several else self.student
        self.watcher.begin(step * settings.batch_size, self.steps * settings.batch_size)
        last = None
        if step == 0:
            last = self.first = self.score(0, log)
        assert self.first is not None
        first = cast(dict[str, Any], self.first.to_json())
        tally, tally_began = Tally(), time.perf_counter()
        with Ahead(self.read, range(step, self.steps), threads=1, items=BATCHES_AHEAD) as batches:
            for _, batch in batches:
                size, rate = self.resolution.at(step), self.rate.at(step)
                loss, losses = self.take_step(model, batch, step, size, rate)
                step += 1
                tally.add(loss, settings.batch_size, losses)
                self.watcher.advance(settings.batch_size)
                checkpoint = step % settings.checkpoint_every == 0 or step == self.steps
                if step % settings.log_every == 0 or checkpoint:
                    seconds = time.perf_counter() - tally_began
                    line = {"step": step, "images": step * settings.batch_size, "size": size}
                    line |= {"learning_rate": rate} | tally.means() | {"images_per_s": tally.images / seconds}
                    log.write(line)
                    self.watcher.log(line)
                    tally, tally_began = Tally(), time.perf_counter()
                paused = time.perf_counter()
                if step % settings.validate_every == 0 or step == self.steps:
                    last = self.score(step, log)
                if checkpoint:
                    spent = earlier + time.perf_counter() - began
                    self.position = Position(step, spent, sessions, self.run, history, first)
                    if main:
                        save_checkpoint(self.output_dir, self.student, self.optimizer, self.position)
                    self.accelerator.wait_for_everyone()
                tally_began += time.perf_counter() - paused
        if last is None:  # all steps were taken before
            last = log.score_of(step) or self.score(step, log)
        self.watcher.end()
        return Trained(
            steps=step,
            images=step * settings.batch_size,
            seconds=self.position.seconds,
            sessions=self.position.sessions,
            history=history,
            first=self.first,
            last=last,
        )

    def read(self, step: int) -> Batch:
        """This process's share of a step's images."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        indices = self.order.batch(step)[rank::processes]
        return read_batch(self.corpus, self.lessons, [int(index) for index in indices])

    def take_step(
        self, model: nn.Module, batch: Batch, step: int, size: int, rate: float
    ) -> tuple[float, dict[str, tuple[float, float]]]:
        """One optimiser step; returns the loss and each teacher's (cosine, SmoothL1), means of this process."""
        device, settings = self.accelerator.device, self.settings
        wanted = targets(batch, self.lessons, self.corpus, device)
        seed = settings.seed * self.accelerator.num_processes + self.accelerator.process_index
        images = recolour(batch.images(size, device), settings.recolour, seed, step)
        rows = {name: target.rows for name, target in wanted.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            predicted: dict[str, Tensor] = model(images, rows, size)
        losses = {
            name: teacher_loss(predicted[name], target.features, target.rows)
            for name, target in wanted.items()
        }
        loss = batch_loss(losses, self.weights, len(batch))
        blamed = [name for name, found in losses.items() if not torch.isfinite(found.total).all()]
        self.check_finite("loss", loss, f"teachers {blamed}; ", batch, step)
        self.accelerator.backward(loss)
        most = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), most)
        self.check_finite("gradient", norm, "", batch, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item(), {
            name: (found.cosine.mean().item(), found.smooth_l1.mean().item())
            for name, found in losses.items()
        }

    def check_finite(self, what: str, value: Tensor, blamed: str, batch: Batch, step: int) -> None:
        """Before the optimiser moves any weight, so that no checkpoint and no result holds one that is not finite."""
        if torch.isfinite(value):
            return
        images = [self.corpus.id(index) for index in batch.indices[:3]]
        kept = newest_position(self.output_dir)
        since, earlier = "the beginning", ""
        if kept is not None:
            folder, position = kept
            since = f"step {position.step}"
            earlier = f". Should it happen again, delete {folder} to go on from before that"
        raise DistillError(
            f"the {what} of step {step} is {value.item()} ({blamed}images {', '.join(images)}, ...). Nothing of this step "
            f"was kept. Resume from {since} with a lower training.learning_rate, or with training.clip_norm=1.0"
            f"{', or without bf16' if self.settings.bf16 else ''}{earlier}"
        )

    def score(self, step: int, log: "MetricsLog") -> Score:
        """Validate, log and draw."""
        size = self.resolution.at(min(step, self.steps - 1))
        settings = self.settings
        score = validate(
            self.student,
            self.corpus,
            self.lessons,
            self.held_out,
            size=size,
            batch_size=max(1, settings.batch_size // self.accelerator.num_processes),
            bf16=settings.bf16,
            accelerator=self.accelerator,
        )
        if not math.isfinite(score.loss):
            raise DistillError(
                f"the validation loss of step {step} is {score.loss}: {score.teachers}. Nothing of this step was kept. Resume "
                "with a lower training.learning_rate, or without bf16; at step 0 features of a teacher are not finite"
            )
        line = {"step": step, "validation": score.to_json()}
        log.write(line)
        self.watcher.log(line)
        if self.accelerator.is_main_process and settings.pictures:
            path = self.output_dir / PICTURES_FOLDER / f"{step:08d}.png"
            chosen = evenly(self.held_out, settings.pictures)
            draw_pictures(
                path, self.student, self.corpus, self.lessons, chosen, size, self.accelerator.device
            )
            self.watcher.picture(step, path)
        return score


def check_device(device: str | None) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise DistillError("device=cuda, but this machine has no CUDA device that torch can use; device=cpu")


def make_accelerator(device: str | None, partial: bool) -> Accelerator:
    """Processes as `accelerate launch` started them, else this one.

    Precision and batches are those of the settings, whatever accelerate's own configuration says.

    Args:
        partial: some teachers teach some images only, so that a process may miss a head in a step.
    """
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if partial else []
    accelerator = Accelerator(
        cpu=device == "cpu" or not torch.cuda.is_available(),
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=handlers,
    )
    if accelerator.distributed_type in SHARDING:
        raise DistillError(
            f"accelerate is set up for {accelerator.distributed_type.value}, which shards a student that is small: launch with "
            "`accelerate launch --multi_gpu`, or change accelerate's configuration (`accelerate config`)"
        )
    return accelerator
