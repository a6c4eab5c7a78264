"""What wants a GPU: the encoder against a bare ViT and the card's own rate, latency of a rollout, training.

    python benchmarks/gpu.py                            # all; each part writes a result of its own
    python benchmarks/gpu.py --parts encoder latency
    python benchmarks/gpu.py --device cpu --quick       # on any machine: does it run?

Without CUDA, and without `--device cpu`, it says so and ends. Training is in gpu_training.py; precompute from video is measured
by precompute.py, on a GPU where there is one.
"""

import logging
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from account import encoder_flops
from common import Arm, Outcome, Result, alternate, options, save
from gpu_training import act, diffusion

from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.policies.common.compiling import CompiledForward, compile_forward

SIZES = ("tiny", "small", "base")
DENSE_BF16_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}
"""What the makers give; the first name that is part of the card's counts."""
LATENCY_GOAL_MS = 5


def main() -> None:
    chosen = options(
        __doc__,
        ("--parts", {"nargs": "+", "default": list(PARTS), "choices": list(PARTS)}),
        ("--device", {"default": "cuda", "choices": ["cuda", "cpu"]}),
        ("--workers", {"nargs": "+", "type": int, "help": "loader workers to try with frames (4 8 16)"}),
        ("--steps", {"type": int, "default": 200, "help": "of each training run, after the warm-up"}),
    )
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py needs a CUDA device and there is none here: nothing was measured.", file=sys.stderr)
        return
    logging.getLogger("lerobot_theia").setLevel(logging.WARNING)  # says why something did not compile
    torch.backends.cuda.matmul.allow_tf32 = True  # as lerobot-train and lerobot-eval do
    for part in chosen.parts:
        measured, settings, arms, outcomes = PARTS[part](chosen)
        save(
            Result(
                name=f"gpu_{part}",
                measured=measured,
                settings={"device": chosen.device, **settings},
                arms=arms,
                outcomes=outcomes,
                quick=chosen.quick,
            ),
            chosen.out,
        )


Measured = tuple[str, dict[str, Any], dict[str, Arm], list[Outcome]]
"""What was measured, in words; with which settings; arms; outcomes."""


def card(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def seconds_per_call(call: Callable[[], Any], times: int, device: str) -> float:
    """Of calls that follow each other at once: throughput. By the GPU's own clock where there is one."""
    call()
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - began) / times
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / times


def milliseconds_alone(call: Callable[[], Any], times: int, device: str) -> float:
    """Median of calls each of which is waited for, as a robot waits for its action: latency."""
    found = []
    for _ in range(times):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(found)


def check_compiled(network: torch.nn.Module) -> None:
    """Raises RuntimeError where an arm that is called compiled is not, or went back to eager."""
    compiled = [forward for each in network.modules() if isinstance(forward := each.forward, CompiledForward)]
    if not compiled or any(each.compiled is None for each in compiled):
        raise RuntimeError(f"{type(network).__name__} did not compile; see the warning above")


def in_turns(calls: Mapping[str, Callable[[], float]], unit: str, about: str, quick: bool) -> dict[str, Arm]:
    values = alternate(calls, repeats=1 if quick else 5)
    return {name: Arm(what=f"{name}, {about}", unit=unit, values=each) for name, each in values.items()}


def encoder(chosen: Any) -> Measured:
    """Frames/s in bf16, eager and compiled, against transformers' ViT, and against what the card can multiply."""
    from transformers import ViTConfig, ViTModel

    batch, times = (2, 1) if chosen.quick else (256, 30)
    device, dtype = chosen.device, torch.bfloat16
    side = 512 if chosen.quick else 8192
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    arms = in_turns(
        {"matrix product": lambda: 2 * side**3 / seconds_per_call(lambda: left @ right, times, device) / 1e12},
        "TFLOP/s", f"bf16, {side}x{side}x{side}", chosen.quick,
    )  # fmt: skip
    possible = arms["matrix product"].median
    promised = next((rate for name, rate in DENSE_BF16_TFLOPS.items() if name in card(device)), None)

    pixels = torch.randn(batch, 3, 224, 224, device=device, dtype=dtype)
    frames = torch.randint(0, 256, (batch, 3, 480, 640), device=device, dtype=torch.uint8)
    outcomes = []
    for size in SIZES[:1] if chosen.quick else SIZES:
        theia = TheiaEncoder.from_pretrained(f"random-{size}", dtype=dtype, device=device)
        spec = theia.spec
        bare = ViTModel(
            ViTConfig(
                hidden_size=spec.hidden_size, num_hidden_layers=spec.num_layers,
                num_attention_heads=spec.num_heads, intermediate_size=spec.intermediate_size,
            ),
            add_pooling_layer=False,
        ).eval().to(device, dtype)  # fmt: skip
        compiled = TheiaEncoder.from_pretrained(f"random-{size}", dtype=dtype, device=device)
        compile_forward(compiled.backbone, "default")
        calls: dict[str, Callable[[], Any]] = {
            f"theia {size}": lambda theia=theia: theia.encode_preprocessed(pixels),
            f"theia {size}, compiled": lambda compiled=compiled: compiled.encode_preprocessed(pixels),
            f"theia {size}, from 480x640 uint8": lambda theia=theia: theia(frames),
            f"transformers ViT {size}": lambda bare=bare: bare(pixels).last_hidden_state,
        }
        with torch.no_grad():
            arms |= in_turns(
                {name: lambda call=call: batch / seconds_per_call(call, times, device) for name, call in calls.items()},
                "frames/s", f"bf16, batch {batch}", chosen.quick,
            )  # fmt: skip
        check_compiled(compiled)
        best = max(arms[f"theia {size}"].median, arms[f"theia {size}, compiled"].median)
        flops = best * encoder_flops(spec.hidden_size, spec.num_layers) / 1e12
        ratio = best / arms[f"transformers ViT {size}"].median
        outcomes.append(Outcome(what=f"encoder {size} over transformers' ViT run bare", value=ratio))
        outcomes.append(
            Outcome(what=f"share of the matrix rate measured here, {size}", value=flops / possible)
        )
        if promised:
            share = flops / promised
            outcomes.append(Outcome(what=f"share of the maker's dense bf16 rate, {size}", value=share))
    return "encoder frames/s against transformers' ViT of the same size", {"batch": batch}, arms, outcomes


def latency(chosen: Any) -> Measured:
    """Milliseconds to encode one 480x640 frame, and of a select_action that plans from two, batch 1, float32."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config

    import lerobot_policy_theia  # noqa: F401 (registers both policies)
    from lerobot_theia.data.keys import tokens_key

    quick, device = chosen.quick, chosen.device
    size, times = ("tiny", 1) if quick else ("base", 50)
    cameras = ("observation.images.camera0", "observation.images.camera1")
    features = {
        "input_features": {
            "observation.state": PolicyFeature(FeatureType.STATE, (14,)),
            **{name: PolicyFeature(FeatureType.VISUAL, (3, 480, 640)) for name in cameras},
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (14,))},
    }
    theia = TheiaEncoder.from_pretrained(f"random-{size}", device=device)
    width = theia.spec.hidden_size
    stats = {tokens_key(name): {"mean": [0.0] * width, "std": [1.0] * width} for name in cameras}
    # As an observation comes from LeRobot's processors: floats, on the device.
    batch = {name: torch.rand(1, 3, 480, 640, device=device) for name in cameras}
    batch["observation.state"] = torch.zeros(1, 14, device=device)

    def policy(kind: str, compiled: bool) -> Any:
        small = SMALL_NETWORKS[kind] if quick else {}
        steps = (
            {"noise_scheduler_type": "DDIM", "num_inference_steps": 10} if kind == "theia_diffusion" else {}
        )
        config = make_policy_config(
            kind, encoder=f"random-{size}", device=device, push_to_hub=False, compile_model=compiled,
            **features, **steps, **small,
        )  # fmt: skip
        return get_policy_class(kind)(config, dataset_stats=stats).to(device).eval()

    def plan(policy: Any) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            policy.reset()
            with torch.inference_mode():
                return policy.select_action(dict(batch)).cpu()

        return call

    frame = torch.randint(0, 256, (1, 3, 480, 640), dtype=torch.uint8)
    calls: dict[str, Callable[[], Any]] = {f"encode one frame, {size}": lambda: theia(frame).cpu()}
    compiled = []
    for kind in SMALL_NETWORKS:
        name = f"select_action that plans, {kind}, {size}, two cameras"
        calls[name] = plan(policy(kind, compiled=False))
        if not quick:
            compiled.append(policy(kind, compiled=True))
            calls[f"{name}, compiled"] = plan(compiled[-1])
    arms = in_turns(
        {name: lambda call=call: milliseconds_alone(call, times, device) for name, call in calls.items()},
        "ms", "float32, batch 1, from frames to an action in memory", quick,
    )  # fmt: skip
    for each in compiled:
        check_compiled(each)
    first = arms[f"encode one frame, {size}"].median
    aimed = {"at_most": LATENCY_GOAL_MS, "row": 10} if "H200" in card(device) and size == "base" else {}
    outcomes = [Outcome(what=f"ms to encode one frame, {size}", value=first, **aimed)]
    settings = {
        "batch": 1,
        "diffusion": "DDIM, 10 steps",
        "memory": "frame uint8 in memory; observation on the device",
    }
    return "milliseconds of a step in a rollout", settings, arms, outcomes


SMALL_NETWORKS: dict[str, dict[str, Any]] = {
    "theia_act": {"dim_model": 32, "n_heads": 2, "dim_feedforward": 64, "chunk_size": 8, "n_action_steps": 8},
    "theia_diffusion": {"down_dims": (16, 32), "horizon": 8, "n_action_steps": 4},
}
"""For --quick."""
PARTS: dict[str, Callable[[Any], Measured]] = {
    "encoder": encoder,
    "latency": latency,
    "act": act,
    "diffusion": diffusion,
}


if __name__ == "__main__":
    main()
