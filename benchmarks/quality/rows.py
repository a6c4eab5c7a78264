"""Rows of tables: results that differ in nothing but the seed of training, their episodes taken together.

What was trained to a number of steps is as good wherever it was trained; to a time, only on machines that are alike.
"""

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.quality.arms import ArmError, load_arm
from benchmarks.quality.evaluations import summary
from benchmarks.quality.intervals import independent
from benchmarks.quality.settings import WARM_UP, Budget, digest

Result = dict[str, Any]
FILLED = 0.95


@dataclass(frozen=True)
class Row:
    """The same experiment with one or more seeds of training."""

    results: tuple[Result, ...]

    def __getitem__(self, name: str) -> Any:
        """A setting, the same for all."""
        return self.results[0]["settings"][name]

    @property
    def demonstrations(self) -> str:
        """`260`; or `100 of 260`, where all were recorded and encoded, and tokens standardised as those of all."""
        return " ".join(filter(None, (str(self["demonstrations"]), self.of_recorded)))

    @property
    def of_recorded(self) -> str:
        """`of 260`; empty if these are all that were recorded."""
        recorded = self["recorded"]
        return "" if self["demonstrations"] == recorded else f"of {recorded}"

    @property
    def budget(self) -> Budget:
        return Budget(**self["budget"])

    @property
    def machine(self) -> str:
        """`2-core-amd-epyc`; where it was more than one, all of them."""
        return " and ".join(sorted({common.slug(each["machine"]) for each in self.results}))

    @property
    def cores(self) -> int:
        """The most that one of them had."""
        return max(each["machine"]["cores"] for each in self.results)

    @property
    def seeds(self) -> int:
        """How many. One that was trained on two machines counts once."""
        return len({each["settings"]["seed"] for each in self.results})

    @property
    def timed_on(self) -> str:
        """The machine, if its budget is a time, which means something only there; else empty."""
        return self.machine if self.budget.kind == "minutes" else ""

    @property
    def scene(self) -> str:
        """`plain`, or `randomized`: of the evaluation."""
        return str(self["evaluation"].get("scene", "plain"))

    @property
    def where(self) -> str:
        """Task, and what looks different in each episode."""
        kinds = self["evaluation"]["env"].get("randomize", "")
        return f"{self['task']}{f'; random {kinds}'.replace(',', ', ') if kinds else ''}"

    @property
    def stuck(self) -> float | None:
        """None where doing nothing earns other rewards than on Push-T."""
        return float(self.summary["stuck"]) if self["suite"] == "pusht" else None

    @property
    def outdated(self) -> str:
        """What would be otherwise if it were measured today, as far as it can be told; empty if nothing."""
        settings = self.results[0]["settings"]
        reasons = []
        if settings.get("warm_up") != WARM_UP:
            reasons.append("a warm-up of other length")
        with contextlib.suppress(ArmError):
            now = load_arm(settings["arm"]).encoder_file_sha256  # None if it does not lie here
            if now is not None and settings["encoder_file"] not in (None, now):
                reasons.append("earlier weights of its encoder")
        if any(each["training"].get("resumed_with") for each in self.results):
            reasons.append("other code or libraries from where it went on after an interruption")
        return " and ".join(reasons)

    @property
    def what(self) -> str:
        return self.results[0]["what"]

    @property
    def summary(self) -> dict[str, Any]:
        """Of the episodes of all seeds. The intervals are of the evaluation's starts, not of the seeds of training."""
        evaluations = [each["evaluation"] for each in self.results]
        return summary(
            [each["max_rewards"] for each in evaluations], [each["successes"] for each in evaluations]
        )

    @property
    def success(self) -> float:
        return self.summary["success_rate"]

    @property
    def mean_max_reward(self) -> float:
        return self.summary["mean_max_reward"]

    @property
    def starts(self) -> list[int]:
        """Seeds of the episodes, the same for all."""
        return list(self.results[0]["evaluation"]["seeds"])

    @property
    def independent_episodes(self) -> float:
        """As many as say what its episodes say; see `intervals.independent`."""
        return independent(
            np.asarray([each["evaluation"]["successes"] for each in self.results], dtype=float)
        )

    @property
    def by_seed(self) -> list[float]:
        """Success rate of each seed of training, in order of the seeds."""
        ordered = sorted(self.results, key=lambda each: each["settings"]["seed"])
        return [each["evaluation"]["success_rate"] for each in ordered]

    @property
    def minutes(self) -> float:
        """Of training; encoding not counted."""
        return statistics.mean(each["training"]["seconds"] for each in self.results) / 60

    @property
    def cut_off(self) -> bool:
        """Whether the clock ended one before all the steps that its schedule was for."""
        return any(each["training"]["out_of_time"] for each in self.results)

    @property
    def unfilled(self) -> bool:
        """Whether one took all of its steps in less than its time but a twentieth: faster than was measured before."""
        budget = self.budget
        return (budget.kind, budget.amount) == ("minutes", budget.of) and any(
            not each["training"]["out_of_time"] and each["training"]["seconds"] < FILLED * 60 * budget.amount
            for each in self.results
        )

    @property
    def steps(self) -> float:
        return statistics.mean(each["training"]["steps"] for each in self.results)

    @property
    def steps_taken(self) -> str:
        """`1,343`; or `520 to 902`, where one seed took a tenth more than another in the same time."""
        taken = [each["training"]["steps"] for each in self.results]
        least, most = min(taken), max(taken)
        return f"{least:,} to {most:,}" if most > 1.1 * least else f"{self.steps:,.0f}"

    @property
    def encoding(self) -> str:
        """Minutes that encoding the frames of all recorded demonstrations took, once, before training; empty if nothing
        is encoded."""
        encoder, cores = self.results[0]["encoder"], self.results[0]["machine"]["cores"]
        if encoder is None:
            return ""
        of = "" if encoder["cores"] == cores else f" ({encoder['cores']} cores)"
        return f"{encoder['seconds'] / 60:.1f}{of}"


def rows(results: Sequence[Result], *, pool: bool = False) -> list[Row]:
    """In order of task, demonstrations, budget, arm and machine. Results with other settings are other rows, whatever their
    name.

    Args:
        pool: take what was trained to the same number of steps on several machines together.
    """
    alike: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        settings = result["settings"]
        anywhere = pool and settings["budget"]["kind"] == "steps"
        machine = "" if anywhere else common.slug(result["machine"])
        alike[digest(settings, but=("seed",)), machine].append(result)
    found = [Row(tuple(each)) for each in alike.values()]
    return sorted(found, key=lambda row: (row["task"], row["demonstrations"], row["budget"]["kind"],
                                          row["budget"]["of"], row["budget"]["amount"], row["arm"], row.machine))  # fmt: skip
