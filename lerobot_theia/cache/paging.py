"""Advice to the kernel about memory: where it knows no better, nothing happens."""

import ctypes
import mmap
import resource

import numpy as np
from torch import Tensor

HUGE_FROM_BYTES = 32 * 2**20
"""glibc hands out blocks of this size (its largest M_MMAP_THRESHOLD) fresh from the kernel each time; filling them
4 kB at a time costs more than the copy."""

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let this process hold on to memory that it has freed, and take the next block from there.

    By default glibc gives large blocks back to the kernel at once. An encoder on a CPU frees and takes the same activations
    in each layer, and would spend a tenth of its time or more on having pages cleared. Where there is no glibc, nothing happens.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        # Older glibc refuses a threshold beyond the one that it reaches by itself.
        if not mallopt(M_MMAP_THRESHOLD, 2**31 - 1):
            mallopt(M_MMAP_THRESHOLD, HUGE_FROM_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def advise(address: int, size: int, advice: int) -> None:
    """`madvise` on the whole pages around `size` bytes at `address`."""
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    _madvise(start, address + size - start, advice)


def in_huge_pages(tensor: Tensor) -> Tensor:
    """Ask for huge pages behind a new, large tensor. Returns it."""
    if tensor.nbytes >= HUGE_FROM_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        advise(tensor.data_ptr(), tensor.nbytes, mmap.MADV_HUGEPAGE)
    return tensor


def read_at_random(rows: np.ndarray) -> None:
    """Rows of this map are read in no order: reading on after each one, as for a film, would be many times the bytes."""
    if hasattr(mmap, "MADV_RANDOM"):
        advise(rows.ctypes.data, rows.nbytes, mmap.MADV_RANDOM)


def read_ahead(row: np.ndarray) -> None:
    """Have a row of a map read from disk, without waiting for it."""
    if hasattr(mmap, "MADV_WILLNEED"):
        advise(row.ctypes.data, row.nbytes, mmap.MADV_WILLNEED)


def waits_for_disk() -> int:
    """How often this process has waited for a page from disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
