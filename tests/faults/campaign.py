"""Faults by the hundred: kills at every step and at random times, power cuts, full disks, turned bits, forged files.

Run by benchmarks/reliability.py. Each trial is one of this suite, where a few run with every change; what "held" means is
written there. A trial that
does not hold is counted, named in the notes, and makes this command end with status 1. Fuzzing guided by coverage needs
atheris (`pip install ".[fuzz]"`) and is left out without.
"""

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from common import CHECKOUT, Arm, Outcome, Result, machine, options, save, slug

from tests.faults import children, trials
from tests.faults.flips import PARTS, Flip, found_by_opening, found_by_verify, random_flips
from tests.faults.fuzz.targets import READ, REFUSED, TARGETS, make_cache, make_target
from tests.faults.injection import Fault
from tests.faults.test_full_disk import fail_at
from tests.faults.test_fuzz import mutated
from tests.faults.test_several import kill_one_of_two
from tests.faults.workshop import WRIST, Whole, make_job, repair

ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS")
LONGEST = 300
"""Characters of a note."""


@dataclass
class Campaign:
    """So many trials of one kind, and how many held."""

    what: str
    tried: int = 0
    held: int = 0
    seconds: float = 0.0
    found: dict[str, int] = field(default_factory=dict)
    """What the trials met, and how often."""
    failures: list[str] = field(default_factory=list)

    def run[T](
        self, trial: Callable[[T], object], each: Iterable[T], at_once: int = trials.AT_ONCE
    ) -> "Campaign":
        began = time.monotonic()
        with ThreadPoolExecutor(at_once) as threads:
            for number, error in enumerate(threads.map(partial(attempt, trial), each), 1):
                self.tried, self.held = number, self.held + (error is None)
                if error is not None:
                    self.failures.append(error)
        self.seconds += time.monotonic() - began
        self.say()
        return self

    def say(self) -> None:
        sys.stderr.write(f"  {self.what}: {self.held:,} of {self.tried:,} ({self.seconds:.0f} s)\n")


def attempt[T](trial: Callable[[T], object], each: T) -> str | None:
    try:
        trial(each)
    except Exception as error:
        return f"{each}: {type(error).__name__}: {error}"[:LONGEST]
    return None


def main() -> None:
    chosen = options(
        __doc__,
        ("--kills", {"type": int, "help": "at random times (200; quick: 4)"}),
        ("--fuzz-seconds", {"type": int, "help": "per target, guided by coverage (240; quick: 5)"}),
        (
            "--only",
            {
                "nargs": "+",
                "default": [],
                "metavar": "CAMPAIGN",
                "help": "the others stay as they are in the results",
            },
        ),
    )
    quick = chosen.quick
    kills = chosen.kills or (4 if quick else 200)
    fuzz_seconds = chosen.fuzz_seconds or (5 if quick else 240)
    every = 8 if quick else 1
    with tempfile.TemporaryDirectory(prefix="theia-reliability-") as folder:
        work = Path(folder)
        small = Whole(make_job(work / "small", episodes=(4,), cameras=(WRIST,)), work / "small-whole")
        whole = Whole(make_job(work / "job"), work / "whole")
        arms: dict[str, Arm] = {}
        runs: dict[str, Callable[[], Campaign]] = {
            "random kills": lambda: killed_at_random(whole, kills, arms),
            "step kills": lambda: step_kills(whole, every),
            "neighbour kills": lambda: neighbour_kills(small, every),
            "power cuts": lambda: power_cuts(small, every),
            "stops": lambda: stops(whole, 2 if quick else 30),
            "disk errors": lambda: disk_errors(small, every * 4 if quick else every),
            "flips": lambda: flips(whole, work, 30 if quick else 1000),
            "repairs": lambda: repairs(whole, work, 1 if quick else 20),
            "structured fuzzing": lambda: structured_fuzzing(50 if quick else 5000),
        }
        if importlib.util.find_spec("atheris"):
            runs["guided fuzzing"] = lambda: guided_fuzzing(fuzz_seconds)
        if unknown := set(chosen.only) - runs.keys():
            raise SystemExit(f"--only: there is no {sorted(unknown)} here; there are {list(runs)}")
        before = earlier(chosen.out, arms) if chosen.only else {}
        campaigns = {
            name: before[name] if name in before and name not in chosen.only else run()
            for name, run in runs.items()
        }
    outcomes = [
        Outcome(what=f"{name}: share that held", value=each.held / each.tried, at_least=1.0)
        for name, each in campaigns.items()
    ]
    notes = [f"{name}: {failure}" for name, each in campaigns.items() for failure in each.failures[:3]]
    save(
        Result(
            name="reliability",
            measured="trials that held, of those tried",
            settings={
                "dataset": "16 frames of two cameras, 16x16, in parquet files",
                "encoder": "a Theia of one layer, 192 channels",
                "cache": f"{len(whole.steps)} steps of writing and claiming, {len([*whole.manifest.shard_names()])} shards",
                "campaigns": {name: without_failures(each) for name, each in campaigns.items()},
            },
            arms=arms,
            outcomes=outcomes,
            notes=notes,
            quick=quick,
        ),
        chosen.out,
    )
    if notes:
        sys.exit(1)


def without_failures(campaign: Campaign) -> dict:
    fields = asdict(campaign)
    del fields["failures"]
    return fields


def earlier(out: Path, arms: dict[str, Arm]) -> dict[str, Campaign]:
    """The campaigns of a result that is there, but for those with failures; its arms go to `arms`."""
    path = out / slug(machine()) / "reliability.json"
    if not path.exists():
        return {}
    result = json.loads(path.read_text())
    for name, arm in result["arms"].items():
        arms[name] = Arm(what=arm["what"], unit=arm["unit"], values=arm["values"])
    campaigns = {name: Campaign(**fields) for name, fields in result["settings"]["campaigns"].items()}
    return {name: each for name, each in campaigns.items() if each.held == each.tried}


def killed_at_random(whole: Whole, count: int, arms: dict[str, Arm]) -> Campaign:
    """`arms` get, for the picture, when each kill came and how many shards were complete by then."""
    delays = trials.random_delays(count, trials.how_long(whole), seed=int.from_bytes(os.urandom(4)))
    hits: list[tuple[float, int]] = []

    def kill(delay_s: float) -> None:
        left = trials.kill_after(whole, delay_s)
        hits.append((delay_s, int(left.split()[0])))

    campaign = Campaign("killed (SIGKILL) at a random time, then resumed").run(kill, delays)
    shards = [complete for _, complete in hits]
    campaign.found = {f"{n} shards complete": shards.count(n) for n in sorted(set(shards))}
    when, complete = (list(column) for column in zip(*sorted(hits), strict=True)) if hits else ([0.0], [0])
    arms["time of a random kill"] = Arm(what="after the plan", unit="s", values=when)
    arms["shards complete by then"] = Arm(
        what="of six", unit="shards", values=[float(each) for each in complete]
    )
    return campaign


def step_kills(whole: Whole, every: int) -> Campaign:
    faults = trials.every_fault(whole, "kill")[::every]
    campaign = Campaign("killed before, after and (writes) halfway through each step, then resumed")
    campaign.run(partial(trials.kill_at, whole), faults)
    campaign.found = {name: sum(step.startswith(f"{name} ") for step in whole.steps)
                      for name in sorted({step.split()[0] for step in whole.steps})}  # fmt: skip
    return campaign


def neighbour_kills(small: Whole, every: int) -> Campaign:
    faults = [Fault(step, when, "kill") for step in range(len(small.steps)) for when in ("before", "after")]
    campaign = Campaign("one of two processes killed at each step; the other finishes the cache")
    return campaign.run(partial(kill_one_of_two, small), faults[::every])


def power_cuts(small: Whole, every: int) -> Campaign:
    faults = [
        fault
        for effect in ("power cut", "power cut, names lost")
        for fault in trials.every_fault(small, effect)[::every]
    ]
    campaign = Campaign("power cut at each step, losing what was not synced, then resumed")
    return campaign.run(partial(trials.kill_at, small), faults)


def stops(whole: Whole, count: int) -> Campaign:
    within = trials.how_long(whole)
    each = [
        (delay, number)
        for number in (signal.SIGTERM, signal.SIGINT)
        for delay in trials.random_delays(count, within, seed=int(number))
    ]
    campaign = Campaign("stopped (SIGTERM, Ctrl-C) at a random time, then resumed")
    return campaign.run(lambda each: trials.stop_after(whole, *each), each)


def disk_errors(small: Whole, every: int) -> Campaign:
    faults = [
        fault
        for code in ERRORS
        for fault in trials.every_fault(small, code)[::every]
        if not small.steps[fault.step].startswith("release")
    ]
    campaign = Campaign(f"disk error ({', '.join(ERRORS)}) from each step on, then resumed")
    return campaign.run(partial(fail_at, small), faults)


def flips(whole: Whole, work: Path, count: int) -> Campaign:
    """In a copy of real tokens, and as many in a tiny cache of int8."""
    campaign = Campaign("a single bit turned, looked for by verify")
    opened: dict[str, int] = dict.fromkeys(PARTS, 0)
    tried: dict[str, int] = dict.fromkeys(PARTS, 0)
    for cache in (
        whole.at(shutil.copytree(whole.root, work / "flips")),
        make_cache(work / "tiny", "int8").path,
    ):

        def turn(flip: Flip, cache: Path = cache) -> None:
            flip(cache)
            found, at_once = found_by_verify(cache), found_by_opening(cache)
            flip(cache)
            opened[flip.part] += at_once
            tried[flip.part] += 1
            if not found:
                raise LookupError("verify did not find it")

        each = random_flips(cache, count, seed=int.from_bytes(os.urandom(4)))
        one = Campaign(campaign.what).run(turn, each, at_once=1)
        campaign.tried += one.tried
        campaign.held += one.held
        campaign.seconds += one.seconds
        campaign.failures += one.failures
    campaign.found = {f"{part}: {what}": number for part in PARTS
                      for what, number in (("turned", tried[part]), ("found by opening, too", opened[part]))}  # fmt: skip
    return campaign


def repairs(whole: Whole, work: Path, count: int) -> Campaign:
    """Bits turned in a few shards, then `verify --repair`."""

    def mend(number: int) -> None:
        root = work / f"repair-{number}"
        copy = whole.at(shutil.copytree(whole.root, root))
        for flip in [*random_flips(copy, 6, seed=number)]:  # drawn from the cache while it is whole
            if flip.part != "manifest":
                flip(copy)
        outcome = children.run(repair, whole.job, copy)
        if outcome.value != "0":
            raise RuntimeError(outcome.value or outcome.error)
        if len(whole.complete(root)) != len(whole.complete(whole.root)) or found_by_verify(copy):
            raise LookupError("not mended")
        shutil.rmtree(root)

    return Campaign("four bits turned, mended by verify --repair").run(mend, range(count))


def structured_fuzzing(count: int) -> Campaign:
    """The changes of tests/faults/fuzz/mutations.py, drawn at random."""
    campaign = Campaign("manifests, shards and checkpoints changed at random, read")
    draw = random.Random()
    verdicts = {READ: 0, REFUSED: 0}
    targets = {name: make_target(name) for name in TARGETS}

    def read(name: str) -> None:
        verdicts[targets[name](mutated(name, draw))] += 1

    campaign.run(read, [name for name in TARGETS for _ in range(count)], at_once=1)
    campaign.found = verdicts
    return campaign


def guided_fuzzing(seconds: int) -> Campaign:
    """One process of atheris per reader."""
    campaign = Campaign("inputs found by coverage-guided fuzzing, read")
    began = time.monotonic()
    with ThreadPoolExecutor(trials.AT_ONCE) as threads:
        ended = list(threads.map(partial(fuzz, seconds), TARGETS))
    for name, (inputs, kept, error) in zip(TARGETS, ended, strict=True):
        campaign.tried += inputs
        campaign.held += inputs - bool(error)
        campaign.found |= {f"{name}: inputs": inputs, f"{name}: of them new ground": kept}
        campaign.failures += [f"{name}: {error}"[:LONGEST]] if error else []
    campaign.seconds = time.monotonic() - began
    campaign.say()
    return campaign


def fuzz(seconds: int, name: str) -> tuple[int, int, str]:
    """Inputs, those that reached something new, and what broke if something did."""
    words = ["-m", "tests.faults.fuzz.coverage", name, f"--seconds={seconds}"]
    done = subprocess.run([sys.executable, *words], cwd=CHECKOUT, capture_output=True, text=True)
    said = done.stdout + done.stderr
    numbers = [
        int(found[1]) if (found := re.search(rf"stat::{stat}:\s+(\d+)", said)) else 0
        for stat in ("number_of_executed_units", "new_units_added")
    ]
    broke: Sequence[str] = [line for line in said.splitlines() if "Exception" in line or "ERROR" in line]
    return (
        max(1, numbers[0]),
        numbers[1],
        "" if done.returncode == 0 else " ".join(broke[:2]) or said[-LONGEST:],
    )
