"""PushT recording: what is recorded is what the simulator shows, and a failure leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="needs the extra [pusht]: pip install 'lerobot_policy_theia[pusht]'")

from lerobot.datasets import LeRobotDataset

from lerobot_theia.demos.pusht import (
    DEFAULT_ACTIONS,
    TASK,
    ExpertActions,
    _environment,
    main,
    pusht_features,
    record_pusht,
)
from lerobot_theia.demos.recording import RANDOMIZATION, RecordingError

CHECKOUT = Path(__file__).resolve().parents[2]
EPISODES = 2
BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}


@pytest.fixture(scope="module")
def video_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pusht") / "video"
    record_pusht(root, num_episodes=EPISODES, progress=False)
    return root


@pytest.fixture(scope="module")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pusht") / "images"
    record_pusht(root, num_episodes=EPISODES, use_videos=False, environment_state=True, progress=False)
    return root


def load(root: Path) -> LeRobotDataset:
    return LeRobotDataset("local/pusht_expert", root=root, video_backend="pyav")


def simulated(episode: int, frame: int) -> dict[str, np.ndarray]:
    """What the simulator shows at a frame of an episode, as `_replay` has no part in it."""
    expert = ExpertActions.load(DEFAULT_ACTIONS)
    env = _environment()
    obs, _ = env.reset(seed=expert.seeds[episode])
    for action in expert.actions[episode][:frame]:
        obs = env.step(action)[0]
    return obs


def to_uint8(image) -> np.ndarray:
    """(3, H, W) float in [0, 1] to (H, W, 3) uint8."""
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def corners(episode: int, frame: int) -> np.ndarray:
    """(16,) Of the block, as the simulator knows them."""
    simulated(episode, frame)
    pusht = _environment().unwrapped
    return pusht.get_keypoints(pusht._block_shapes).flatten().astype(np.float32)


def test_features_are_those_of_lerobot_pusht(video_root: Path) -> None:
    meta = load(video_root).meta
    assert set(meta.features) == BOOKKEEPING | {
        "observation.image",
        "observation.state",
        "action",
        "next.reward",
        "next.done",
        "next.success",
    }
    image = meta.features["observation.image"]
    assert (image["dtype"], tuple(image["shape"])) == ("video", (96, 96, 3))
    assert image["names"] == ["height", "width", "channel"]
    assert image["info"]["video.codec"] == "av1"
    assert meta.features["action"]["names"] == {"motors": ["motor_0", "motor_1"]}
    assert meta.fps == 10
    assert list(meta.tasks.index) == [TASK]


def test_counts_and_outcome(video_root: Path) -> None:
    dataset = load(video_root)
    lengths = [len(actions) for actions in ExpertActions.load(DEFAULT_ACTIONS).first(EPISODES).actions]
    assert dataset.num_episodes == EPISODES
    assert list(dataset.meta.episodes["length"]) == lengths
    assert len(dataset) == sum(lengths)
    table = dataset.hf_dataset.with_format("numpy")
    last = np.zeros(sum(lengths), dtype=bool)
    last[np.cumsum(lengths) - 1] = True
    np.testing.assert_array_equal(table["next.success"], last)
    np.testing.assert_array_equal(table["next.done"], last)
    assert (np.asarray(table["next.reward"])[last] == 1).all()
    actions = np.concatenate(ExpertActions.load(DEFAULT_ACTIONS).first(EPISODES).actions)
    np.testing.assert_array_equal(np.stack(table["action"]), actions)


@pytest.mark.parametrize(("episode", "frame"), [(0, 0), (0, 40), (1, 0)])
def test_frame_holds_the_observation_before_its_action(
    video_root: Path, image_root: Path, episode: int, frame: int
) -> None:
    video, images = load(video_root), load(image_root)
    index = video.meta.episodes["dataset_from_index"][episode] + frame
    shown = simulated(episode, frame)
    np.testing.assert_array_equal(to_uint8(images[index]["observation.image"]), shown["pixels"])
    np.testing.assert_array_equal(video[index]["observation.state"], shown["agent_pos"].astype(np.float32))
    error = to_uint8(video[index]["observation.image"]).astype(float) - shown["pixels"]
    psnr = 10 * np.log10(255**2 / (error**2).mean())
    assert psnr > 30, f"{psnr:.1f} dB"  # another frame of the episode has about 20


def test_environment_state_is_recorded_on_request(image_root: Path) -> None:
    """That before the action, as pictures are: at frame 40 the block moves."""
    dataset = load(image_root)
    before = corners(0, 39)
    for episode, frame in ((0, 0), (0, 40), (1, 0)):
        index = dataset.meta.episodes["dataset_from_index"][episode] + frame
        recorded = dataset[index]["observation.environment_state"]
        np.testing.assert_array_equal(recorded, corners(episode, frame))
    assert not np.array_equal(before, corners(0, 40)) and not np.array_equal(corners(0, 40), corners(0, 41))
    assert dataset.meta.features["observation.image"]["dtype"] == "image"


@pytest.mark.slow
def test_workers_record_the_same(image_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "workers"
    record_pusht(
        root, num_episodes=EPISODES, use_videos=False, environment_state=True, num_workers=2, progress=False
    )
    for column in ("observation.image", "observation.state", "next.reward"):
        here, there = (load(r).hf_dataset.with_format("numpy")[column][:] for r in (image_root, root))
        np.testing.assert_array_equal(np.stack(here), np.stack(there))


def tampered_actions(path: Path, episode: int) -> Path:
    """An action file whose given episode pushes the other way halfway through."""
    with np.load(DEFAULT_ACTIONS) as file:
        seed, length, action = file["seed"][:3], file["length"][:3], file["action"].copy()
    start, stop = length[:episode].sum(), length[: episode + 1].sum()
    action[(start + stop) // 2 : stop] = 512 - action[(start + stop) // 2 : stop]
    np.savez(path, seed=seed, length=length, action=action[: length.sum()])
    return path


def test_an_episode_that_does_not_reproduce_leaves_nothing(tmp_path: Path) -> None:
    path = tampered_actions(tmp_path / "tampered.npz", episode=1)
    root = tmp_path / "datasets" / "pusht"
    seed = ExpertActions.load(path).seeds[1]
    with pytest.raises(
        RecordingError, match=rf"episode 1 \(seed {seed}\).*coverage is 0\.\d+.*gym-pusht 0\."
    ):
        record_pusht(root, actions_path=path, progress=False)
    assert list(root.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.full((3, 2), np.nan, dtype=np.float32)}, "3 of 3 actions lie outside"),
        ({"length": np.array([4])}, "contradicts itself"),
        ({"seed": None}, "lacks"),
        (
            {"seed": np.array([100_000])},
            "would go up to 100000, and from 100000 on they are those of evaluations",
        ),
    ],
)
def test_bad_action_files(tmp_path: Path, change: dict, message: str) -> None:
    good = {"seed": np.array([1]), "length": np.array([3]), "action": np.zeros((3, 2), dtype=np.float32)}
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in {**good, **change}.items() if v is not None})
    with pytest.raises(RecordingError, match=message):
        record_pusht(tmp_path / "out", actions_path=tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [None, b"no archive", b"PK\x03\x04 cut off"])
def test_what_is_no_action_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError, match=rf"{path} cannot be read as an action file"):
        record_pusht(tmp_path / "out", actions_path=path)


def test_a_dataset_of_randomised_scenes_is_not_taken_for_a_plain_one(
    video_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(video_root, root)
    told = {"randomize": ["light"], "episodes": [{"episode_index": k, "seed": k} for k in range(EPISODES)]}
    (root / RANDOMIZATION).write_text(json.dumps(told))
    with pytest.raises(RecordingError, match=r"randomized: \['light'\] \(expected \[\]\)"):
        record_pusht(root, num_episodes=EPISODES, if_missing=True)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("meta/episodes", r"episodes in meta/: 0 \(expected 2\)"),
        ("meta/stats.json", r"meta/stats.json: False \(expected True\)"),
        ("meta/recorded_from.json", r"meta/recorded_from.json: None \(expected \{'actions_sha256': "),
    ],
)
def test_a_dataset_that_is_not_whole_is_not_kept(
    video_root: Path, tmp_path: Path, lost: str, message: str
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(video_root, root)
    shutil.rmtree(root / lost) if (root / lost).is_dir() else (root / lost).unlink()
    with pytest.raises(RecordingError, match=message):
        record_pusht(root, num_episodes=EPISODES, if_missing=True)


@pytest.mark.parametrize(
    "damaged", ["meta/info.json", "meta/tasks.parquet", "data/chunk-000/file-000.parquet"]
)
def test_a_damaged_dataset_is_not_kept(video_root: Path, tmp_path: Path, damaged: str) -> None:
    root = tmp_path / "copy"
    shutil.copytree(video_root, root)
    (root / damaged).write_bytes(b"{")
    with pytest.raises(RecordingError, match=rf"{root} is damaged \(.*--overwrite"):
        record_pusht(root, num_episodes=EPISODES, if_missing=True)


def test_a_signal_between_the_old_and_the_new_dataset_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pusht"
    record_pusht(root, num_episodes=1, use_videos=False, progress=False)
    rename = Path.rename

    def stopped(path: Path, target: Path) -> None:
        rename(path, target)
        if path == root:  # it is out of the way, and the new one not there yet
            raise SystemExit(128 + signal.SIGTERM)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(SystemExit):
        record_pusht(root, num_episodes=2, use_videos=False, overwrite=True, progress=False)
    monkeypatch.undo()
    assert load(root).num_episodes == 1


def test_demonstrations_of_other_actions_are_not_kept(video_root: Path, tmp_path: Path) -> None:
    """As many and as long, but others."""
    with np.load(DEFAULT_ACTIONS) as file:
        first = {name: file[name] for name in ("seed", "length", "action")}
    np.savez(tmp_path / "others.npz", **first | {"seed": first["seed"] + 1})
    with pytest.raises(RecordingError, match=r"recorded_from.json: .*actions_sha256"):
        record_pusht(video_root, num_episodes=EPISODES, if_missing=True, actions_path=tmp_path / "others.npz")


def test_a_recorder_that_is_ended_leaves_nothing_and_nobody(tmp_path: Path) -> None:
    root = tmp_path / "datasets" / "pusht"
    command = [sys.executable, "scripts/record_pusht_demos.py", f"--root={root}", "--workers=2"]
    process = subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = ""
        while "episode 1/260" not in said:
            read = process.stderr.read(1)
            assert read, said
            said += read
        process.terminate()
        process.stderr.read()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        assert list(root.parent.iterdir()) == []
        deadline = time.monotonic() + 30
        while (left := workers_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def workers_of(session: int) -> list[int]:
    """Processes of a session that are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def test_existing_root(video_root: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="--overwrite"):
        record_pusht(video_root, num_episodes=EPISODES)
    with pytest.raises(RecordingError, match=r"episodes: 2 \(expected 1\)"):
        record_pusht(video_root, num_episodes=1, if_missing=True)
    there = record_pusht(video_root, num_episodes=EPISODES, if_missing=True)
    assert (there.num_episodes, there.seconds) == (EPISODES, 0)
    (tmp_path / "mine.txt").write_text("not a dataset")
    with pytest.raises(RecordingError, match="not a LeRobot dataset"):
        record_pusht(tmp_path, num_episodes=1, overwrite=True)
    assert (tmp_path / "mine.txt").exists()


def test_overwrite_replaces_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    root = tmp_path / "pusht"
    record_pusht(root, num_episodes=1, use_videos=False, progress=False)
    bad = tampered_actions(tmp_path / "tampered.npz", episode=0)
    with pytest.raises(RecordingError, match="does not reproduce"):
        record_pusht(root, actions_path=bad, use_videos=False, overwrite=True, progress=False)
    assert load(root).num_episodes == 1
    record_pusht(root, num_episodes=2, use_videos=False, overwrite=True, progress=False)
    assert load(root).num_episodes == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pusht", "tampered.npz"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--root", str(tmp_path / "out"), "--episodes", "1", "--workers", "0", "--images"]
    assert main(command) == 0
    frames = len(ExpertActions.load(DEFAULT_ACTIONS).actions[0])
    assert f"1 episodes, {frames} frames" in capsys.readouterr().out
    assert main(command) == 1
    assert "--if-missing" in capsys.readouterr().err
    assert main([*command, "--if-missing"]) == 0
    assert main(["--root", str(tmp_path / "more"), "--episodes", "9999"]) == 1
    assert "1 to 260" in capsys.readouterr().err
    assert main(["--root", str(tmp_path / "more"), "--episodes", "1", "--workers", "-1"]) == 1
    assert "-1 workers: 0 runs everything in this process" in capsys.readouterr().err


def test_importing_imports_no_simulator() -> None:
    code = (
        "import json, sys, lerobot_theia.demos.pusht, lerobot_theia.demos.metaworld;"
        "print(json.dumps([m for m in ('gymnasium', 'gym_pusht', 'pygame', 'mujoco', 'metaworld') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The package above may import LeRobot, and that gymnasium; a simulator nobody may.
    assert set(json.loads(done.stdout)) <= {"gymnasium"}


def test_feature_order_and_image_option() -> None:
    assert next(iter(pusht_features())) == "observation.image"
    assert pusht_features(use_videos=False)["observation.image"]["dtype"] == "image"
