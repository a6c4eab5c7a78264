"""The encoder's products on a GPU: always TF32, never as the process around it happens to be set.

lerobot-train and lerobot-eval allow TF32 for matrix products, lerobot-rollout and most scripts leave torch's default.
With either as it comes, a frame would give other tokens on a robot than in training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices in TF32 on a CUDA device; the process's own choice comes back afterwards.

    TF32 keeps 11 bits of each factor, as float16 does. Emulated on `random-tiny` and `random-base`, tokens move by
    less than twice what storing them as float16 does. Elsewhere nothing changes: CPUs multiply in float32.

    Whoever compiles the encoder compiles its `backbone`: torch.compile would leave the switches out of what it traces.
    """
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    if device.type != "cuda":
        backends = ()
    not_allowed = [backend for backend in backends if not is_allowed(backend)]
    for backend in not_allowed:
        backend.allow_tf32 = True
    try:
        yield
    finally:
        for backend in not_allowed:
            backend.allow_tf32 = False


def is_allowed(backend: Any) -> bool:
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        # The process used torch's newer name for it, after which torch refuses to read the older.
        return bool(backend.fp32_precision == "tf32")
