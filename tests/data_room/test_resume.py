"""A resumed run goes on with the samples, and the random numbers, that the interrupted one would have come to."""

import itertools
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.common.train_utils import save_training_step
from lerobot.datasets import EpisodeAwareSampler, compute_sampler_state
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.utils.constants import TRAINING_STATE_DIR
from lerobot.utils.utils import cycle
from torch.utils.data import DataLoader

from lerobot_theia.data import resume, seam
from lerobot_theia.data.resume import ResumableSampler, StepSeeds
from tests.data_room.conftest import act, train_config
from tests.policies.conftest import make_policy, training_batch

Batches = list[list[int]]


def batches(
    sampler: EpisodeAwareSampler, batch_size: int, processes: int, process: int, count: int
) -> Batches:
    """What one process of a run gets, through the loader that `lerobot-train` and accelerate make."""
    loader = DataLoader(list(range(1000)), batch_size=batch_size, sampler=sampler)  # type: ignore[arg-type]
    shard = prepare_data_loader(loader, num_processes=processes, process_index=process, put_on_device=True)
    return [batch.tolist() for batch in itertools.islice(cycle(shard), count)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch_size=st.integers(1, 5),
    processes=st.integers(1, 3),
    step=st.integers(0, 20),
)
def test_every_process_goes_on_with_the_batches_it_would_have_come_to(
    lengths: list[int], batch_size: int, processes: int, step: int
) -> None:
    ends = list(itertools.accumulate(lengths))
    episodes = ([0, *ends[:-1]], ends)
    for process in range(processes):
        fresh = EpisodeAwareSampler(*episodes, shuffle=True, seed=5)
        wanted = batches(fresh, batch_size, processes, process, step + 15)[step:]
        sampler = ResumableSampler(*episodes, shuffle=True, seed=5, batch_size=batch_size)
        sampler.load_state_dict(compute_sampler_state(step, len(sampler), batch_size, processes))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resume, "num_processes", lambda: processes)
            assert batches(sampler, batch_size, processes, process, 15) == wanted


@settings(max_examples=60, deadline=None, derandomize=True)
@given(frames=st.integers(1, 40), batch_size=st.integers(1, 5), processes=st.integers(2, 4))
def test_an_epoch_shared_by_processes_serves_each_sample_to_one_of_them(
    frames: int, batch_size: int, processes: int
) -> None:
    """The last batches are filled up with the first samples, so that all processes take as many steps."""
    steps = -(-frames // (batch_size * processes))
    shares = [
        batches(
            EpisodeAwareSampler([0], [frames], shuffle=True, seed=1), batch_size, processes, process, steps
        )
        for process in range(processes)
    ]
    served = [sample for step in zip(*shares, strict=True) for share in step for sample in share]
    assert sorted(served[:frames]) == list(range(frames))
    assert served[frames:] == (served[:frames] * batch_size * processes)[: len(served) - frames]
    assert len(served) == steps * batch_size * processes


def test_a_loader_that_counts_epochs_itself_is_left_alone() -> None:
    """As accelerate would if LeRobot told it where the run resumes."""
    sampler = ResumableSampler([0], [9], shuffle=True, batch_size=3)
    sampler.load_state_dict({"epoch": 4, "start_index": 3})
    sampler.set_epoch(4)
    assert sampler.state_dict() == {"epoch": 4, "start_index": 3}
    list(sampler)
    sampler.set_epoch(5)
    assert sampler.state_dict() == {"epoch": 5, "start_index": 0}


class TestSeeds:
    def drawn(self, seeds: StepSeeds) -> list[float]:
        seeds.begin_step()
        return torch.rand(3).tolist()

    def test_a_step_draws_by_its_number_whatever_was_drawn_before(self) -> None:
        whole = StepSeeds(7)
        wanted = [self.drawn(whole) for _ in range(4)]
        assert len({tuple(each) for each in wanted}) == 4
        torch.rand(100)  # an evaluation, or a loader's iterator
        resumed = StepSeeds(7, steps_done=2)
        assert [self.drawn(resumed), self.drawn(resumed)] == wanted[2:]

    def test_runs_and_processes_draw_different_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.drawn(StepSeeds(7))
        assert self.drawn(StepSeeds(8)) != first
        monkeypatch.setattr(resume, "rank", lambda: 1)
        assert self.drawn(StepSeeds(7)) != first

    def test_a_resumed_run_goes_on_from_its_checkpoint(self, tmp_path: Path) -> None:
        config = train_config(tmp_path)
        assert (seeds := StepSeeds.of_run(config)) and (seeds.seed, seeds.steps_done) == (config.seed, 0)
        state = tmp_path / TRAINING_STATE_DIR
        state.mkdir()
        save_training_step(11, state)
        config.resume, config.checkpoint_path = True, tmp_path
        assert (seeds := StepSeeds.of_run(config)) and seeds.steps_done == 11

    def test_a_run_without_a_seed_is_left_to_chance(self, tmp_path: Path) -> None:
        config = train_config(tmp_path)
        config.seed = None
        assert StepSeeds.of_run(config) is None


@pytest.mark.parametrize("kind", ["theia_act", "theia_diffusion"])
def test_a_policys_training_steps_are_seeded_and_nothing_else(kind: str) -> None:
    policy = make_policy(kind)
    batch = training_batch(policy)

    def loss(seeds: StepSeeds | None) -> float:
        policy.step_seeds = seeds
        return policy.train().forward(dict(batch))[0].item()

    seeds = StepSeeds(3)
    first, second = loss(seeds), loss(seeds)
    assert first != second
    policy.eval().forward(dict(batch))  # held-out loss
    assert seeds.steps_done == 2
    assert loss(StepSeeds(3, steps_done=1)) == second
    torch.manual_seed(0)
    wanted = loss(None)
    torch.manual_seed(0)
    assert loss(None) == wanted != first, "without a seed the generators are left alone"


class TestSeam:
    @pytest.fixture
    def script(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        module = ModuleType(seam.TRAIN_SCRIPT)
        module.EpisodeAwareSampler = EpisodeAwareSampler  # type: ignore[attr-defined]
        setattr(module, seam.NAME, lambda cfg: (None, None))
        monkeypatch.setattr(seam, "train_script", lambda: module)
        return module

    def config(self, policy: Any = None, resume: bool = False) -> Any:
        return SimpleNamespace(resume=resume, batch_size=4, trainable_config=policy or act())

    def test_a_resumed_run_of_ours_gets_the_sampler(self, script: ModuleType) -> None:
        seam.bind_sampler(self.config(resume=True))
        sampler = script.EpisodeAwareSampler([0], [9], seed=2)
        assert isinstance(sampler, ResumableSampler) and (sampler.batch_size, sampler.seed) == (4, 2)

    def test_any_other_run_gets_lerobots(self, script: ModuleType) -> None:
        lerobots_act = ACTConfig(push_to_hub=False, device="cpu")
        for other in (self.config(), self.config(lerobots_act, resume=True)):
            seam.bind_sampler(self.config(resume=True))
            seam.bind_sampler(self.config(resume=True))
            assert isinstance(script.EpisodeAwareSampler, partial)
            seam.bind_sampler(other)
            assert script.EpisodeAwareSampler is EpisodeAwareSampler

    def test_a_script_without_the_name_is_refused(self, script: ModuleType) -> None:
        del script.EpisodeAwareSampler
        seam.bind_sampler(self.config())
        with pytest.raises(seam.SeamError, match="has no EpisodeAwareSampler"):
            seam.bind_sampler(self.config(resume=True))

    def test_lerobots_real_script_uses_it_as_it_is_known(self) -> None:
        import lerobot

        source = (Path(lerobot.__file__).parent / "scripts/lerobot_train.py").read_text()
        assert "sampler = EpisodeAwareSampler(" in source
        assert source.index("make_train_eval_datasets(cfg)") < source.index("EpisodeAwareSampler(\n")
        assert "sampler.load_state_dict(sampler_state)" in source
