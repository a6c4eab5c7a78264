"""Four arms of lerobot-train, batch 64 in bf16: raw frames in-tree, online, cached, and cached with a compiled network.

Each is tried in several ways, and the best counts: raw with several numbers of loader workers, online with raw's best, cached
with each residency, compiled with cached's best. A step is split into waiting, preprocessing and update by stopwatch.py.
"""

import statistics
from pathlib import Path
from typing import Any

import torch
from common import Arm, Outcome
from synthetic import PUSHT, TEXTURES, cache_of_dataset, pusht_dataset, texture_dataset
from training import train_timed

ACT_GOAL = 4000
"""Samples/s of theia_act on an H200."""
SMALL = {
    "act": ("--policy.dim_model=32", "--policy.n_heads=2", "--policy.dim_feedforward=64", "--policy.n_encoder_layers=1",
            "--policy.chunk_size=8", "--policy.n_action_steps=8"),
    "diffusion": ("--policy.down_dims=[16,32]", "--policy.horizon=8", "--policy.n_action_steps=4"),
}  # fmt: skip
STRETCHES = 5

Measured = tuple[str, dict[str, Any], dict[str, Arm], list[Outcome]]


def act(chosen: Any) -> Measured:
    """Two 480x640 cameras, 30 frames per second."""
    # Long enough that epochs do not begin all the time: 28 steps.
    size = {"episodes": 6, "frames": 300}
    if chosen.quick:
        size = {"episodes": 1, "frames": 10, "height": 48, "width": 64}
    root = texture_dataset(chosen.work, **size)
    return Kind("act", chosen, root, TEXTURES).measure()


def diffusion(chosen: Any) -> Measured:
    """PushT, one camera 96x96."""
    root = pusht_dataset(chosen.work, 2 if chosen.quick else 60)
    return Kind("diffusion", chosen, root, PUSHT).measure()


class Kind:
    """The runs of one policy, in-tree and ours."""

    def __init__(self, name: str, chosen: Any, root: Path, repo_id: str) -> None:
        self.name, self.chosen, self.root, self.repo_id = name, chosen, root, repo_id
        self.batch, self.warm_up, self.steps = (2, 1, 2) if chosen.quick else (64, 30, chosen.steps)
        self.workers = chosen.workers or ([0] if chosen.quick else [4, 8, 16])
        self.caches = chosen.work / "caches"
        cache_of_dataset(root, repo_id, self.caches)
        self.arms: dict[str, Arm] = {}
        self.outcomes: list[Outcome] = []

    def theia(self, *flags: str) -> tuple[str, ...]:
        return (f"--policy.type=theia_{self.name}", "--policy.encoder=random-tiny",
                f"--policy.cache_root={self.caches}", *flags)  # fmt: skip

    def cached(self, residency: str, workers: int, *flags: str) -> tuple[str, ...]:
        return self.theia("--policy.features=cached", f"--policy.cache_residency={residency}",
                          f"--num_workers={workers}", *flags)  # fmt: skip

    def measure(self) -> Measured:
        # Random ResNet weights: a step takes as long with them, and nothing is downloaded.
        in_tree = (f"--policy.type={self.name}", "--policy.pretrained_backbone_weights=null")
        raw = {
            n: self.run(f"raw, in-tree, {n} workers", *in_tree, f"--num_workers={n}") for n in self.workers
        }
        workers = max(raw, key=lambda n: raw[n])
        online = self.run(
            f"online, {workers} workers", *self.theia("--policy.features=online", f"--num_workers={workers}")
        )
        # A worker reads ahead; of indices there is little to read.
        ways = [("disk", 1), ("memory", 1), ("device", 0), *([] if self.chosen.quick else [("device", 1)])]
        cached = {
            (residency, n): self.run(f"cached, {residency}, {n} workers", *self.cached(residency, n))
            for residency, n in ways
        }
        best = max(cached, key=lambda way: cached[way])
        compiled = {
            (residency, n): self.run(
                f"cached, {residency}, {n} workers, compiled",
                *self.cached(residency, n, "--policy.compile_model=true"),
            )
            for residency, n in ([best] if self.chosen.quick else ways)
        }
        fastest = {
            "raw, in-tree": max(raw.values()),
            "online": online,
            "cached": cached[best],
            "cached and compiled": max(compiled.values()),
        }
        ours = max(fastest["cached"], fastest["cached and compiled"])
        self.outcomes += [
            Outcome(what=f"theia_{self.name}: best cached over {other}", value=ours / fastest[other])
            for other in ("raw, in-tree", "online")
        ]
        if self.name == "act":
            on_h200 = self.chosen.device == "cuda" and "H200" in torch.cuda.get_device_name()
            aimed = {"at_least": ACT_GOAL, "row": 9} if on_h200 else {}
            self.outcomes.append(Outcome(what="samples/s of theia_act, best cached", value=ours, **aimed))
        settings = {
            "batch_size": self.batch, "dtype": "bfloat16 (--policy.use_amp=true)", "encoder": "random-tiny",
            "tokens": "14x14 float16", "steps": self.steps, "warm_up_steps": self.warm_up,
            "policy": "small" if self.chosen.quick else "LeRobot's defaults",
        }  # fmt: skip
        what = f"lerobot-train samples/s of {self.name}: raw frames, online, cached, compiled; each best of its ways"
        return what, settings, self.arms, self.outcomes

    def run(self, name: str, *flags: str) -> float:
        """Samples per second, median over stretches of the run."""
        small = SMALL[self.name] if self.chosen.quick else ()
        found = train_timed(
            self.chosen.work / f"train_gpu_{self.name}", self.root, self.repo_id, *flags, *small, "--policy.use_amp=true",
            f"--batch_size={self.batch}", steps=self.warm_up + self.steps, warm_up=self.warm_up,
            on=self.chosen.device,
        )  # fmt: skip
        stretches = found.stretches(min(STRETCHES, len(found)))
        about = f"{name}, batch {self.batch}"
        self.arms[name] = Arm(
            what=about, unit="samples/s", values=[self.batch * each.per_s for each in stretches]
        )
        for part in ("waiting", "preprocessing", "update"):
            values = [1e3 * statistics.mean(getattr(each, f"{part}_s")) for each in stretches]
            self.arms[f"{part}: {name}"] = Arm(what=f"{part}, {about}", unit="ms/step", values=values)
        if found.peak_bytes:
            self.outcomes.append(
                Outcome(what=f"GB of GPU memory at most, {name}", value=found.peak_bytes / 1e9)
            )
        print(f"  {name}: {self.arms[name].median:.4g} samples/s", flush=True)
        return self.arms[name].median
