"""The rows that want a GPU: encoder against a bare ViT, latency of select_action, training from each residency.

    python benchmarks/gpu.py                # all; a quarter of an hour on one GPU
    python benchmarks/gpu.py --parts encoder latency

Without CUDA it says so and ends. Precompute on a GPU is measured by benchmarks/precompute.py.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from account import encoder_flops
from common import Arm, Outcome, Result, alternate, options, save
from synthetic import PUSHT, TEXTURES, cache_of_dataset, pusht_dataset, texture_dataset
from training import train

from lerobot_theia.encoder import TheiaEncoder

SIZES = ("tiny", "small", "base")
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "4090": 165}
"""Dense bf16 rates that the makers give."""
PARTS = ("encoder", "latency", "training")
ACT_GOAL = 4000
"""Samples/s of theia_act on an H200: two cameras, bf16, batch 64."""
LATENCY_GOAL_MS = 5


def main() -> None:
    chosen = options(__doc__, ("--parts", {"nargs": "+", "default": PARTS, "choices": PARTS}))
    if not torch.cuda.is_available():
        print("gpu.py needs a CUDA device and there is none here: nothing was measured.", file=sys.stderr)
        return
    torch.backends.cuda.matmul.allow_tf32 = True
    arms: dict[str, Arm] = {}
    outcomes: list[Outcome] = []
    measures = {"encoder": encoder, "latency": latency, "training": training}
    for part in chosen.parts:
        more_arms, more_outcomes = measures[part](chosen)
        arms |= more_arms
        outcomes += more_outcomes
    save(
        Result(
            name="gpu",
            measured="encoder frames/s and latency, and lerobot-train samples/s per residency, on a GPU",
            settings={"parts": list(chosen.parts), "dtype": "bfloat16"},
            arms=arms,
            outcomes=outcomes,
            quick=chosen.quick,
        ),
        chosen.out,
    )


def timed(call: Callable[[], Any], times: int) -> float:
    """Seconds per call."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def encoder(chosen: Any) -> tuple[dict[str, Arm], list[Outcome]]:
    """Frames per second in bf16, batch 256, eager and compiled, against transformers' ViT of the same size."""
    from transformers import ViTConfig, ViTModel

    batch, times = (8, 2) if chosen.quick else (256, 30)
    pixels = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.bfloat16)
    peak = next((rate for name, rate in PEAK_TFLOPS.items() if name in torch.cuda.get_device_name()), None)
    arms, outcomes = {}, []
    for size in SIZES[:1] if chosen.quick else SIZES:
        theia = TheiaEncoder.from_pretrained(f"random-{size}", dtype=torch.bfloat16, device="cuda")
        spec = theia.spec
        config = ViTConfig(
            hidden_size=spec.hidden_size, num_hidden_layers=spec.num_layers, num_attention_heads=spec.num_heads,
            intermediate_size=spec.intermediate_size,
        )  # fmt: skip
        bare = ViTModel(config, add_pooling_layer=False).eval().to("cuda", torch.bfloat16)
        compiled = torch.compile(theia.encode_preprocessed)
        with torch.no_grad():
            calls = {
                f"theia {size}": lambda theia=theia: theia.encode_preprocessed(pixels),
                f"theia {size}, compiled": lambda compiled=compiled: compiled(pixels),
                f"transformers ViT {size}": lambda bare=bare: bare(pixels),
            }
            values = alternate(
                {name: lambda call=call: batch / timed(call, times) for name, call in calls.items()},
                repeats=5,
            )
        arms |= {name: Arm(what=f"{name}, bf16, batch {batch}", unit="frames/s", values=each)
                 for name, each in values.items()}  # fmt: skip
        best = max(arms[f"theia {size}"].median, arms[f"theia {size}, compiled"].median)
        ratio = best / arms[f"transformers ViT {size}"].median
        outcomes.append(Outcome(what=f"encoder {size} over transformers' ViT run bare", value=ratio))
        if peak:
            share = best * encoder_flops(spec.hidden_size) / (peak * 1e12)
            outcomes.append(Outcome(what=f"share of the card's bf16 rate, {size}", value=share))
    return arms, outcomes


def latency(chosen: Any) -> tuple[dict[str, Arm], list[Outcome]]:
    """Milliseconds to encode one 480x640 frame with base, and of a select_action that plans, batch 1."""
    from lerobot.configs import FeatureType, PolicyFeature

    from lerobot_theia.data.keys import tokens_key
    from lerobot_theia.policies.theia_act.configuration_theia_act import TheiaACTConfig
    from lerobot_theia.policies.theia_act.modeling_theia_act import TheiaACTPolicy

    size = "tiny" if chosen.quick else "base"
    theia = TheiaEncoder.from_pretrained(f"random-{size}", device="cuda")
    frame = torch.randint(0, 256, (1, 3, 480, 640), dtype=torch.uint8)
    cameras = ("observation.images.camera0", "observation.images.camera1")
    config = TheiaACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (14,)),
            **{name: PolicyFeature(FeatureType.VISUAL, (3, 480, 640)) for name in cameras},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (14,))},
        encoder=f"random-{size}", device="cuda", push_to_hub=False,
    )  # fmt: skip
    width = theia.spec.hidden_size
    stats = {tokens_key(name): {"mean": [0.0] * width, "std": [1.0] * width} for name in cameras}
    policy = TheiaACTPolicy(config, dataset_stats=stats).to("cuda").eval()
    batch = {name: torch.rand(1, 3, 480, 640, device="cuda") for name in cameras}
    batch["observation.state"] = torch.zeros(1, 14, device="cuda")

    def plan() -> None:
        policy.reset()
        policy.select_action(batch)

    values = alternate(
        {
            f"encode one frame, {size}": lambda: 1e3 * timed(lambda: theia(frame), 50),
            f"select_action that plans, theia_act, {size}, two cameras": lambda: 1e3 * timed(plan, 30),
        },
        repeats=5,
    )
    arms = {name: Arm(what=f"{name}, fp32, batch 1", unit="ms", values=each) for name, each in values.items()}
    first = arms[f"encode one frame, {size}"]
    goal = LATENCY_GOAL_MS if "H200" in torch.cuda.get_device_name() and size == "base" else None
    return arms, [Outcome(what=f"ms to encode one frame, {size}", value=first.median, at_most=goal)]


def training(chosen: Any) -> tuple[dict[str, Arm], list[Outcome]]:
    """Samples per second of lerobot-train, batch 64: residencies, compiled or not, in-tree, online."""
    quick, caches = chosen.quick, chosen.work / "caches"
    pusht = pusht_dataset(chosen.work, 2 if quick else 20)
    textures = texture_dataset(chosen.work, **({"episodes": 1, "frames": 10} if quick else {}))
    cache_of_dataset(pusht, PUSHT, caches)
    cache_of_dataset(textures, TEXTURES, caches)
    cases = {
        "act": (textures, TEXTURES, ("--policy.pretrained_backbone_weights=null",)),
        "diffusion": (pusht, PUSHT, ()),
    }
    arms, outcomes = {}, []
    for kind, (root, repo_id, raw) in cases.items():
        theia = (
            f"--policy.type=theia_{kind}",
            "--policy.encoder=random-tiny",
            f"--policy.cache_root={caches}",
        )
        variants = {
            f"{kind} in-tree, {workers} workers": (f"--policy.type={kind}", *raw, f"--num_workers={workers}")
            for workers in (4, 8, 16)
        }
        variants[f"theia_{kind} online"] = (*theia, "--policy.features=online", "--num_workers=8")
        for residency in ("disk", "memory", "device"):
            for compiled in ("false", "true"):
                name = f"theia_{kind} cached, {residency}{', compiled' if compiled == 'true' else ''}"
                variants[name] = (*theia, "--policy.features=cached", f"--policy.cache_residency={residency}",
                                  f"--policy.compile_model={compiled}", "--num_workers=1")  # fmt: skip
        amp = ("--policy.use_amp=true", "--batch_size=64")
        for name, flags in list(variants.items())[:: 6 if quick else 1]:
            steps, log_every = (4, 1) if quick else (300, 50)
            found = train(
                chosen.work / "train", root, repo_id, *flags, *amp, steps=steps, log_every=log_every
            )
            rates = [64 / (u + d) for u, d in zip(found.update_s, found.data_s, strict=True)]
            arms[name] = Arm(what=f"{name}, bf16, batch 64", unit="samples/s", values=rates)
            outcomes.append(
                Outcome(what=f"share of a step waiting or preprocessing, {name}", value=found.waiting)
            )
        best = {key: max((arm.median for name, arm in arms.items() if name.startswith(key)), default=0.0)
                for key in (f"{kind} in-tree", f"theia_{kind} cached")}  # fmt: skip
        if all(best.values()):
            ratio = best[f"theia_{kind} cached"] / best[f"{kind} in-tree"]
            outcomes.append(
                Outcome(what=f"theia_{kind} cached over {kind} in-tree, best of each", value=ratio)
            )
        if kind == "act" and "H200" in torch.cuda.get_device_name():
            value = best["theia_act cached"]
            outcomes.append(
                Outcome(what="samples/s of theia_act, best residency", value=value, at_least=ACT_GOAL)
            )
    return arms, outcomes


if __name__ == "__main__":
    main()
