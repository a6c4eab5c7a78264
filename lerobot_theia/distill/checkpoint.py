"""Checkpoints: a student in the published layout, with the optimiser's state and where training stood.

    <output_dir>/checkpoints/<step>/config.json, model.safetensors    the student; `TheiaEncoder` loads it
                                    optimizer.safetensors             first and second moments, by parameter
                                    state.json                        step, settings, hashes; written last

Data order, augmentation and learning rate are functions of seed and step, so there is no other state.
"""

import contextlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lerobot_theia.cache.files import publish, sha256_of_file
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.layout import write_student
from lerobot_theia.distill.student import Student
from lerobot_theia.encoder.locate import WEIGHTS_FILE

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
FOLDER = "checkpoints"
KEPT = 2
FORMAT_VERSION = 3


@dataclass(frozen=True)
class Position:
    """Where a run stood.

    Args:
        step: steps taken.
        seconds: spent training, over all sessions.
        sessions: how often the run was begun or resumed.
        run: what must be the same when it goes on: teachers, student, corpus, order of images.
        history: each session that took a step: `from_step`, and under which settings, licences and code, by which
            command.
        first: the validation score before the first step, as JSON.
    """

    step: int
    seconds: float
    sessions: int
    run: dict[str, Any]
    history: tuple[dict[str, Any], ...] = ()
    first: dict[str, Any] | None = None


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    return output_dir / FOLDER / f"{step:08d}"


def save_checkpoint(
    output_dir: Path, student: Student, optimizer: torch.optim.Optimizer, position: Position
) -> Path:
    """Write a checkpoint, and delete all but the newest few."""
    folder = checkpoint_folder(output_dir, position.step)
    write_student(folder, student)
    publish(folder / OPTIMIZER_FILE, [safetensors.torch.save(optimizer_tensors(student, optimizer))])
    files = {name: sha256_of_file(folder / name) for name in (WEIGHTS_FILE, OPTIMIZER_FILE)}
    state = {
        "format_version": FORMAT_VERSION,
        "step": position.step,
        "seconds": position.seconds,
        "sessions": position.sessions,
        "run": position.run,
        "history": list(position.history),
        "first": position.first,
        "sha256": files,
    }
    publish(folder / STATE_FILE, [json.dumps(state, indent=2).encode() + b"\n"])
    for old in whole_checkpoints(output_dir)[:-KEPT]:
        (old / STATE_FILE).unlink()  # first: what is left is no checkpoint any more
        shutil.rmtree(old, ignore_errors=True)
    return folder


def whole_checkpoints(output_dir: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(state.parent for state in (output_dir / FOLDER).glob(f"*/{STATE_FILE}"))


def newest_position(output_dir: Path) -> tuple[Path, Position] | None:
    """The newest checkpoint whose files are as they were written; damaged ones are passed over."""
    damaged = []
    for folder in reversed(whole_checkpoints(output_dir)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads((folder / STATE_FILE).read_text())
            if state["format_version"] != FORMAT_VERSION:
                raise DistillError(
                    f"{folder} was written by another version of this program (format {state['format_version']}, "
                    f"expected {FORMAT_VERSION}): resume it with that one"
                )
            if all(sha256_of_file(folder / name) == digest for name, digest in state["sha256"].items()):
                position = Position(state["step"], state["seconds"], state["sessions"], state["run"])
                return folder, replace(position, history=tuple(state["history"]), first=state["first"])
        damaged.append(folder)
    if damaged:
        raise DistillError(
            f"no checkpoint in {output_dir / FOLDER} is whole: {', '.join(f.name for f in damaged)} were altered or "
            "lost files. Restore one, or begin anew in another output_dir"
        )
    return None


def load_checkpoint(folder: Path, student: Student, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and moments in place, exactly as they were."""
    student.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE))
    tensors = safetensors.torch.load_file(folder / OPTIMIZER_FILE)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            state = {
                key: tensors[f"{key}/{name}"].to(parameter.device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in tensors
            }
            if state:
                if "step" in state and group.get("fused"):
                    state["step"] = state["step"].to(parameter.device)
                optimizer.state[parameter] = state


def optimizer_tensors(student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`<moment>/<parameter>` to tensor; parameters that had no gradient yet have no state."""
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    return {
        f"{key}/{names[id(parameter)]}": value.detach().cpu().contiguous()
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in optimizer.state.get(parameter, {}).items()
    }
