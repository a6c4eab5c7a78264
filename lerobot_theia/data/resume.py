"""Exact resume: a run that was interrupted and continued takes the steps it would have taken.

LeRobot 0.6 restores weights, optimiser, schedule and the state of the random number generators. Two things it leaves
open: accelerate sets a resumed sampler back to its first epoch, and making a loader's iterator, or evaluating in a
simulator, draws from the generators that the next step's dropout and noise are drawn from.
"""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lerobot.common.train_utils import load_training_step
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import EpisodeAwareSampler
from lerobot.utils.constants import TRAINING_STATE_DIR
from torch import distributed


class StepSeeds:
    """Seeds each training step by its number, so that its dropout and noise depend on nothing that came before.

    Args:
        seed: Of the run, `--seed`.
        steps_done: Steps taken before this process began; 0 unless it resumes.
    """

    def __init__(self, seed: int, steps_done: int = 0) -> None:
        self.seed, self.steps_done = seed, steps_done

    @classmethod
    def of_run(cls, cfg: TrainPipelineConfig) -> "StepSeeds | None":
        """None for a run without a seed."""
        if cfg.seed is None:
            return None
        if not cfg.resume:
            return cls(cfg.seed)
        assert cfg.checkpoint_path is not None, "TrainPipelineConfig.validate sets it"
        return cls(cfg.seed, load_training_step(cfg.checkpoint_path / TRAINING_STATE_DIR))

    def begin_step(self) -> None:
        """Processes of one run draw different numbers."""
        entropy = np.random.SeedSequence([self.seed, rank(), self.steps_done])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        self.steps_done += 1


class ResumableSampler(EpisodeAwareSampler):
    """LeRobot's sampler, whose `load_state_dict` holds against accelerate.

    accelerate counts epochs from 0 in each process and tells the sampler so; here that count goes on from the epoch
    that was restored. And where it shares batches between processes, it fills the last ones up with the first samples
    it saw in the epoch; in an epoch that was entered midway these are others, so this sampler does the filling.

    Args:
        batch_size: Of one process.
    """

    def __init__(self, *args: Any, batch_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batch_size = batch_size
        self._restored: int | None = None
        self._ahead = 0

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._restored = state["epoch"]

    def set_epoch(self, epoch: int) -> None:
        if self._restored is not None:
            self._ahead, self._restored = self._restored - epoch, None
        super().set_epoch(epoch + self._ahead)

    def __iter__(self) -> Iterator[int]:
        state = self.state_dict()
        indices = super().__iter__()
        if state["start_index"] == 0 or num_processes() == 1:
            return indices
        missing = -(len(self) - state["start_index"]) % (self.batch_size * num_processes())
        whole_epoch = copy.copy(self)
        whole_epoch.load_state_dict({"epoch": state["epoch"], "start_index": 0})
        return itertools.chain(indices, itertools.islice(whole_epoch, missing))


def rank() -> int:
    return distributed.get_rank() if in_group() else 0


def num_processes() -> int:
    return distributed.get_world_size() if in_group() else 1


def in_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()
