"""Row 4: lerobot-train steps per second, theia_act from a cache over in-tree act on raw frames.

ACT at LeRobot's defaults (batch 8), two 480x640 cameras (AV1), each with its best number of loader workers: all are
tried once, then the best of each arm are repeated in turn. In-tree act starts from random ResNet weights, so that
nothing is downloaded; its speed does not depend on them.
"""

from common import Arm, Outcome, Result, alternate, options, save
from synthetic import TEXTURES, cache_of_dataset, texture_dataset
from training import device, train

GOALS = {"theia_act 14x14": 3, "theia_act 7x7": 5}
SMALL = ("--policy.dim_model=32", "--policy.n_heads=2", "--policy.dim_feedforward=64", "--policy.chunk_size=8",
         "--policy.n_action_steps=8")  # fmt: skip


def main() -> None:
    chosen = options(
        __doc__,
        ("--workers", {"type": int, "nargs": "+", "help": "numbers of loader workers to try (0 1 2)"}),
        ("--repeats", {"type": int, "default": 2, "help": "runs of each arm's best, the first one included"}),
    )
    quick = chosen.quick
    small = {"episodes": 1, "frames": 10, "height": 48, "width": 64}
    root = texture_dataset(chosen.work, **(small if quick else {}))
    caches = chosen.work / "caches"
    for pool in (1, 2):
        cache_of_dataset(root, TEXTURES, caches, pool=pool)
    theia = ("--policy.type=theia_act", "--policy.encoder=random-tiny", "--policy.features=cached",
             f"--policy.cache_root={caches}")  # fmt: skip
    flags = {
        "act": ("--policy.type=act", "--policy.pretrained_backbone_weights=null"),
        "theia_act 14x14": (*theia, "--policy.token_pool=1"),
        "theia_act 7x7": (*theia, "--policy.token_pool=2"),
    }
    steps = (
        {"act": 4, "theia_act 14x14": 7, "theia_act 7x7": 12}
        if device() == "cpu"
        else dict.fromkeys(flags, 200)
    )
    log_every = 1 if device() == "cpu" else 20
    workers = chosen.workers or ([0] if quick else [0, 1, 2])

    def run(arm: str, number: int) -> float:
        extra = (*SMALL, "--batch_size=2") if quick else ("--batch_size=8",)
        found = train(
            chosen.work / "train_act", root, TEXTURES, *flags[arm], *extra, f"--num_workers={number}",
            steps=2 if quick else steps[arm], log_every=log_every,
        )  # fmt: skip
        waiting.setdefault(f"{arm}, {number} workers", []).append(found.waiting)
        return found.per_s

    waiting: dict[str, list[float]] = {}
    first = {arm: {number: run(arm, number) for number in workers} for arm in flags}
    best = {arm: max(tried, key=lambda number, tried=tried: tried[number]) for arm, tried in first.items()}
    print(first, best)
    again = 0 if quick else chosen.repeats - 1
    more = alternate({arm: lambda arm=arm: run(arm, best[arm]) for arm in flags}, repeats=again, warm_up=0)
    arms = {
        f"{arm}, {number} workers": Arm(
            what=f"{arm}, num_workers={number}", unit="steps/s",
            values=[value, *(more[arm] if number == best[arm] else [])],
        )
        for arm, tried in first.items()
        for number, value in tried.items()
    }  # fmt: skip
    fastest = {arm: arms[f"{arm}, {best[arm]} workers"].median for arm in flags}
    outcomes = [
        Outcome(
            what=f"{arm} over act on raw frames", value=fastest[arm] / fastest["act"], at_least=goal, row=4
        )
        for arm, goal in GOALS.items()
    ]
    outcomes += [
        Outcome(what=f"share of a step spent waiting for data, {arm}", value=max(shares))
        for arm, shares in waiting.items()
    ]
    outcomes += [
        Outcome(what=f"{arm}, one worker: share spent waiting", value=max(waiting[f"{arm}, 1 workers"]), at_most=0.03,
                row=6)
        for arm in GOALS if 1 in workers
    ]  # fmt: skip
    save(
        Result(
            name="train_act",
            measured="lerobot-train steps/s, theia_act from a cache over in-tree act on raw frames, best num_workers each",
            settings={
                "cameras": "2 x 480x640 AV1", "batch_size": 8, "policy": "LeRobot's defaults", "encoder": "random-tiny",
                "best_num_workers": best, "steps": steps, "first_steps_left_out": log_every, "device": device(),
            },
            arms=arms,
            outcomes=outcomes,
            notes=["random tokens of a tiny encoder; in-tree act with random ResNet-18 weights (no network)"],
            quick=quick,
        ),
        chosen.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
