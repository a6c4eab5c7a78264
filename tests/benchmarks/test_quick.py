"""Benchmarks run, check what they read, and write results of the agreed form. No test judges a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
CHEAP = ("loader", "gather", "scale", "int8")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets and caches that the benchmarks share."""
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module", params=CHEAP)
def text(request: pytest.FixtureRequest, work: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The result of a quick run, as it was written."""
    out = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, f"benchmarks/{request.param}.py", "--quick", f"--work={work}", f"--out={out}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300)
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
    assert any(outcome["row"] is not None for outcome in result["outcomes"])


def test_result_holds_no_path_or_name_of_the_machine(text: str, work: Path) -> None:
    for private in (str(work), str(CHECKOUT), os.uname().nodename):
        assert private not in text
