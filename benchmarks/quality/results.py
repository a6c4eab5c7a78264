"""Results: one JSON file per experiment, written when it is done."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import rounded
from benchmarks.quality.settings import Experiment, digest
from lerobot_theia.distill.nested import flat

FOLDER = "quality"


class Results:
    """Those of one machine: `<out>/<machine>/quality/<experiment>.json`."""

    def __init__(self, out: Path, machine: str) -> None:
        self.folder = out / machine / FOLDER

    def path(self, experiment: Experiment) -> Path:
        return self.folder / f"{experiment.name}.json"

    def find(self, experiment: Experiment) -> dict[str, Any] | None:
        """What was found with the very same settings; with others, the experiment is not done."""
        path = self.path(experiment)
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found if found["settings_digest"] == digest(experiment.settings) else None

    def unfinished(self, experiments: Sequence[Experiment]) -> list[Experiment]:
        """Those of which there is none."""
        return [each for each in experiments if self.find(each) is None]

    def in_the_way(self, experiment: Experiment) -> str | None:
        """What another experiment of the same name was measured with, where it differs; None if there is none."""
        path = self.path(experiment)
        if not path.is_file() or self.find(experiment) is not None:
            return None
        before, now = (
            as_json(each) for each in (json.loads(path.read_text())["settings"], experiment.settings)
        )
        differ = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        return ", ".join(f"{name}={before.get(name)} (now {now.get(name)})" for name in differ)

    def save(self, experiment: Experiment, found: Mapping[str, Any]) -> Path:
        path = self.path(experiment)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            "name": experiment.name,
            "settings_digest": digest(experiment.settings),
            "settings": experiment.settings,
            **found,
        }
        beside = path.with_suffix(".tmp")
        beside.write_text(
            compact(json.dumps(rounded(whole), indent=1, ensure_ascii=False, default=dict)) + "\n"
        )
        os.replace(beside, path)
        return path

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]


def as_json(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names to values."""
    return {name: json.dumps(each, default=list) for name, each in flat(settings).items()}


def compact(text: str) -> str:
    """Lists of numbers on one line each, which keeps files of two hundred episodes short."""
    return re.sub(r"\[([\s\d.,eE+-]*)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
