"""One trial: interrupt a run, look at what it left, resume, compare with a cache never interrupted."""

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.faults.children import Child
from tests.faults.injection import Fault
from tests.faults.workshop import Whole, made, make_cache_as_command, run, start, temporaries

AT_ONCE = 2
TURNS = 10


@contextmanager
def new_root() -> Iterator[Path]:
    """A cache root that is gone afterwards: a hundred trials would fill the disk."""
    root = Path(tempfile.mkdtemp(prefix="theia-faults-"))
    try:
        yield root
    finally:
        shutil.rmtree(root)


def kill_at(whole: Whole, fault: Fault) -> str:
    """Kill a run at a step of its writing. Returns what it left; raises AssertionError, naming the fault."""
    for _ in range(TURNS):
        with new_root() as root:
            outcome = run(whole.job, root, fault)
            if outcome.killed:
                return resume(whole, root, str(fault))
            # Threads take their steps in turns, which are not always the same: this one was no write.
            missed = fault.when == "halfway" and outcome.status == 0
            assert missed, f"{fault}: it ended with {outcome.status}: {outcome.error}"
    raise AssertionError(f"{fault}: in {TURNS} runs that step was never a write")


def kill_after(whole: Whole, delay_s: float) -> str:
    """Kill a run so long after its work began, or sooner if it ends before. Returns what it left."""
    with new_root() as root:
        child = start(whole.job, root)
        assert child.hear() == "planned"
        time.sleep(delay_s)
        child.kill()
        outcome = child.wait()
        if outcome.killed:
            return resume(whole, root, f"kill after {delay_s:.3f} s")
        assert outcome.status == 0, outcome.details
    return kill_after(whole, delay_s * 0.8)


def stop_after(whole: Whole, delay_s: float, number: signal.Signals) -> str:
    """Stop a run with a signal so long after its work began, or sooner if it ends before. Returns what it left."""
    with new_root() as root:
        child = Child(make_cache_as_command, whole.job, root)
        assert child.hear() == "planned"
        time.sleep(delay_s)
        child.kill(number)
        outcome = child.wait()
        assert outcome.value is not None, outcome.details
        status, said = outcome.value
        if status:
            assert status == 128 + number, status
            assert "the same command goes on from there" in said[-1], said
            assert not temporaries(root), "a file that was begun is left"
            return resume(whole, root, f"{number.name} after {delay_s:.3f} s")
    return stop_after(whole, delay_s * 0.8, number)


def resume(whole: Whole, root: Path, what: str) -> str:
    try:
        complete = whole.check_interrupted(root)
        left = f"{len(complete)} complete, {len(temporaries(root))} begun"
        again = made(run(whole.job, root))
        whole.check_resumed(root, again.report, complete)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    return left


def every_fault(whole: Whole, effect: str) -> list[Fault]:
    """Before and after each step, and halfway through each write."""
    return [
        Fault(step, when, effect)
        for step, name in enumerate(whole.steps)
        for when in ("before", "halfway", "after")
        if when != "halfway" or name.startswith("write")
    ]


def random_delays(count: int, within_s: float, seed: int) -> list[float]:
    """One in each of `count` equal parts of the time, so that they are random and spread over all of it."""
    draw = random.Random(seed)
    return [within_s * (part + draw.random()) / count for part in range(count)]


def how_long(whole: Whole) -> float:
    """Seconds from the plan to the end of an uninterrupted run, of as many at once as trials are."""

    def one(_: int) -> float:
        with new_root() as root:
            child = start(whole.job, root)
            assert child.hear() == "planned"
            began = time.monotonic()
            made(child.wait())
            return time.monotonic() - began

    return max(in_turns(one, range(2 * AT_ONCE)))


def in_turns[T, R](trial: Callable[[T], R], each: Iterable[T]) -> list[R]:
    """All trials, a few at once. The first that fails raises."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(trial, each))
