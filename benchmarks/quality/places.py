"""Where things lie under the work folder. Everything there can be made again."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.arms import Arm
from benchmarks.quality.settings import Experiment, Suite, Training, digest, encoder_name
from lerobot_theia.demos.randomize import VERSION


@dataclass(frozen=True)
class Work:
    root: Path
    """outputs/quality"""

    def task(self, suite: Suite, task: str, arm: Arm) -> Path:
        """Demonstrations of a task, recorded as suite and arm want them, and what is made of them for all such arms."""
        looks = f"-{arm.randomize.replace(',', '+')}" if arm.randomize else ""
        how = digest({**suite.recording, "randomize": VERSION if arm.randomize else None})
        return self.root / suite.name / f"{task}-{suite.recorded}{looks}-{how[:6]}"

    def dataset(self, suite: Suite, task: str, arm: Arm, sees: str) -> Path:
        """Demonstrations with frames and true state, or (`state`) a copy without frames."""
        return self.task(suite, task, arm) / (
            "demonstrations" if sees == "pixels" else "demonstrations-state"
        )

    def caches(self, suite: Suite, task: str, arm: Arm) -> Path:
        """By the number of views, so that no arm trains on another's augmentation."""
        return self.task(suite, task, arm) / f"caches-{arm.views}"

    def precompute(self, suite: Suite, task: str, arm: Arm) -> Path:
        """The report of a precompute: it is there when the cache is."""
        of = {
            "encoder": arm.encoder,
            "file": arm.encoder_file_sha256,
            "pool": arm.token_pool,
            "views": arm.views,
        }
        return self.task(suite, task, arm) / "precompute" / f"{encoder_name(arm)}-{digest(of)}.json"

    def training(self, training: Training) -> Path:
        return self.root / "trainings" / f"{training.name}--{digest(training.settings)}"

    def evaluation(self, experiment: Experiment) -> Path:
        return self.root / "evaluations" / f"{experiment.name}--{digest(experiment.settings)}"

    def videos(self, experiment: Experiment) -> Path:
        return self.root / "videos" / experiment.name


def repo_id(suite: Suite, task: str, sees: str) -> str:
    """What LeRobot calls a dataset; nothing is uploaded."""
    return f"local/quality_{suite.name}_{task}" + ("" if sees == "pixels" else "_state")
