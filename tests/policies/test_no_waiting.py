"""A training step from the cache neither waits for the GPU nor copies to or from it, but for LeRobot's own logging.

No GPU is needed to see that: torch's fake tensors say which device each result would be on, and compute none.
"""

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lerobot_theia.cache.storage import StoredTokens
from lerobot_theia.data.keys import frame_key, tokens_key
from lerobot_theia.data.residency import FrameRuns, LoadedTokens
from lerobot_theia.encoder import resize
from tests.policies.conftest import AUGMENTED, POLICIES, TWO_CAMERAS, make_policy, training_batch, with_tokens

WAITING = {"nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}
"""Operators whose result or its shape the host must know before it goes on; so do indices that are masks, and `item`."""


class HostTraffic(TorchDispatchMode):
    """Counts what waits for the GPU or crosses over, by what it is and the file that does it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on_gpu = any(each.is_cuda for each in tensors)
        if name == "_local_scalar_dense":
            if on_gpu:
                self.note("item")
            return 1.0 if tensors[0].is_floating_point() else 1
        mask = name.startswith("index") and any(each.dtype == torch.bool for each in tensors[1:])
        if on_gpu and (name in WAITING or mask):
            self.note(name)
        result = func(*args, **(kwargs or {}))
        devices = {each.device.type for each in tree_leaves((tensors, result)) if isinstance(each, Tensor)}
        if len(devices) > 1:
            self.note("copy")
        return result

    def note(self, what: str) -> None:
        frame: FrameType | None = sys._getframe()
        while frame and frame.f_globals["__name__"].split(".")[0] not in ("lerobot", "lerobot_theia"):
            frame = frame.f_back
        self.seen[what, Path(frame.f_code.co_filename).name if frame else ""] += 1


def move_to_fake_gpu(module: nn.Module) -> None:
    for part in module.modules():
        for values in (part._parameters, part._buffers):
            for name, value in values.items():
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    values[name] = (
                        nn.Parameter(fake, value.requires_grad) if values is part._parameters else fake
                    )


def traffic_of_a_step(kind: str, source: str) -> dict[tuple[str, str], int]:
    """Of a forward pass in training, augmented, on a GPU; `source` is what the loader gives: tokens, indices or frames."""
    policy = make_policy(kind, TWO_CAMERAS, **AUGMENTED).train()
    batch = training_batch(policy)
    if source != "frames":
        batch = with_tokens(batch, policy, torch.float16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_fake_gpu(policy)
        batch = {
            key: torch.empty(value.shape, dtype=value.dtype, device="cuda") for key, value in batch.items()
        }
        if source == "indices":
            tables = {}
            for camera in TWO_CAMERAS:
                tokens = batch.pop(tokens_key(camera))
                batch[frame_key(camera)] = torch.empty(tokens.shape[:-2], dtype=torch.int64, device="cuda")
                table = torch.empty(100, *tokens.shape[-2:], dtype=tokens.dtype, device="cuda")
                tables[camera] = StoredTokens(table)
            policy.features.on_device = LoadedTokens(tables, FrameRuns(np.array([0]), np.array([100])))
        for _ in range(2):  # the first step may set things up
            with HostTraffic() as traffic:
                policy.forward(dict(batch))
    return dict(traffic.seen)


@pytest.mark.parametrize("source", ["tokens", "indices"])
@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("theia_act", {("item", "modeling_act.py"): 2}),  # the parts of the loss, for the log
        ("theia_diffusion", {}),
    ],
)
def test_a_step_from_the_cache_does_not_wait(kind: str, source: str, left: dict) -> None:
    assert traffic_of_a_step(kind, source) == left


@pytest.mark.parametrize("kind", POLICIES)
def test_a_step_from_frames_waits_once_per_camera_to_check_their_range(kind: str) -> None:
    try:
        found = traffic_of_a_step(kind, "frames")
    finally:
        resize._taps_on.cache_clear()  # of fake tensors
    found.pop(("item", "modeling_act.py"), None)
    # Lowest and highest value of each camera's frames come in one transfer; fake tensors give them one by one.
    assert found == {("item", "preprocess.py"): 2 * len(TWO_CAMERAS)}


def test_what_waits_or_copies_is_seen() -> None:
    with FakeTensorMode(), HostTraffic() as traffic:
        values = torch.empty(3, device="cuda")
        values.sum().item()
        values.cpu()
        torch.empty(3).to("cuda")
        values + torch.empty(())
        values[0] = torch.empty(())
        torch.empty(3).sum().item()  # of the host's own
    assert sum(traffic.seen.values()) == 5
