"""Runs of the quality benchmark: what is done is not done again, what was interrupted goes on, what fails says why.

With stand-ins for the commands, in which only the running counts; at the end once with the real ones.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from benchmarks import common
from benchmarks.quality import clock, commands, experiments, processes
from benchmarks.quality.processes import CommandError, InUseError, only_run, run
from benchmarks.quality.rows import rows
from benchmarks.quality.settings import SettingsError
from lerobot_theia.cache.files import sha256_of_file
from tests.benchmarks.test_quality import settings

STAND_IN = Path(__file__).with_name("stand_in.py")


class Bench:
    """A work folder and commands that only pretend."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.calls_file = root, root / "bin", root / "calls"
        self.bin.mkdir()
        for name in ("lerobot-edit-dataset", "lerobot-theia-precompute", "lerobot-train", "lerobot-eval"):
            (self.bin / name).write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
            (self.bin / name).chmod(0o755)
        shutil.copy(STAND_IN, self.bin / "record.py")

    def start(self, *overrides: str, **more: Any) -> None:
        config = settings(
            "question=quick",
            "arms=[theia_act@random-tiny]",
            f"suite.recorder=[{self.bin}/record.py]",
            f"work={self.root}/work",
            *overrides,
        )
        experiments.start(config | more)

    def take_calls(self) -> list[str]:
        """Commands since the last time, by name."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        found = (self.root / "work" / "results").glob("*/quality/*.json")
        return {path.stem: json.loads(path.read_text()) for path in found}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setattr(commands, "BIN", made.bin)
    monkeypatch.setattr(processes, "TICK_S", 0.01)
    monkeypatch.setenv("STAND_IN_CALLS", str(made.calls_file))
    return made


def test_an_experiment_leaves_a_result_and_a_second_run_does_nothing(bench: Bench) -> None:
    bench.start("episodes=7")
    assert bench.take_calls() == [
        "record.py",
        "lerobot-theia-precompute",
        "lerobot-train",
        *["lerobot-eval"] * 2,
    ]
    names = [
        "pusht--pusht--theia_act@random-tiny--2demos--seed1--" + each for each in ("2of4steps", "4steps")
    ]
    assert sorted(bench.results) == names

    first, second = (bench.results[name] for name in names)
    assert second["evaluation"]["successes"] == [1, 0, 0, 1, 0, 0, 1]
    assert second["evaluation"]["success_rate"] == pytest.approx(3 / 7, abs=1e-5)
    assert second["evaluation"]["max_rewards"] == [1.0, 0.25, 0.25, 1.0, 0.25, 0.25, 1.0]
    assert second["evaluation"]["mean_max_reward"] == pytest.approx(4 / 7, abs=1e-5)
    assert second["evaluation"]["seeds"] == list(range(100000, 100007))
    assert second["encoder"] == {
        "name": "random-tiny", "weights_sha256": "ab" * 32, "frames": 7, "frames_per_s": 3.5, "seconds": 2.0,
        "cores": common.machine()["cores"],
    }  # fmt: skip
    assert (first["training"]["steps"], second["training"]["steps"]) == (2, 4)
    assert first["training"]["loss"] == 0.5 and second["training"]["loss"] == 0.25
    assert 0 < first["training"]["seconds"] <= second["training"]["seconds"]
    assert second["videos"] == {
        "successes": ["success-0.mp4", "success-3.mp4"], "failures": ["failure-1.mp4", "failure-2.mp4"],
    }  # fmt: skip
    videos = bench.root / "work" / "videos" / names[1]
    assert second["video_sha256"] == {path.name: sha256_of_file(path) for path in videos.iterdir()}
    assert sorted(path.name for path in videos.iterdir()) == sorted(
        itertools.chain(*second["videos"].values())
    )
    assert second["machine"] == common.machine() and "lerobot" in second["versions"]
    assert str(bench.root) not in json.dumps(bench.results)

    bench.start("episodes=7")
    assert bench.take_calls() == []


def test_changed_settings_run_anew_and_only_what_they_change(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.start("steps=[4]")
    bench.take_calls()

    with pytest.raises(SettingsError) as error:
        bench.start("steps=[4]", "seeds=[1,2]", "episodes=3")
    assert "of 2 results, 1 would take the place of what was measured with other settings" in str(error.value)
    assert "evaluation.episodes=2 (now 3)\n" in str(error.value) and "replace=true" in str(error.value)
    bench.start("steps=[4]", "seeds=[1,2]", "episodes=3", "action=status")
    said = capsys.readouterr().out
    assert "what was measured with evaluation.episodes=2 (now 3): needs replace=true" in said
    assert said.count("needs replace=true") == 1
    assert bench.take_calls() == []
    bench.start("steps=[4]", "episodes=3", replace=True)
    assert bench.take_calls() == ["lerobot-eval"]
    (result,) = bench.results.values()
    assert result["evaluation"]["episodes"] == 3

    bench.start("steps=[4]", "suite.batch_size=2", replace=True)
    assert bench.take_calls() == ["lerobot-train", "lerobot-eval"]
    bench.start("steps=[4]", "seeds=[2]")
    assert bench.take_calls() == ["lerobot-train", "lerobot-eval"]
    bench.start("steps=[4]", "arms=[theia_act@random-small]")
    assert bench.take_calls() == ["lerobot-theia-precompute", "lerobot-train", "lerobot-eval"]
    bench.start("steps=[4]", "arms=[act_state]")
    assert bench.take_calls() == ["lerobot-edit-dataset", "lerobot-train", "lerobot-eval"]
    bench.start("steps=[4]", "arms=[act]")
    assert bench.take_calls() == ["lerobot-train", "lerobot-eval"]
    assert len(bench.results) == 5  # the first was replaced twice


def test_data_of_another_recorder_is_made_anew(bench: Bench) -> None:
    bench.start("steps=[4]")
    bench.take_calls()
    bench.start("steps=[4]", f"suite.recorder=[{bench.bin}/record.py,--more]", replace=True)
    assert bench.take_calls() == ["record.py", "lerobot-theia-precompute", "lerobot-train", "lerobot-eval"]


def test_so_is_data_of_a_later_version_of_the_recorder(bench: Bench) -> None:
    bench.start("steps=[4]")
    bench.take_calls()
    with pytest.raises(SettingsError, match=r"recorder_version=None \(now 2\)"):
        bench.start("steps=[4]", "suite.recorder_version=2")
    bench.start("steps=[4]", "suite.recorder_version=2", replace=True)
    assert bench.take_calls() == ["record.py", "lerobot-theia-precompute", "lerobot-train", "lerobot-eval"]


def test_versions_of_a_training_are_those_it_began_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = common.versions()
    bench.start("steps=[4]")
    monkeypatch.setattr(common, "versions", lambda: now | {"lerobot": "9.9"})
    bench.start("steps=[4]", "episodes=3", replace=True)
    (result,) = bench.results.values()
    assert result["versions"]["lerobot"] == "9.9"
    assert result["training"]["begun"]["versions"] == now
    assert set(result["training"]["begun"]) == {"date", "versions", "code"} and result["code"]
    assert result["training"]["resumed_with"] == []


def test_a_failure_shows_the_last_words_and_the_log_and_training_goes_on_from_its_last_checkpoint(
    bench: Bench,
) -> None:
    (bench.root / "dies_after").write_text("27")
    with pytest.raises(CommandError) as error:
        bench.start("steps=[40]")
    message = str(error.value)
    assert "lerobot-train ended with 1; its last lines:" in message
    assert "RuntimeError: the disk is full" in message
    (log,) = (bench.root / "work" / "trainings").glob("*/train.log")
    assert message.endswith(f"All of it: {log}")
    assert not bench.results
    before = bench.take_calls()

    bench.start("steps=[40]")
    assert before[-1] == "lerobot-train"
    assert bench.take_calls() == ["lerobot-train", "lerobot-eval"]
    assert "000024/pretrained_model/train_config.json --resume=true" in log.read_text()
    (result,) = bench.results.values()
    assert result["training"]["interruptions"] == 1
    assert result["training"]["resumed_with"] == [] and not rows([result])[0].outdated
    assert result["training"]["steps"] == 40
    record = json.loads(log.with_name("record.json").read_text())
    assert [int(step) for step in record["seconds"]] == list(range(4, 41, 4))
    assert list(record["seconds"].values()) == sorted(record["seconds"].values())


def test_a_training_that_went_on_with_other_versions_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = common.versions()
    (bench.root / "dies_after").write_text("27")
    with pytest.raises(CommandError):
        bench.start("steps=[40]")
    monkeypatch.setattr(common, "versions", lambda: now | {"lerobot": "9.9"})
    bench.start("steps=[40]")
    (result,) = bench.results.values()
    training = result["training"]
    assert training["begun"]["versions"] == now and training["interruptions"] == 1
    assert [each["versions"]["lerobot"] for each in training["resumed_with"]] == ["9.9"]
    (row,) = rows([result])
    assert row.outdated == "other code or libraries from where it went on after an interruption"


def test_only_evaluated_policies_stay(bench: Bench) -> None:
    bench.start("steps=[20,40]")
    (run_folder,) = (bench.root / "work" / "trainings").glob("*/run/checkpoints")
    assert sorted(each.name for each in run_folder.iterdir() if each.name.isdigit()) == ["000020", "000040"]
    assert not list(run_folder.glob("*/training_state"))
    assert len(list(run_folder.glob("0*/pretrained_model/train_config.json"))) == 2
    bench.take_calls()

    bench.start("steps=[20,40]", "episodes=4", replace=True)
    assert bench.take_calls() == ["lerobot-eval"] * 2
    with pytest.raises(SettingsError, match=r"10of40steps needs the checkpoint after step 10; .* remove /"):
        bench.start("steps=[10,40]", replace=True)


def test_a_training_is_not_taken_for_one_of_another_machine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.start("steps=[4]")
    monkeypatch.setattr(
        common, "machine", lambda: {"cpu": "Another", "cores": 64, "memory_gb": 8, "gpu": None}
    )
    with pytest.raises(SettingsError, match=r"was trained on .*, this is 64-core-another: .* work="):
        bench.start("steps=[4]")


def test_a_checkpoint_that_was_announced_and_not_written_does_not_count() -> None:
    record = clock.Record(steps=4, save_every=2, seconds={2: 1.0, 4: 2.0}, losses={2: 0.5, 4: 0.25})
    record.keep([2])
    assert (record.seconds, record.losses) == ({2: 1.0}, {2: 0.5})


def test_a_time_budget_is_measured_filled_and_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEP_S", "0.02")
    monkeypatch.setattr(clock, "SETTLE_S", 0.1)
    bench.start("steps=[]", "minutes=[0.02,0.05]", "calibration_s=0.4")
    assert bench.take_calls() == [
        "record.py", "lerobot-theia-precompute", "lerobot-train", "lerobot-train", *["lerobot-eval"] * 2,
    ]  # fmt: skip
    by_amount = {each["settings"]["budget"]["amount"]: each["training"] for each in bench.results.values()}
    for minutes, training in by_amount.items():
        assert 0 < training["seconds"] <= 60 * minutes
    assert by_amount[0.02]["steps"] < by_amount[0.05]["steps"] <= by_amount[0.05]["of_steps"]
    assert by_amount[0.05]["of_steps"] > 10

    # What fits is known: it is not measured for another seed.
    bench.start("steps=[]", "minutes=[0.05]", "seeds=[2]")
    assert bench.take_calls() == ["lerobot-train", "lerobot-eval"]


def test_the_clock_ends_a_training_that_became_slower(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.trainings.Runner._rate", lambda *_: 1000.0)
    monkeypatch.setenv("STAND_IN_STEP_S", "0.001")
    monkeypatch.setattr("benchmarks.quality.trainings.SAVES_IN_TIME", 1000)
    bench.start("steps=[]", "minutes=[0.02]")
    (result,) = bench.results.values()
    assert result["training"]["out_of_time"] is True
    assert result["training"]["steps"] < result["training"]["of_steps"] == 1164
    assert result["training"]["seconds"] <= 1.2


def test_a_training_that_became_faster_says_that_it_did_not_fill_its_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.quality.trainings.Runner._rate", lambda *_: 1.0)
    bench.start("steps=[]", "minutes=[0.1]")
    assert "of 0.1 minutes: faster than measured before. To fill the time, remove " in capsys.readouterr().out
    (result,) = bench.results.values()
    assert result["training"]["out_of_time"] is False and result["training"]["steps"] == 5


def test_an_evaluation_of_other_episodes_than_asked_for_is_no_result(bench: Bench) -> None:
    lines = (bench.bin / "lerobot-eval").read_text()
    (bench.bin / "lerobot-eval").write_text(lines.replace('int(options["eval.n_episodes"])', "5"))
    with pytest.raises(experiments.ERRORS, match=r"eval_info.json has 5 rewards and 5 successes; wanted 2"):
        bench.start("steps=[4]")
    assert not bench.results


def test_encoders_that_cannot_be_had_are_named_before_others_train(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    both = "arms=[theia_act@random-tiny,theia_act@{}]"
    with pytest.raises(
        SettingsError, match=f"arm theia_act@{empty}: no config.json and no model.safetensors"
    ):
        bench.start(both.format(empty))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(experiments, "HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match=r"arm theia_act@me/theia: could not get .* put HF_HUB_OFFLINE=0"):
        bench.start(both.format("me/theia"))
    assert bench.take_calls() == []


def test_commands_and_status_run_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.start("action=commands", "arms=[theia_act@random-tiny,diffusion_state]")
    printed = capsys.readouterr().out
    for name in ("record.py", "precompute", "edit-dataset", "train --policy.type=theia_act", "lerobot-eval"):
        assert name in printed
    bench.start("action=status")
    assert "0 of 2 done, time unknown" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="action='stauts'; choose one of run, status, commands"):
        bench.start("action=stauts")
    assert bench.take_calls() == [] and not (bench.root / "work").exists()


# --- processes


def test_stopping_a_command_ends_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TICK_S", 0.01)
    script = "sleep 600 & echo child $!; wait"
    seen: list[str] = []

    def watch(printed: str) -> bool:
        seen.append(printed)
        return "child" in "".join(seen) and "\n" in "".join(seen)

    assert run(["bash", "-c", script], tmp_path / "log", environment={}, cwd=tmp_path, watch=watch)
    assert is_gone(int("".join(seen).split()[1]))


def test_what_was_printed_counts_however_a_command_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TICK_S", 0.01)
    marker = tmp_path / "printed"
    seen: list[str] = []

    def watch(printed: str) -> bool:
        seen.append(printed)
        if len(seen) == 1:
            while not marker.exists():
                time.sleep(0.01)
            raise KeyboardInterrupt
        return False

    script = f"sleep 0.1; echo checkpoint; touch {marker}; sleep 600"
    with pytest.raises(KeyboardInterrupt):
        run(["bash", "-c", script], tmp_path / "log", environment={}, cwd=tmp_path, watch=watch)
    assert "".join(seen) == "checkpoint\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_end_the_reading_of_what_was_printed(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TICK_S", 0.01)
    counted: list[str] = []

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def watch(printed: str) -> bool:
        if printed:
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # a handler runs between two instructions
            counted.append(printed)
        return False

    before = signal.signal(number, stop)
    try:
        with pytest.raises(SystemExit) as ended:
            run(
                ["bash", "-c", "echo checkpoint; exec sleep 600"],
                tmp_path / "log",
                environment={},
                cwd=tmp_path,
                watch=watch,
            )
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number and counted == ["checkpoint\n"]


def is_gone(pid: int) -> bool:
    """Within a few seconds; a dead process that nobody has waited for is gone, too."""
    for _ in range(300):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_one_run_at_a_time_even_when_the_runner_is_gone(tmp_path: Path) -> None:
    with only_run(tmp_path) as lock:
        with (
            pytest.raises(InUseError, match=rf"in use by process {os.getpid()}, .*work=\.\.\."),
            only_run(tmp_path),
        ):
            pass
        left = subprocess.Popen(["sleep", "600"], pass_fds=(lock,), start_new_session=True)
    try:
        with pytest.raises(InUseError), only_run(tmp_path):
            pass
    finally:
        left.kill()
        left.wait()
    with only_run(tmp_path):
        pass


# --- with the real commands


@pytest.mark.slow
@pytest.mark.parametrize(
    "arms",
    [
        ["theia_act@random-tiny"],
        pytest.param(["diffusion_state", "theia_act@random-tiny"], marks=pytest.mark.exhaustive),
    ],
)
def test_real_commands_interrupted_resumed_and_done(arms: list[str], tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="needs the extra [pusht]")
    script = str(commands.CHECKOUT / "benchmarks" / "quality" / "run.py")
    command = [
        sys.executable,
        script,
        "question=quick",
        f"arms=[{','.join(arms)}]",
        "steps=[40]",
        f"work={tmp_path}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}

    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while first.poll() is None and not any(tmp_path.glob("trainings/*/run/checkpoints/last")):
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 128 + signal.SIGTERM, output
    assert not list(tmp_path.glob("results/*/quality/*.json"))

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "goes on after step " in done.stdout
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("results/*/quality/*.json")}
    assert [name.split("--")[2] for name in sorted(results)] == arms
    for result in results.values():
        evaluation = result["evaluation"]
        assert evaluation["episodes"] == len(evaluation["max_rewards"]) == len(evaluation["successes"]) == 2
        assert evaluation["seeds"] == [100000, 100001]
        assert all(0 <= each <= 1 for each in evaluation["max_rewards"])
        assert result["training"]["steps"] == 40 and result["training"]["seconds"] > 0
        assert result["training"]["loss"] > 0
        assert sum(map(len, result["videos"].values())) == 2
    assert sorted(each["training"]["interruptions"] for each in results.values()) == [0, 1][-len(arms) :]
    assert len(list(tmp_path.glob("videos/*/*.mp4"))) == 2 * len(arms)

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0 and again.stdout.count(": done\n") == len(arms)
