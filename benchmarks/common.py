"""What all benchmarks share: how to measure side by side, and the form of a result.

A benchmark compares arms. `alternate` runs them A B A B … in one process, so that a machine that slows down, or a
neighbour that wakes up, meets all of them. A result is one JSON file,

    <out>/<machine>/<name>.json

where `<machine>` says what kind of machine it was (`2-core-amd-epyc`), not which.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
RESULTS = HERE / "results"
WORK = CHECKOUT / "outputs" / "benchmarks"
"""Datasets and caches, made when missing and kept; git ignores it."""
PACKAGES = ("lerobot_policy_theia", "lerobot", "torch", "torchvision", "transformers", "torchcodec", "numpy")


def busy() -> tuple[float, float, float]:
    """(seconds on the clock, of all cores busy, of them for this process and its finished children)."""
    times, own = psutil.cpu_times(), os.times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "steal", 0.0)
    return (
        time.perf_counter(),
        sum(times[:8]) - idle,
        own.user + own.system + own.children_user + own.children_system,
    )


BEFORE = busy()


def neighbours() -> float:
    """Cores that other processes kept busy since this one began: how far to trust the rates."""
    clock, all_cores, own = (after - before for before, after in zip(BEFORE, busy(), strict=True))
    return max(0.0, (all_cores - own) / clock)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing measured: `values` are its repeats, in order."""

    what: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.values) - min(self.values)) / abs(self.median) if self.median else 0.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"median": self.median, "spread": self.spread}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A number that has, or has no, target: usually a ratio of two medians."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    row: int | None = None
    """Row of the targets' table that this answers; None where it is only good to know."""

    @property
    def met(self) -> bool | None:
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def target(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"met": self.met, "target": self.target}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one benchmark found, on one machine."""

    name: str
    measured: str
    """In words: what over what."""
    settings: Mapping[str, Any]
    arms: Mapping[str, Arm]
    outcomes: Sequence[Outcome]
    notes: Sequence[str] = ()
    quick: bool = False
    machine: Mapping[str, Any] = field(default_factory=lambda: machine())
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    cores_used_by_others: float = field(default_factory=lambda: neighbours())
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).date().isoformat())

    def to_json(self) -> dict[str, Any]:
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return fields | {
            "settings": {"torch_threads": torch.get_num_threads(), **self.settings},
            "arms": {name: arm.to_json() for name, arm in self.arms.items()},
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
            "notes": list(self.notes),
        }


def machine() -> dict[str, Any]:
    """Kind of machine; nothing that tells one from another of its kind."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (found := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        model = found[1].strip()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
    }


def slug(machine: Mapping[str, Any]) -> str:
    """`2-core-amd-epyc`, `16-core-amd-epyc-nvidia-h200`"""
    words = [f"{machine['cores']}-core", re.sub(r"\(R\)|\(TM\)|CPU|Processor|@.*", "", machine["cpu"])]
    words += [machine["gpu"]] if machine["gpu"] else []
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def alternate(
    arms: Mapping[str, Callable[[], float]], *, repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Call the arms in turn, A B A B …; each returns its own measure. The first `warm_up` rounds do not count."""
    values: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-warm_up, repeats):
        for name, measure in arms.items():
            value = measure()
            if number >= 0:
                values[name].append(value)
            print(f"  {name}: {value:.4g}{'' if number >= 0 else ' (warm-up)'}", file=sys.stderr, flush=True)
    return values


def options(description: str | None, *extra: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """`--quick`, `--out`, `--work`, and what a benchmark adds. In quick mode results go beside, not over, real ones."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the least work that checks that it runs")
    parser.add_argument("--out", type=Path, help="where results go (benchmarks/results)")
    parser.add_argument("--work", type=Path, help="where datasets and caches are made (outputs/benchmarks)")
    for flag, settings in extra:
        parser.add_argument(flag, **settings)
    chosen = parser.parse_args()
    chosen.work = chosen.work or (WORK / "quick" if chosen.quick else WORK)
    chosen.out = chosen.out or (chosen.work / "results" if chosen.quick else RESULTS)
    chosen.work.mkdir(parents=True, exist_ok=True)
    quiet()
    return chosen


def quiet() -> None:
    """Offline, and without a page of warnings for each dataset opened."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("SVT_LOG", "1")
    logging.basicConfig(level=logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("lerobot_theia").setLevel(logging.ERROR)
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.CRITICAL)


def save(result: Result, out: Path) -> Path:
    """Write a result and print its outcomes."""
    folder = out / slug(result.machine)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    path.write_text(json.dumps(rounded(result.to_json()), indent=1, ensure_ascii=False) + "\n")
    print(f"{result.name}: {result.measured}; others kept {result.cores_used_by_others:.2f} cores busy")
    for name, arm in result.arms.items():
        print(f"  {name}: {arm.median:.4g} {arm.unit} (spread {arm.spread:.0%}, {len(arm.values)} repeats)")
    for outcome in result.outcomes:
        verdict = {True: "met", False: "MISSED", None: ""}[outcome.met]
        print(f"  {outcome.what}: {outcome.value:.4g} {outcome.target} {verdict}".rstrip())
    return path


def rounded(value: Any) -> Any:
    """Six significant digits: more is noise, and makes for long diffs."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value
