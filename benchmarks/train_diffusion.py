"""Rows 5 and 6: lerobot-train steps per second of theia_diffusion, from a cache over features=online; time spent waiting.

The small U-Net, batch 64, PushT; tiny and base encoders. Row 6 is measured with one loader worker. A step with base
online takes half a minute on two cores: that arm gets two steps, and a batch of 64 like all others.
"""

from common import Arm, Outcome, Result, alternate, options, save
from synthetic import PUSHT, cache_of_dataset, pusht_dataset
from training import Steps, device, train

GOALS = {"tiny": 8, "base": 50}
UNET = ("--policy.type=theia_diffusion", "--policy.horizon=16")


def main() -> None:
    chosen = options(
        __doc__,
        ("--sizes", {"nargs": "+", "default": list(GOALS), "choices": list(GOALS)}),
        ("--repeats", {"type": int, "default": 2, "help": "of all arms but base online, which runs once"}),
    )
    quick = chosen.quick
    root = pusht_dataset(chosen.work, 2 if quick else 20)
    caches, on_cpu = chosen.work / "caches", device() == "cpu"
    sizes = ["tiny"] if quick else chosen.sizes
    arms: dict[str, Arm] = {}
    outcomes: list[Outcome] = []
    for size in sizes:
        cache_of_dataset(root, PUSHT, caches, encoder=f"random-{size}")
        runs: dict[str, list[Steps]] = {}

        def run(features: str, workers: int, size: str = size, runs: dict[str, list[Steps]] = runs) -> float:
            cached = features == "cached"
            steps, log_every = {
                "tiny": (60, 10) if cached else (8, 1),
                "base": (30, 5) if cached else (3, 1),
            }[size]
            if not on_cpu:
                steps, log_every = 400, 40
            small = ("--policy.down_dims=[16,32]",) if quick else ("--policy.down_dims=[64,128,256]",)
            found = train(
                chosen.work / "train_diffusion", root, PUSHT, *UNET, *small, f"--policy.encoder=random-{size}",
                f"--policy.features={features}", f"--policy.cache_root={caches}", f"--num_workers={workers}",
                f"--batch_size={2 if quick else 64}", steps=4 if quick else steps, log_every=1 if quick else log_every,
            )  # fmt: skip
            runs.setdefault(f"{features}, {workers} workers", []).append(found)
            return found.per_s

        tried = [("cached", 0), ("cached", 1), ("online", 0)]
        if quick:
            tried = tried[:2]
        often = [arm for arm in tried if not (size == "base" and arm[0] == "online")]
        rare = [arm for arm in tried if arm not in often]
        alternate({str(arm): lambda arm=arm: run(*arm) for arm in often}, repeats=1 if quick else chosen.repeats,
                  warm_up=0)  # fmt: skip
        alternate({str(arm): lambda arm=arm: run(*arm) for arm in rare}, repeats=1, warm_up=0)
        found = {
            name: Arm(
                what=f"theia_diffusion, {size}, {name}", unit="steps/s", values=[each.per_s for each in steps]
            )
            for name, steps in runs.items()
        }
        arms |= {f"{size}, {name}": arm for name, arm in found.items()}
        best = {
            features: max(
                (arm.median for name, arm in found.items() if name.startswith(features)), default=0.0
            )
            for features in ("cached", "online")
        }
        if best["online"]:
            outcomes.append(
                Outcome(what=f"cached over online, {size}", value=best["cached"] / best["online"],
                        at_least=GOALS[size], row=5)
            )  # fmt: skip
        waiting = {name: sum(each.waiting for each in steps) / len(steps) for name, steps in runs.items()}
        outcomes += [
            Outcome(what=f"share of a step spent waiting for data, {size}, {name}", value=share,
                    **({"at_most": 0.03, "row": 6} if name == "cached, 1 workers" else {}))
            for name, share in waiting.items()
        ]  # fmt: skip
    save(
        Result(
            name="train_diffusion",
            measured="lerobot-train steps/s of theia_diffusion, from a cache over features=online",
            settings={
                "dataset": "PushT expert, 96x96 AV1", "batch_size": 64, "down_dims": [64, 128, 256], "horizon": 16,
                "n_obs_steps": 2, "tokens": "14x14 float16", "cache_residency": "auto", "device": device(),
                "encoders": [f"random-{size}" for size in sizes],
            },
            arms=arms,
            outcomes=outcomes,
            notes=["base online ran once: its steps take about half a minute on two cores"] if on_cpu else [],
            quick=quick,
        ),
        chosen.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
