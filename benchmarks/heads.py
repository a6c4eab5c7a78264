"""What a token head costs in a training step of theia_diffusion: forward, and backward to its weights (tokens want no gradient).

A batch of 64 samples, two frames each. `attention, torch's` is the same head with `nn.MultiheadAttention` called on all
tokens, which makes a key and a value of each.
"""

import time
from collections.abc import Callable

import torch
from common import Arm, Outcome, Result, alternate, options, save
from torch import Tensor

from lerobot_theia.policies.common.heads import AttentionHead, make_token_head

FRAMES = 64 * 2
DIMS = {"tiny": 192, "base": 768}
GRIDS = {"spatial_softmax": 14, "compression": 14, "attention": 14, "mean": 14, "flatten": 2}
"""Tokens along each side; `flatten` is for few."""
WIDTH, KEYPOINTS = 256, 32
"""The policy's defaults."""
TORCHS = "attention, torch's"


def main() -> None:
    chosen = options(__doc__)
    frames = 2 if chosen.quick else FRAMES
    arms: dict[str, Arm] = {}
    outcomes: list[Outcome] = []
    for size, dim in DIMS.items():
        values = alternate(steps(dim, frames), repeats=1 if chosen.quick else 9, warm_up=1)
        found = {
            f"{name}, {size}": Arm(what=f"{name}, {size}, {frames} frames", unit="ms", values=each)
            for name, each in values.items()
        }
        arms |= found
        ratio = found[f"{TORCHS}, {size}"].median / found[f"attention, {size}"].median
        outcomes.append(Outcome(what=f"{TORCHS} over attention, {size}", value=ratio))
    save(
        Result(
            name="heads",
            measured="milliseconds of a token head, forward and backward to its weights",
            settings={"frames": frames, "grids": GRIDS, "token_head_dim": WIDTH, "keypoints": KEYPOINTS},
            arms=arms,
            outcomes=outcomes,
            quick=chosen.quick,
        ),
        chosen.out,
    )


def steps(dim: int, frames: int) -> dict[str, Callable[[], float]]:
    """For each head a function that takes a step and returns its milliseconds."""
    torch.manual_seed(0)
    tokens = torch.randn(frames, 14 * 14, dim)
    made: dict[str, Callable[[], float]] = {}
    for name, side in GRIDS.items():
        head = make_token_head(name, (dim, side, side), num_keypoints=KEYPOINTS, feature_dim=WIDTH)
        maps = tokens[:, : side * side].contiguous().transpose(1, 2).unflatten(2, (side, side))
        made[name] = lambda head=head, maps=maps: timed(head, head, maps)
        if isinstance(head, AttentionHead):
            made[TORCHS] = lambda head=head, maps=maps: timed(head, lambda maps: plain(head, maps), maps)
    return made


def plain(head: AttentionHead, maps: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, F), as the formula is written."""
    tokens = head.project(maps.flatten(2).transpose(1, 2)) + head.position
    pooled, _ = head.attention(head.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)
    return head.norm(pooled.squeeze(1))


def timed(head: torch.nn.Module, forward: Callable[[Tensor], Tensor], maps: Tensor) -> float:
    head.zero_grad()
    began = time.perf_counter()
    forward(maps).square().sum().backward()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
