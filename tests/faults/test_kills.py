"""Killed at any moment, a precompute leaves a folder that resumes to the very bytes of one never interrupted.

Each trial checks, after the kill: shards that have their name are whole, and a cache opens only if it is. After the
resume: same shards, same manifest (but for time and versions), no file besides, nothing finished computed again.
"""

import functools
import signal
from pathlib import Path

import pytest

from lerobot_theia.cache.claim import take
from tests.faults import children, trials
from tests.faults.children import Tell
from tests.faults.injection import Fault, inject
from tests.faults.trials import (
    every_fault,
    how_long,
    in_turns,
    kill_after,
    kill_at,
    random_delays,
    stop_after,
)
from tests.faults.workshop import Job, Whole, made, run

pytestmark = pytest.mark.faults

RANDOM_KILLS, RANDOM_KILLS_IN_CI = 100, 10


def test_the_boundary_sees_each_file_written_synced_renamed_and_its_folder_synced(whole: Whole) -> None:
    kinds = [step.split()[0] for step in whole.steps]
    written = [step.split("-", 3)[-1] for step in whole.steps if step.startswith("rename")]
    shards = ["000000.safetensors", "000001.safetensors", "000002.safetensors"]
    assert written == [".hashes.json", ".shard-frames", *shards, *shards, "manifest.json"]
    order = [kind for kind in kinds if kind in ("sync", "rename", "sync_folder")]
    assert order == ["sync", "rename", "sync_folder"] * len(written)
    assert kinds.count("claim") == len(shards) * 2 + 2  # each shard, their size, and the manifest


def test_a_claim_that_is_let_go_again_is_no_step(tmp_path: Path) -> None:
    """Or a run would have a step more or less, as a thread was slower or faster, and a kill at the last one would never come."""
    steps = children.run(let_go_twice, tmp_path / "claim").value
    assert [step.split()[0] for step in steps] == ["claim", "release"]


def let_go_twice(tell: Tell, path: Path) -> list[str]:
    steps = inject(None)
    claim = take(path)
    assert claim is not None
    claim.release()
    claim.release()
    return steps


def test_killed_between_all_steps_of_writing_one_shard(small: Whole) -> None:
    in_turns(functools.partial(kill_at, small), between(small))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_before_after_and_amid_each_step_of_writing_one_shard(small: Whole) -> None:
    in_turns(functools.partial(kill_at, small), every_fault(small, "kill"))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_between_all_steps_of_writing_a_cache(whole: Whole) -> None:
    in_turns(functools.partial(kill_at, whole), between(whole))


def between(whole: Whole) -> list[Fault]:
    """Before each step; after it is before the next, but for the last."""
    steps = range(len(whole.steps))
    return [*(Fault(step, "before", "kill") for step in steps), Fault(steps[-1], "after", "kill")]


def test_killed_at_random_times(whole: Whole) -> None:
    delays = random_delays(RANDOM_KILLS_IN_CI, how_long(whole), seed=0)
    assert len(in_turns(functools.partial(kill_after, whole), delays)) == 10


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_at_a_hundred_random_times(whole: Whole) -> None:
    delays = random_delays(RANDOM_KILLS, how_long(whole), seed=1)
    left = in_turns(functools.partial(kill_after, whole), delays)
    assert len(left) == 100 and len(set(left)) > 3, "the kills all hit the same place"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_at_random_times(whole: Whole, number: signal.Signals) -> None:
    """By `kill` or Ctrl-C: it says how to go on, with the exit status of that signal."""
    delays = random_delays(3, how_long(whole), seed=2)
    in_turns(lambda delay: stop_after(whole, delay, number), delays)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_at_twenty_random_times(whole: Whole, number: signal.Signals) -> None:
    delays = random_delays(20, how_long(whole), seed=3)
    in_turns(lambda delay: stop_after(whole, delay, number), delays)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("effect", ["power cut", "power cut, names lost"])
def test_a_power_cut_loses_nothing_that_was_finished(small: Whole, effect: str) -> None:
    """What was not synced is lost, too: files are cut, and with `names lost` renames taken back."""
    in_turns(functools.partial(kill_at, small), every_fault(small, effect))


def test_a_power_cut_would_show_a_writer_that_does_not_sync(
    small: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: without the sync before the rename, a shard has its name and not its bytes."""
    monkeypatch.setattr(trials, "run", lambda job, root, fault=None: run(job, root, fault, forgetful=True))
    [renamed] = [
        number
        for number, step in enumerate(small.steps)
        if step.endswith("-000000.safetensors") and "rename" in step
    ]
    with pytest.raises(AssertionError, match=r"power cut after step \d+: .* has its name, but is not whole"):
        kill_at(small, Fault(renamed, "after", "power cut"))


def test_a_kernel_that_writes_a_little_at_a_time_makes_the_same_cache(small: Whole) -> None:
    with trials.new_root() as root:
        found = made(run(small.job, root, at_most=10_007))
        small.check_resumed(root, found.report, {})


def test_killed_twice_it_still_resumes(small: Whole) -> None:
    with trials.new_root() as root:
        for _ in range(2):
            assert run(small.job, root, Fault(len(small.steps) // 2, "before", "kill")).killed
        complete = small.check_interrupted(root)
        small.check_resumed(root, made(run(small.job, root)).report, complete)


def test_killed_while_mending_it_mends_at_the_next_run(small: Whole, small_job: Job) -> None:
    with trials.new_root() as root:
        made(run(small_job, root))
        [shard] = small.at(root).glob("*/*.safetensors")
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
        assert run(small_job, root, Fault(3, "before", "kill")).killed
        again = made(run(small_job, root)).report
        assert again.frames_encoded == small.frames
        small.check_resumed(root, again, {})
