"""A student that learns: the miniature, from the command to an encoder that sees where the block is."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lerobot_theia.distill.checkpoint import whole_checkpoints
from lerobot_theia.encoder import TheiaEncoder
from tests.distill.tiny_teachers import write_teacher

pytest.importorskip("gym_pusht")

FALLS_BELOW = 0.2
"""Of the validation loss before the first step; measured: 0.07."""


def command(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    # `accelerate launch --cpu` starts one process whatever it is told.
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    return subprocess.run(
        [sys.executable, *(launch if processes > 1 else ["-m"]), "lerobot_theia.scripts.distill", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        timeout=1800,
        check=False,
    )


@pytest.mark.slow
def test_the_miniature_learns(tmp_path: Path) -> None:
    done = command("--config-name=miniature", f"output_dir={tmp_path}/run", f"cache_root={tmp_path}/cache")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run/student/provenance.json").read_text())
    first, last = found["validation"]["first"], found["validation"]["last"]
    assert last["loss"] < FALLS_BELOW * first["loss"]
    assert found["training"]["steps"] >= 2000
    assert found["command"][1:] == ["--config-name=miniature", "output_dir=run", "cache_root=cache"]
    assert str(tmp_path) not in json.dumps(found)
    assert TheiaEncoder.from_pretrained(tmp_path / "run/student").teachers == ("simulator/pusht",)


SMALL = (
    "corpus.sources.pusht.images=60", "corpus.sources.pusht.validation=0.2", "teachers.pusht.resolution=16",
    "student.hidden_size=64", "student.num_layers=1", "training.epochs=null", "training.steps=3",
    "training.batch_size=4", "training.stages=[{size: 32, share: 1}]", "training.pictures=0",
)  # fmt: skip


@pytest.mark.slow
def test_several_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    losses = []
    for processes in (1, 2):
        output = f"{tmp_path}/{processes}"
        done = command(
            *SMALL, f"output_dir={output}", f"cache_root={tmp_path}/cache", "device=cpu", "wandb.enable=true",
            "wandb.mode=offline", processes=processes,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(list(tmp_path.glob("wandb/offline-run-*"))) == processes, "one more, of one process only"
        found = json.loads(Path(output, "student/provenance.json").read_text())
        assert found["training"]["processes"] == processes
        losses.append(found["validation"]["last"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_go_on_exactly_though_one_may_have_no_image_that_a_teacher_knows(
    tmp_path: Path, picture_folder: Path
) -> None:
    """PushT's truth teaches its own frames only, one image in five: of two of a process, mostly none."""
    mixed = (
        *SMALL, "+corpus.sources.pictures.type=folder", f"+corpus.sources.pictures.path={picture_folder}",
        "+corpus.sources.pictures.license=mit", "+corpus.repeat.pictures=10", "+teachers.vit.type=vision",
        f"+teachers.vit.model={write_teacher(tmp_path / 'vit', 'vit')}", f"cache_root={tmp_path}/cache", "device=cpu",
    )  # fmt: skip

    def train(name: str, *more: str) -> dict[str, torch.Tensor]:
        done = command(*mixed, f"output_dir={tmp_path}/{name}", *more, processes=2)
        assert done.returncode == 0, done.stderr[-3000:]
        return load_file(tmp_path / name / "student/model.safetensors")

    whole = train("whole", "training.steps=6")
    begun = train("parts", "training.steps=3")
    resumed = train("parts", "training.steps=6", "resume=true")
    found = json.loads((tmp_path / "parts/student/provenance.json").read_text())
    assert found["training"]["processes"] == 2 and found["training"]["sessions"] == 2
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(begun[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_errors_end_in_one_line(tmp_path: Path) -> None:
    done = command(f"output_dir={tmp_path}/run", "corpus.sources.pusht.seed=100000")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("lerobot-theia-distill: pusht: seeds 100000")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_in_a_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = [each for each in SMALL if not each.startswith("training.steps")]
    process = subprocess.Popen(
        [sys.executable, "-m", "lerobot_theia.scripts.distill", *arguments, "training.steps=100000",
         "training.checkpoint_every=1", f"output_dir={tmp_path}/run", f"cache_root={tmp_path}/cache", "device=cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while process.poll() is None and not list(tmp_path.glob("run/checkpoints/*/state.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT, errors[-3000:]
    assert "stopped; " in output and "resume=true goes on" in output and "Traceback" not in output + errors
    assert whole_checkpoints(tmp_path / "run") and not list((tmp_path / "run").glob(".claim*"))
