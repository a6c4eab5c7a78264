"""The commands hold on to memory that they have freed."""

import ctypes
import json
import subprocess
import sys

import pytest

FLOATS = 5_000_000  # 20 MB: by default glibc gives back at once what is free at the heap's end beyond twice a block
COUNT_PAGES = f"""
import json, resource, torch
from lerobot_theia.cache.paging import keep_freed_memory

def layer():
    return len([torch.ones({FLOATS}) for _ in range(4)])

def pages():
    layer()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        layer()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = pages()
keep_freed_memory()
print(json.dumps([given_back, pages()]))
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="mallopt is glibc's; with another C library nothing is done",
)
def test_memory_that_was_freed_is_taken_again_without_asking_the_kernel() -> None:
    run = subprocess.run([sys.executable, "-c", COUNT_PAGES], capture_output=True, text=True, check=True)
    given_back, kept = json.loads(run.stdout)
    assert kept < given_back / 10
