"""Row 2: bytes per second of a shuffled gather from memory-mapped shards, over index_select from a tensor in memory.

Batches of 64 x 2 rows, as theia_diffusion asks for. The page cache is warm. `disk` has every page mapped already, as
after the first epoch; `disk-first-touch` opens the cache anew for each repeat, so that each page costs a fault.
"""

import gc
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import Arm, Outcome, Result, alternate, options, save
from synthetic import CAMERA, identity_of, write_cache

from lerobot_theia.cache import FeatureCache
from lerobot_theia.data.residency import load_tokens

ROWS = 64 * 2
DIMS = {"tiny": 192, "base": 768}


def main() -> None:
    chosen = options(__doc__)
    total = 2**26 if chosen.quick else 5 * 2**28
    arms: dict[str, Arm] = {}
    outcomes: list[Outcome] = []
    cores = torch.get_num_threads()
    for size, dim in DIMS.items():
        frames = total // (196 * dim * 2)
        path = chosen.work / "caches" / f"gather-{size}-{frames}"
        write_cache(path, identity_of(frames, dim=dim))
        cold = measure_cold(path, frames, repeats=1 if chosen.quick else 3, batches=1 if chosen.quick else 5)
        arms |= {f"{name}, {size}": arm for name, arm in cold.items()}
        for threads in dict.fromkeys((cores, 1)):
            torch.set_num_threads(threads)
            found = measure(path, frames, repeats=1 if chosen.quick else 7, batches=2 if chosen.quick else 60)
            label = f"{size}, {threads} thread(s)"
            arms |= {f"{name}, {label}": arm for name, arm in found.items()}
            base = found["index_select"].median
            for name in ("disk", "disk-first-touch"):
                # A loader's worker has one thread, a loader without workers all of them.
                goal = 0.6 if name == "disk" else None
                outcomes.append(
                    Outcome(
                        what=f"{name} over index_select, {label}", value=found[name].median / base,
                        at_least=goal, row=2 if goal else None,
                    )
                )  # fmt: skip
        torch.set_num_threads(cores)
    save(
        Result(
            name="gather",
            measured="bytes/s of a shuffled FeatureCache.gather_stored over torch.index_select of the same rows",
            settings={"rows": ROWS, "cache_bytes": total, "dtype": "float16", "threads": [cores, 1]},
            arms=arms,
            outcomes=outcomes,
            quick=chosen.quick,
        ),
        chosen.out,
    )


def measure_cold(path: Path, frames: int, *, repeats: int, batches: int) -> dict[str, Arm]:
    """GB/s asked for, and bytes read from the disk for each byte asked for. Nothing may have mapped the shards."""
    rates, read = [], []
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        forget(path)
        cache = FeatureCache.open(path)
        rows = [rng.integers(0, frames, ROWS) for _ in range(batches)]
        before, began = disk_reads(), time.perf_counter()
        size = sum(cache.gather_stored(CAMERA, each).tokens.nbytes for each in rows)
        rates.append(size / (time.perf_counter() - began) / 1e9)
        read.append((disk_reads() - before) / size)
        del cache
        gc.collect()
    return {
        "disk-cold": Arm(what="FeatureCache.gather_stored, page cache empty", unit="GB/s", values=rates),
        "disk-cold reads": Arm(what="bytes read for each byte gathered", unit="x", values=read),
    }


def forget(path: Path) -> None:
    """Drop a cache's pages from the page cache, which must be clean and not mapped."""
    os.sync()
    for shard in path.glob("*/*.safetensors"):
        descriptor = os.open(shard, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def disk_reads() -> int:
    """Bytes this process has made the disk deliver."""
    found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def measure(path: Path, frames: int, *, repeats: int, batches: int) -> dict[str, Arm]:
    cache = FeatureCache.open(path)
    table = load_tokens(cache, [CAMERA], torch.device("cpu")).tables[CAMERA].tokens
    rng = np.random.default_rng(0)
    assert torch.equal(cache.gather_stored(CAMERA, np.arange(frames)[::37]).tokens, table[::37])
    cache.gather_stored(CAMERA, np.arange(frames)[: min(frames, 4096)])

    def timed(gather: Callable[[np.ndarray], torch.Tensor]) -> float:
        rows = [rng.integers(0, frames, ROWS) for _ in range(batches)]
        began, size = time.perf_counter(), 0
        for each in rows:
            tokens = gather(each)
            size += tokens.numel() * tokens.element_size()
        return size / (time.perf_counter() - began) / 1e9

    def first_touch() -> float:
        fresh = FeatureCache.open(path)
        return timed(lambda rows: fresh.gather_stored(CAMERA, rows).tokens)

    for start in range(0, frames, 1024):  # every page mapped
        cache.gather_stored(CAMERA, np.arange(start, min(start + 1024, frames)))
    values = alternate(
        {
            "disk": lambda: timed(lambda rows: cache.gather_stored(CAMERA, rows).tokens),
            "index_select": lambda: timed(lambda rows: table.index_select(0, torch.from_numpy(rows))),
            "disk-first-touch": first_touch,
        },
        repeats=repeats,
    )
    what = {
        "disk": "FeatureCache.gather_stored, pages mapped",
        "index_select": "torch.index_select of one tensor in memory",
        "disk-first-touch": "FeatureCache.gather_stored, just opened",
    }
    return {name: Arm(what=what[name], unit="GB/s", values=each) for name, each in values.items()}


if __name__ == "__main__":
    main()
