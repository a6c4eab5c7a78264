"""Benchmarks run, check what they read, and write results of the agreed form. No test judges a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[2]
CHEAP = {name: (f"{name}.py",) for name in ("loader", "gather", "scale", "int8")}
ON_A_GPU = {
    f"gpu_{part}": ("gpu.py", "--device=cpu", f"--parts={part}")
    for part in ("encoder", "latency", "act", "diffusion")
}
"""Their numbers want a GPU, their code runs on any machine."""
OF_PARTS = {"heads": ("heads.py",)}
"""What parts of a step cost; no target."""
OF_QUALITY = {"probe": ("probe.py", "--suites=pusht"), "pose_error": ("pose_error.py",)}
"""They measure no speed and have no target."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets and caches that the benchmarks share."""
    return tmp_path_factory.mktemp("benchmarks")


def run(work: Path, out: Path, *script: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        f"benchmarks/{script[0]}",
        *script[1:],
        "--quick",
        f"--work={work}",
        f"--out={out}",
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


TRAINING = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("gpu_act", "gpu_diffusion")]
"""They compile, which takes minutes on a CPU."""


@pytest.fixture(
    scope="module", params=[*CHEAP, *OF_PARTS, *OF_QUALITY, "gpu_encoder", "gpu_latency", *TRAINING]
)
def text(request: pytest.FixtureRequest, work: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The result of a quick run, as it was written."""
    out = tmp_path_factory.mktemp(request.param)
    done = run(work, out, *(CHEAP | OF_PARTS | ON_A_GPU | OF_QUALITY)[request.param])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (path,) = out.glob("*/*.json")
    assert path.stem == request.param
    return path.read_text()


def test_result_says_what_was_measured_where_and_with_what(text: str) -> None:
    result = json.loads(text)

    assert result["quick"] is True
    assert {"name", "measured", "settings", "notes", "date"} <= result.keys()
    assert {"cpu", "cores", "memory_gb", "gpu"} <= result["machine"].keys()
    assert {"python", "torch", "lerobot", "transformers", "lerobot_policy_theia"} <= result["versions"].keys()


def test_result_holds_each_repeat_and_judges_only_what_has_a_target(text: str) -> None:
    result = json.loads(text)

    assert result["arms"]
    for arm in result["arms"].values():
        assert min(arm["values"]) <= arm["median"] <= max(arm["values"])
        assert arm["spread"] >= 0
    for outcome in result["outcomes"]:
        has_target = outcome["at_least"] is not None or outcome["at_most"] is not None
        assert (outcome["met"] is not None) == has_target
    if result["name"] in CHEAP:
        assert any(outcome["row"] is not None for outcome in result["outcomes"])


@pytest.mark.parametrize("text", TRAINING, indirect=True)
def test_each_arm_of_training_on_a_gpu_is_split_into_waiting_preprocessing_and_update(text: str) -> None:
    result = json.loads(text)
    arms, batch = result["arms"], result["settings"]["batch_size"]
    runs = [name for name, arm in arms.items() if arm["unit"] == "samples/s"]

    for kind in ("raw, in-tree", "online", "cached, disk", "cached, memory", "cached, device"):
        assert any(name.startswith(kind) for name in runs)
    assert any(name.endswith("compiled") for name in runs)
    for name in runs:
        parts = [arms[f"{part}: {name}"]["values"] for part in ("waiting", "preprocessing", "update")]
        for rate, *split in zip(arms[name]["values"], *parts, strict=True):
            assert min(split) > 0
            assert sum(split) == pytest.approx(1e3 * batch / rate, rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_that_is_said(work: Path, tmp_path: Path) -> None:
    done = run(work, tmp_path, "gpu.py")
    assert done.returncode == 0
    assert "nothing was measured" in done.stderr
    assert not list(tmp_path.iterdir())


def test_result_holds_no_path_or_name_of_the_machine(text: str, work: Path) -> None:
    for private in (str(work), str(CHECKOUT), os.uname().nodename):
        assert private not in text
