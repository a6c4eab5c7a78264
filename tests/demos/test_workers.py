"""Episodes from worker processes: in order, and no longer than anyone wants them."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

from lerobot_theia.demos.workers import ordered_map

CHECKOUT = Path(__file__).resolve().parents[2]


def large(_: int) -> bytes:
    return bytes(100_000_000)


def leave_after_one() -> None:
    results = ordered_map(large, itertools.count(), 2)
    next(results)
    results.close()


def test_who_leaves_while_a_worker_sends_does_not_wait_for_the_rest() -> None:
    """A part of a result lies in the pipe when its worker is ended, and with it Python's thread that reads it would stay."""
    script = "from tests.demos.test_workers import leave_after_one; leave_after_one()"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert list(ordered_map(abs, range(-7, 0), 2)) == [7, 6, 5, 4, 3, 2, 1]
