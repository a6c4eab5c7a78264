"""SIGTERM and Ctrl-C: the command ends soon, says how far it got, and the same command goes on from there."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lerobot_theia.cache import files
from lerobot_theia.cache.files import TEMPORARY_PREFIX
from lerobot_theia.cache.frames import CameraFrames
from lerobot_theia.cache.shard import ShardWriter
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.scripts import precompute as precompute_command
from tests.cache.test_sharing import share, until
from tests.faults.children import Child, Tell
from tests.faults.workshop import Job, Whole, made, make_job, run

STAGES: dict[str, tuple[type, str]] = {
    "decoding": (CameraFrames, "read"),
    "encoding": (TheiaEncoder, "encode_preprocessed"),
    "writing": (ShardWriter, "append"),
}
SECONDS = 20
"""By far more than it takes, on a machine that does other things, too; without the signal it would be minutes."""


def command(tell: Tell, words: list[str], log: Path, slow: str | None) -> None:
    """For children: `lerobot-theia-precompute`, resting before each call of one stage; output goes to `log`."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    if slow:
        owner, name = STAGES[slow]
        real, calls = getattr(owner, name), []

        def slowly(*arguments: Any) -> Any:
            calls.append(None)
            if len(calls) > 2:  # the first shard is two batches
                tell(slow)
                time.sleep(1.5)
            return real(*arguments)

        setattr(owner, name, slowly)
    sys.argv = ["lerobot-theia-precompute", *words]
    precompute_command.main()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """100 frames of two cameras: minutes, if every batch rests."""
    return make_job(tmp_path_factory.mktemp("stopping"), episodes=(50, 50))


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(job, tmp_path_factory.mktemp("whole"))


def words_of(job: Job, root: Path) -> list[str]:
    settings = job.settings(root)
    return [
        f"+dataset.repo_id={settings.repo_id}", f"dataset.root={settings.root}", f"encoder.name={settings.encoder}",
        f"cache_root={root}", "device=cpu", "dtype=float32", "shard_mib=1", f"batch_size={settings.batch_size}",
        "video_backend=pyav",
    ]  # fmt: skip


def check_stopped(child: Child, number: int, log: Path) -> str:
    outcome = child.wait(SECONDS)
    assert outcome.error == f"SystemExit: {128 + number}", outcome.details
    said = log.read_text()
    assert "Traceback" not in said
    return said


def check_goes_on(whole: Whole, root: Path) -> None:
    complete = whole.check_interrupted(root)
    whole.check_resumed(root, made(run(whole.job, root)).report, complete)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("stage", STAGES)
def test_at_any_stage_it_ends_and_says_how_far_it_got(
    whole: Whole, tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    root, log = tmp_path / "caches", tmp_path / "log"
    child = Child(command, words_of(whole.job, root), log, stage)
    assert child.hear() == stage
    if stage == "encoding":
        until(lambda: list(root.rglob("000000.safetensors")))
    child.kill(number)
    said = check_stopped(child, number, log)
    [complete] = re.findall(r"stopped: (\d+) of 200 frames are complete; the same command goes on", said)
    assert int(complete) == sum(whole.complete(root).values())
    assert not [path for path in root.rglob(f"{TEMPORARY_PREFIX}*") if path.parent != root]
    check_goes_on(whole, root)


def test_while_it_waits_for_another_process(whole: Whole, tmp_path: Path) -> None:
    root, log = tmp_path / "caches", tmp_path / "log"
    other = Child(share, whole.job, root, 3.0)
    until(lambda: list(root.rglob(f"{TEMPORARY_PREFIX}*.safetensors")))
    child = Child(command, words_of(whole.job, root), log, None)
    until(lambda: log.exists() and "waiting for them" in log.read_text())
    child.kill(signal.SIGTERM)
    said = check_stopped(child, signal.SIGTERM, log)
    assert re.search(r"stopped: \d+ of 200 frames are complete", said)
    other.kill()
    other.wait()
    check_goes_on(whole, root)


def test_before_any_work(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    child = Child(stopped_while_loading, words_of(whole.job, tmp_path / "caches"), log)
    assert child.hear() == "loading"
    child.kill(signal.SIGTERM)
    assert "stopped before any work; the same command begins it" in check_stopped(child, signal.SIGTERM, log)


def stopped_while_loading(tell: Tell, words: list[str], log: Path) -> None:
    def load(*_: Any, **__: Any) -> None:
        tell("loading")
        time.sleep(60)

    TheiaEncoder.from_pretrained = load  # type: ignore[method-assign, assignment]
    command(tell, words, log, None)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_as_a_shell_sees_it(whole: Whole, tmp_path: Path, number: signal.Signals) -> None:
    root = tmp_path / "caches"
    process = subprocess.Popen(
        [Path(sys.executable).with_name("lerobot-theia-precompute"), *words_of(whole.job, root)],
        cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    until(lambda: process.poll() is not None or list(root.rglob("000000.safetensors")))
    process.send_signal(number)
    said = process.communicate(timeout=SECONDS)[0]
    if process.returncode == 0:
        pytest.skip("it was finished before the signal came")
    assert process.returncode == 128 + number, said
    assert "the same command goes on from there" in said and "Traceback" not in said
    check_goes_on(whole, root)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "close"])
def test_a_signal_during_any_call_of_the_kernel_leaves_no_file_that_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It raises when the call returns, which has then been made."""

    def stopped_in(function: Callable[..., Any]) -> Callable[..., Any]:
        def made_and_stopped(*arguments: Any, **more: Any) -> Any:
            function(*arguments, **more)
            raise SystemExit(128 + signal.SIGTERM)

        return made_and_stopped

    owner, name = {
        "open": (Path, "open"),
        "write": (files, "write"),
        "fsync": (files, "sync"),
        "rename": (files, "rename"),
        "close": (ExitStack, "close"),
    }[call]
    files.machine()  # reads a file, once
    monkeypatch.setattr(owner, name, stopped_in(getattr(owner, name)))
    with pytest.raises(SystemExit):
        files.publish(tmp_path / "new", [b"bytes"])
    monkeypatch.undo()
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["new"] if call in ("rename", "close") else [])
