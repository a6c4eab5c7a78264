"""Row 7: open a cache and gather one batch at 10 million frames and at 10 thousand: time, memory, descriptors.

Shards are sparse files: valid headers, holes for tokens; opening looks at headers and does not hash tokens, so made-up
hashes do. Each repeat is a process of its own. A third cache has many more shards than precompute would make.
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from common import Arm, Outcome, Result, alternate, options, save

SMALL, LARGE = 10_000, 10_000_000
MANY_SHARDS = 10_000
ROWS = 64 * 2


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
        return
    chosen = options(__doc__)
    from synthetic import identity_of, write_sparse_cache

    large, later_batches = (200_000, 4) if chosen.quick else (LARGE, 10)
    many = 200 if chosen.quick else MANY_SHARDS
    paths = {}
    for frames, shards in ((SMALL, None), (large, None), (large, many)):
        name = f"{frames:,} frames" + (f" in {shards:,} shards" if shards else "")
        paths[name] = chosen.work / "caches" / f"sparse-{frames}-{shards or 'auto'}"
        write_sparse_cache(paths[name], identity_of(frames), frames // shards if shards else None)
    seen: dict[str, list[dict]] = {name: [] for name in paths}

    def run(name: str) -> float:
        command = [sys.executable, __file__, "--child", str(paths[name]), str(later_batches)]
        seen[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        return seen[name][-1]["open_s"] + seen[name][-1]["first_batch_s"]

    alternate(
        {name: lambda name=name: run(name) for name in paths},
        repeats=1 if chosen.quick else 5,
        warm_up=0 if chosen.quick else 1,
    )
    for name in seen:
        seen[name] = seen[name] if chosen.quick else seen[name][1:]
    parts = {
        "open_s": ("open", "s"),
        "first_batch_s": ("first batch", "s"),
        "later_batch_s": ("a later batch", "s"),
        "peak_mb": ("peak memory after one batch", "MB"),
        "added_mb": ("of it since opening", "MB"),
        "later_peak_mb": (f"peak memory after {later_batches} more", "MB"),
        "later_own_mb": (f"not file pages, after {later_batches} more", "MB"),
        "descriptors": ("open descriptors", ""),
        "maps": ("memory maps of shards", ""),
    }
    arms = {
        f"{label}, {name}": Arm(what=label, unit=unit, values=[float(each[part]) for each in runs])
        for name, runs in seen.items()
        for part, (label, unit) in parts.items()
    }
    for name, runs in seen.items():
        total = [each["open_s"] + each["first_batch_s"] for each in runs]
        arms[f"open and one batch, {name}"] = Arm(what="open and one batch", unit="s", values=total)
    small, big, split = paths

    def ratio(label: str) -> float:
        return arms[f"{label}, {big}"].median / arms[f"{label}, {small}"].median

    def added(label: str) -> float:
        return arms[f"{label}, {big}"].median - arms[f"{label}, {small}"].median

    later = f"after {later_batches} more batches"
    save(
        Result(
            name="scale",
            measured=f"open a cache and gather one batch, {big} over {small}",
            settings={"rows": ROWS, "tokens": "14x14x192 float16", "frames": [SMALL, large]},
            arms=arms,
            outcomes=[
                Outcome(what="time to open and gather one batch", value=ratio("open and one batch"), at_most=1.5, row=7),
                Outcome(what="of it: open", value=ratio("open")),
                Outcome(what="of it: first batch", value=ratio("first batch")),
                Outcome(what="a later batch", value=ratio("a later batch")),
                Outcome(what="peak memory of the process after one batch, added MB",
                        value=added("peak memory after one batch"), at_most=200, row=7),
                Outcome(what=f"peak memory {later}, added MB (file pages, which the system can take back, included)",
                        value=added(f"peak memory after {later_batches} more")),
                Outcome(what=f"memory of its own {later}, added MB",
                        value=added(f"not file pages, after {later_batches} more")),
                Outcome(what="open descriptors", value=arms[f"open descriptors, {big}"].median),
                Outcome(what=f"open descriptors, {split}", value=arms[f"open descriptors, {split}"].median),
                Outcome(what=f"seconds to open {split}", value=arms[f"open, {split}"].median),
            ],
            quick=chosen.quick,
        ),
        chosen.out,
    )  # fmt: skip


def child(path: Path, later_batches: int) -> None:
    """One fresh process; prints what it measured."""
    import numpy as np

    from lerobot_theia.cache import FeatureCache

    rng = np.random.default_rng(0)
    before = peak_mb()
    began = time.perf_counter()
    cache = FeatureCache.open(path)
    opened = time.perf_counter()
    (camera,) = cache.cameras
    cache.gather_stored(camera, rng.integers(0, len(cache), ROWS))
    gathered = time.perf_counter()
    peak = peak_mb()
    times = []
    for _ in range(later_batches):
        rows = rng.integers(0, len(cache), ROWS)
        start = time.perf_counter()
        cache.gather_stored(camera, rows)
        times.append(time.perf_counter() - start)
    proc = Path("/proc/self")
    anonymous = re.search(r"RssAnon:\s+(\d+)", (proc / "status").read_text()) if proc.exists() else None
    measured = {
        "open_s": opened - began,
        "first_batch_s": gathered - opened,
        "later_batch_s": float(np.median(times[-later_batches // 2 :])),
        "peak_mb": peak,
        "added_mb": peak - before,
        "later_peak_mb": peak_mb(),
        "later_own_mb": int(anonymous[1]) / 1024 if anonymous else 0,
        "descriptors": len(os.listdir(proc / "fd")) if proc.exists() else 0,
        "maps": (proc / "maps").read_text().count(".safetensors") if proc.exists() else 0,
    }
    print(json.dumps(measured))


def peak_mb() -> float:
    """Resident memory at its highest, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
