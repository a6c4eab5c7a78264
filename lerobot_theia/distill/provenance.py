"""What a student was made from, by what, and how well: `provenance.json` beside its weights."""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from lerobot_theia.cache.files import publish
from lerobot_theia.demos.seeds import FIRST_EVALUATION_SEED
from lerobot_theia.distill.corpus import Corpus
from lerobot_theia.distill.frames import SPLITS
from lerobot_theia.distill.lessons import Lesson, teaches
from lerobot_theia.distill.licenses import commercial_use, student_license
from lerobot_theia.distill.pack import PackedSource
from lerobot_theia.distill.settings import DistillSettings, plain_values
from lerobot_theia.distill.student import Beginning
from lerobot_theia.distill.teachers.interface import Teacher
from lerobot_theia.distill.training import Trained

PROVENANCE_FILE = "provenance.json"
FORMAT = "lerobot-theia-provenance"
FORMAT_VERSION = 1
_ABSOLUTE_FOLDERS = re.compile(r"""(?<![\w.:/~])~?/(?:[^/,\s\[\]{}"']+/(?=[^/,\s\[\]{}"']))*""")
_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")


def provenance(
    *,
    beginning: Beginning,
    licenses: Mapping[str, str],
    weights_sha256: str,
    corpus: Corpus,
    lessons: Sequence[Lesson],
    trained: Trained,
) -> dict[str, Any]:
    """Settings, code and so on are those of the last session that took a step; earlier ones have theirs beside it.

    Args:
        licenses: part -> the strictest licence that any session stated of it.
    """
    student = beginning.student
    license, commercial = student_license(licenses)
    *earlier, last = trained.history
    settings = last["settings"]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": student.spec.name,
        "license": license,
        "commercial_use": commercial,
        "weights_sha256": weights_sha256,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": last["command"],
        "student": {
            "hidden_size": student.spec.hidden_size,
            "num_layers": student.spec.num_layers,
            "num_heads": student.spec.num_heads,
            "init": settings["student"]["init"],
            "init_license": beginning.init_license,
            "init_weights_sha256": beginning.init_sha256,
            "heads_from_scratch": list(beginning.new_heads),
        },
        "corpus": corpus_manifest(corpus, licenses),
        "teachers": [teacher_manifest(lesson, corpus, licenses) for lesson in lessons],
        "settings": settings,
        "training": {
            "steps": trained.steps,
            "images": trained.images,
            "seconds": round(trained.seconds, 1),
            "sessions": trained.sessions,
            "processes": last["processes"],
            "earlier_sessions": earlier,
        },
        "validation": {"first": trained.first.to_json(), "last": trained.last.to_json()},
        "code": last["code"],
        "environment": last["environment"],
    }


def session(
    settings: DistillSettings,
    corpus: Corpus,
    teachers: Sequence[Teacher],
    beginning: Beginning,
    accelerator: Accelerator,
    command: Sequence[str],
) -> dict[str, Any]:
    """What is written down of this session."""
    licenses = {f"source {source.name}": source.license for source in corpus.sources}
    licenses |= {f"teacher {teacher.name}": teacher.license for teacher in teachers}
    if beginning.init_license is not None:
        licenses["the initial weights"] = beginning.init_license
    return {
        "command": list(command),
        "settings": plain_values(settings),
        "licenses": licenses,
        "processes": accelerator.num_processes,
        "code": code_version(),
        "environment": environment(accelerator.device),
    }


def command_line() -> list[str]:
    """What was typed, without the path of the program; absolute paths keep their last part only."""
    return ["lerobot-theia-distill", *(_ABSOLUTE_FOLDERS.sub("", argument) for argument in sys.argv[1:])]


def corpus_manifest(corpus: Corpus, licenses: Mapping[str, str]) -> dict[str, Any]:
    return {
        "content_sha256": corpus.content_sha256,
        "images": {split: len(corpus.indices[split]) for split in SPLITS},
        "images_per_epoch": len(corpus.epoch),
        "evaluation_seeds": evaluation_seeds(corpus),
        "sources": [source_manifest(source, licenses[f"source {source.name}"]) for source in corpus.sources],
        "skipped": [asdict(skipped) for skipped in corpus.skipped],
    }


def evaluation_seeds(corpus: Corpus) -> str:
    """What is known of them: sources that are simulators refuse them, others bring what they bring."""
    others = [source.name for source in corpus.sources if "environment_seeds" not in source.origin]
    known = (
        "no source used one" if not others else f"not known of {', '.join(others)}; no other source used one"
    )
    return f"{FIRST_EVALUATION_SEED} and up; {known}"


def source_manifest(source: PackedSource, license: str) -> dict[str, Any]:
    return {
        "name": source.name,
        "license": license,
        "commercial_use": commercial_use(license),
        "images": len(source),
        "splits": {split: source.splits.count(split) for split in SPLITS},
        "content_sha256": source.content_sha256,
        "shards": [shard.sha256 for shard in source.shards],
        "made_with": made_with(source),
        "origin": dict(source.origin),
    }


def made_with(source: PackedSource) -> dict[str, str]:
    """Versions of the packages that drew its images: several, where an interrupted packing went on with others."""
    found: dict[str, set[str]] = {}
    for shard in source.shards:
        for package, version in shard.about["made_with"].items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(versions)) for package, versions in found.items()}


def teacher_manifest(lesson: Lesson, corpus: Corpus, licenses: Mapping[str, str]) -> dict[str, Any]:
    teacher = lesson.teacher
    license = licenses[f"teacher {teacher.name}"]
    return {
        "name": teacher.name,
        "license": license,
        "commercial_use": commercial_use(license),
        "feature_size": list(teacher.feature_size),
        "weight": lesson.weight,
        "features": "computed on the fly" if lesson.stored is None else "extracted, bfloat16",
        "sources": [source.name for source in corpus.sources if teaches(teacher, source)],
        **dict(teacher.origin),
    }


def code_version(*more: str) -> dict[str, Any]:
    """Version of this package, and the commit of its checkout if it runs from one.

    Args:
        more: folders that matter, too, when it is told whether there are uncommitted changes; `:!folder` for one that does not.
    """
    version: dict[str, Any] = {"lerobot_policy_theia": _version("lerobot_policy_theia")}
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        version["commit"] = _git(root, "rev-parse", "HEAD") or "unknown"
        changes = _git(root, "status", "--porcelain", "--", "lerobot_theia", "configs", *more)
        version["uncommitted_changes"] = None if changes is None else bool(changes)
    return version


def environment(device: torch.device) -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        **{name: _version(name) for name in _PACKAGES},
    }


def write_provenance(folder: Path, value: Mapping[str, Any]) -> None:
    publish(folder / PROVENANCE_FILE, [json.dumps(value, indent=2).encode() + b"\n"])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(root: Path, *arguments: str) -> str | None:
    """What it says; None where it cannot."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
