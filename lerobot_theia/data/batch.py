"""A collated batch, and its way from a loader worker to the process that trains.

Left to PyTorch, each tensor of a batch travels in new shared memory of its own. That costs the receiver an exchange
with the worker per tensor, and both of them a page fault per 4 kB. Here small tensors travel as bytes, and large ones
lie in shared memory that a worker uses again as soon as the receiver has let go of what it held.
"""

import math
import multiprocessing
import os
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from lerobot_theia.cache.reader import new_tensor

SMALL_BYTES = 2**20
TAKEN, HEADER_BYTES = 0, 64
"""A slot begins with a byte that says whether its tensor is in use; tensors lie behind, aligned."""


class Batch(dict):
    """Tensors (B, ...) and lists of text by name. `default_collate` takes it as it is."""

    def __reduce__(self) -> tuple:
        return unpack, ({key: pack(value) for key, value in self.items()},)


default_collate_fn_map[Batch] = lambda batches, **_: batches[0]


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor to be filled and put into a batch; in a loader worker a large one lies in a slot."""
    size = math.prod(shape) * dtype.itemsize
    if get_worker_info() is None or size < SMALL_BYTES:
        return new_tensor(shape, dtype)
    return SLOTS.take(size)[HEADER_BYTES : HEADER_BYTES + size].view(dtype).view(shape)


@dataclass(frozen=True)
class Parcel:
    """A tensor in a slot, for a process that has mapped the slot or is sent it."""

    worker: int
    """Process id."""
    slot: int
    memory: Tensor | None
    """The slot, when it is sent for the first time."""
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Slots:
    """The slots of this process, a loader worker: (bytes,) uint8 in shared memory, by their address."""

    memory: dict[int, Tensor] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    """Addresses of those that the receiver knows; their places are their numbers."""

    def take(self, size: int) -> Tensor:
        """A slot that holds nothing the receiver still has, for `size` bytes."""
        for slot in self.memory.values():
            if not slot[TAKEN] and len(slot) >= HEADER_BYTES + size:
                break
        else:
            slot = torch.zeros(HEADER_BYTES + size, dtype=torch.uint8).share_memory_()
            self.memory[slot.data_ptr()] = slot
        slot[TAKEN] = 1
        return slot

    def parcel(self, tensor: Tensor) -> Parcel | None:
        """None for a tensor that lies in no slot."""
        address = tensor.untyped_storage().data_ptr()
        if address not in self.memory:
            return None
        new = address not in self.sent
        if new:
            self.sent.append(address)
        memory = self.memory[address] if new else None
        return Parcel(os.getpid(), self.sent.index(address), memory, tuple(tensor.shape), tensor.dtype)


SLOTS = Slots()
MAPPED: dict[int, list[np.ndarray]] = {}
"""Slots that workers sent to this process, by process id."""


def pack(value: Any) -> Any:
    """Tensors in slots as parcels, small ones as arrays, which pickle as bytes; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if parcel := SLOTS.parcel(value):
        return parcel
    small = value.nbytes < SMALL_BYTES and value.dtype is not torch.bfloat16  # which numpy does not know
    return value.numpy() if small else value


def unpack(values: dict[str, Any]) -> Batch:
    return Batch({key: unpacked(value) for key, value in values.items()})


def unpacked(value: Any) -> Any:
    if isinstance(value, Parcel):
        return opened(value)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def opened(parcel: Parcel) -> Tensor:
    """The parcel's tensor. When it, and whatever shares its memory, is gone, the worker may use the slot again."""
    if parcel.memory is not None:
        if parcel.slot == 0:
            forget_ended_workers()
            MAPPED[parcel.worker] = []
        MAPPED[parcel.worker].append(parcel.memory.numpy())
    slot = MAPPED[parcel.worker][parcel.slot]
    data = slot[HEADER_BYTES : HEADER_BYTES + math.prod(parcel.shape) * parcel.dtype.itemsize]
    weakref.finalize(data, slot.__setitem__, TAKEN, 0).atexit = False
    return torch.from_numpy(data).view(parcel.dtype).view(parcel.shape)


def forget_ended_workers() -> None:
    living = {child.pid for child in multiprocessing.active_children()}
    for worker in MAPPED.keys() - living:
        del MAPPED[worker]
