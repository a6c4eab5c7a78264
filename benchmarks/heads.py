"""What a token head costs in a training step: forward, and backward to its weights (tokens want no gradient).

Of theia_diffusion, the head alone, for a batch of 64 samples, two frames each. `attention, torch's` is the same head with
`nn.MultiheadAttention` called on all tokens, which makes a key and a value of each. Of theia_act, the whole network in LeRobot's
size and batch, one camera: there a head says how many tokens go through all its layers.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from common import Arm, Outcome, Result, alternate, options, save
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor

from lerobot_theia.policies.common.heads import AttentionHead, make_token_head
from lerobot_theia.policies.theia_act.configuration_theia_act import TheiaACTConfig
from lerobot_theia.policies.theia_act.modeling_theia_act import TheiaACT

FRAMES = 64 * 2
DIMS = {"tiny": 192, "base": 768}
GRIDS = {"spatial_softmax": 14, "compression": 14, "attention": 14, "mean": 14, "flatten": 2}
"""Tokens along each side; `flatten` is for few."""
WIDTH, KEYPOINTS = 256, 32
"""The policy's defaults."""
TORCHS = "attention, torch's"
BATCH = 8
"""Of `lerobot-train`, unless one says otherwise."""
ACT_HEADS = {"linear": (14, 7, 2), "compression": (14,)}
"""Of theia_act: tokens along each side."""
JOINTS = 14


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
    batch = 1 if chosen.quick else BATCH
    values = alternate(act_steps(DIMS["tiny"], batch), repeats=1 if chosen.quick else 9, warm_up=1)
    act = {
        name: Arm(what=f"{name}, tiny, network of theia_act, {batch} frames", unit="ms", values=each)
        for name, each in values.items()
    }
    arms |= act
    compression = act["theia_act, compression, 14x14"].median
    outcomes += [
        Outcome(what=f"{name} over compression", value=arm.median / compression) for name, arm in act.items()
        if "compression" not in name
    ]  # fmt: skip
    save(
        Result(
            name="heads",
            measured="milliseconds of a token head, or of theia_act's network with it, forward and backward to its weights",
            settings={
                "frames": frames,
                "grids": GRIDS,
                "token_head_dim": WIDTH,
                "keypoints": KEYPOINTS,
                "act_frames": batch,
                "act_grids": ACT_HEADS,
            },
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


def act_steps(dim: int, frames: int) -> dict[str, Callable[[], float]]:
    """The same for the network of theia_act, with each of its heads."""
    torch.manual_seed(0)
    tokens = torch.randn(frames, 14 * 14, dim)
    made: dict[str, Callable[[], float]] = {}
    for name, sides in ACT_HEADS.items():
        for side in sides:
            config = TheiaACTConfig(
                input_features={
                    "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 480, 640)),
                    OBS_STATE: PolicyFeature(FeatureType.STATE, (JOINTS,)),
                },
                output_features={ACTION: PolicyFeature(FeatureType.ACTION, (JOINTS,))},
                token_head=name, token_head_dim=WIDTH, token_pool=14 // side, device="cpu", push_to_hub=False,
            )  # fmt: skip
            network = TheiaACT(config, (dim, side, side)).train()
            batch = {
                OBS_IMAGES: [
                    tokens[:, : side * side].transpose(1, 2).unflatten(2, (side, side)).contiguous()
                ],
                OBS_STATE: torch.randn(frames, JOINTS),
                ACTION: torch.randn(frames, config.chunk_size, JOINTS),
                "action_is_pad": torch.zeros(frames, config.chunk_size, dtype=torch.bool),
            }
            made[f"theia_act, {name}, {side}x{side}"] = lambda network=network, batch=batch: timed(
                network, lambda batch: outputs(network, batch), batch
            )
    return made


def outputs(network: TheiaACT, batch: dict) -> Tensor:
    """Actions, and mean and variance of the latent, end to end."""
    actions, latent = network(batch)
    return torch.cat([each.flatten() for each in (actions, *latent)])


def plain(head: AttentionHead, maps: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, F), as the formula is written."""
    tokens = head.project(maps.flatten(2).transpose(1, 2)) + head.position
    pooled, _ = head.attention(head.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)
    return head.norm(pooled.squeeze(1))


def timed(head: torch.nn.Module, forward: Callable[[Any], Tensor], maps: Any) -> float:
    head.zero_grad()
    began = time.perf_counter()
    forward(maps).square().sum().backward()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
