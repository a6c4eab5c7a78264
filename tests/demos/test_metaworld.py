"""Meta-World recording: the expert's successes, seen as an evaluation will see them; clear errors without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "mujoco", reason="needs the extra [metaworld]: pip install 'lerobot_policy_theia[metaworld]'"
)
pytest.importorskip(
    "metaworld", reason="needs the extra [metaworld]: pip install 'lerobot_policy_theia[metaworld]'"
)

from lerobot_theia.demos.metaworld import _Attempt, _shrink, _successes, metaworld_features
from lerobot_theia.demos.recording import ORIGIN, RANDOMIZATION, Episode, RecordingError

PROBE = """
from lerobot_theia.demos.metaworld import _environment, _look_up, _reset
env = _environment(_look_up("drawer-open")[0])
_reset(env, 0)
env.close()
"""


def run(code: str, mujoco_gl: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with MUJOCO_GL set from the start: MuJoCo reads it once, when it is imported."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    }
    if mujoco_gl is not None:
        environment["MUJOCO_GL"] = mujoco_gl
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=600
    )


@pytest.fixture(scope="module")
def renderer() -> str:
    """A value of MUJOCO_GL that renders here."""
    choices = dict.fromkeys([os.environ.get("MUJOCO_GL", "osmesa"), "osmesa", "egl"])
    tried = {choice: run(PROBE, choice) for choice in choices}
    for choice, done in tried.items():
        if done.returncode == 0:
            return choice
    pytest.skip(f"no rendering here: {[done.stderr.strip()[-200:] for done in tried.values()]}")


@pytest.mark.slow
def test_two_episodes(renderer: str, tmp_path: Path) -> None:
    from lerobot.datasets import LeRobotDataset

    root = tmp_path / "drawer"
    code = "import sys; from lerobot_theia.demos.metaworld import main; sys.exit(main(sys.argv[1:]))"
    options = ["--episodes", "2", "--workers", "0", "--image-size", "128", "--environment-state"]
    done = run(code, renderer, "--task", "metaworld-drawer-open", "--root", str(root), *options)
    assert done.returncode == 0, done.stderr
    assert "2 episodes" in done.stdout

    dataset = LeRobotDataset("local/metaworld_drawer-open", root=root, video_backend="pyav")
    assert dataset.num_episodes == 2
    assert dataset.fps == 80
    assert list(dataset.meta.tasks.index) == ["Open a drawer"]
    expected = metaworld_features(image_size=128, environment_state=True)
    for name, feature in expected.items():
        assert tuple(dataset.meta.features[name]["shape"]) == feature["shape"]
    table = dataset.hf_dataset.with_format("numpy")
    success = np.asarray(table["next.success"])
    assert list(np.flatnonzero(success)) == [stop - 1 for stop in dataset.meta.episodes["dataset_to_index"]]
    actions = np.stack(table["action"])
    assert np.abs(actions).max() <= 1
    assert np.stack(table["observation.environment_state"]).shape == (len(dataset), 39)
    # The scene moves, and the two starts differ.
    first, last = dataset[0]["observation.image"], dataset[len(dataset) - 1]["observation.image"]
    assert first.std() > 0.05
    assert (first - last).abs().mean() > 0.01
    states = np.stack(table["observation.environment_state"])
    one, other = (int(start) for start in dataset.meta.episodes["dataset_from_index"])
    assert not np.array_equal(states[one], states[other])
    # The full state is of the same moment as what the policy is told of it: the gripper's place and opening.
    np.testing.assert_allclose(states[:, :4], np.stack(table["observation.state"]), atol=1e-6)
    assert np.abs(np.diff(states[:, :3], axis=0)).max() > 0.001
    assert json.loads((root / ORIGIN).read_text()) == {"task": "drawer-open-v3", "first_seed": 0}
    code = "import sys; from lerobot_theia.demos.metaworld import main; sys.exit(main(sys.argv[1:]))"
    more = ["--task", "drawer-open", "--root", str(root), *options, "--if-missing"]
    assert run(code, renderer, *more).returncode == 0
    others = run(code, renderer, *more, "--seed", "7")
    assert others.returncode == 1 and "'first_seed': 0} (expected" in others.stderr


RECORD_BOTH = """
import sys
from pathlib import Path
from lerobot_theia.demos.metaworld import record_metaworld
root = Path(sys.argv[1])
options = dict(num_episodes=2, seed=5, image_size=64, use_videos=False, environment_state=True, progress=False)
record_metaworld("drawer-open", root / "plain", **options)
record_metaworld("drawer-open", root / "changed", randomize=["texture", "light", "camera"], **options)
record_metaworld("drawer-open", root / "again", randomize=["texture"], **options | {"num_episodes": 1, "seed": 6})

import numpy as np
from benchmarks.quality.envs.metaworld_randomized import MetaworldRandomizedEnv
envs = MetaworldRandomizedEnv(task="drawer-open-v3").create_envs(2)["metaworld_randomized"][0]
looks = [envs.reset(seed=seeds)[0]["pixels"].copy() for seeds in ([5, 6], [5, 6], [None, None])]
np.save(root / "evaluation.npy", np.stack(looks))
"""


@pytest.mark.slow
def test_randomised_scenes_look_different_and_go_as_ever(renderer: str, tmp_path: Path) -> None:
    from lerobot.datasets import LeRobotDataset

    done = run(RECORD_BOTH, renderer, str(tmp_path))
    assert done.returncode == 0, done.stderr
    plain, changed, again = (
        LeRobotDataset("local/metaworld_drawer-open", root=tmp_path / name, video_backend="pyav")
        for name in ("plain", "changed", "again")
    )
    told = json.loads((tmp_path / "changed" / RANDOMIZATION).read_text())
    assert told["randomize"] == ["light", "camera", "texture"]
    assert [(each["episode_index"], each["seed"]) for each in told["episodes"]] == [(0, 5), (1, 6)]
    for kind in told["randomize"]:
        assert told["episodes"][0][kind] != told["episodes"][1][kind]
    (alone,) = json.loads((tmp_path / "again" / RANDOMIZATION).read_text())["episodes"]
    assert alone["texture"] == told["episodes"][1]["texture"], "a function of the episode's seed"
    assert not (tmp_path / "plain" / RANDOMIZATION).exists()

    columns = ("action", "observation.state", "observation.environment_state", "next.success")
    tables = [dataset.hf_dataset.with_format("numpy") for dataset in (plain, changed)]
    for name in columns:
        first, second = (np.stack(table[name]) for table in tables)
        assert np.array_equal(first, second), name
    for start in plain.meta.episodes["dataset_from_index"]:
        same, other = (dataset[start]["observation.image"] for dataset in (plain, changed))
        assert (same - other).abs().mean() > 0.02
        assert other.std() > 0.05
    starts = changed.meta.episodes["dataset_from_index"]
    assert (
        changed[starts[0]]["observation.image"] - changed[starts[1]]["observation.image"]
    ).abs().mean() > 0.02
    assert len(again) == changed.meta.episodes["length"][1]

    looks = np.load(
        tmp_path / "evaluation.npy"
    )  # (3, 2, 480, 480, 3): two resets with seeds 5 and 6, then one without
    recorded = [changed[start]["observation.image"].permute(1, 2, 0).numpy() for start in starts]
    for seen in looks:
        distances = np.array(
            [[np.abs(_shrink(each, 64) / 255 - own).mean() for own in recorded] for each in seen]
        )
        # Where the drawer stands is not yet seen in the first picture.
        assert np.diag(distances).max() < 0.02 < distances[[0, 1], [1, 0]].min(), distances


@pytest.mark.slow
@pytest.mark.parametrize("setting", [None, "no_such_library"])
def test_no_rendering_is_said_clearly(setting: str | None, tmp_path: Path) -> None:
    if setting is None and sys.platform != "linux":
        pytest.skip("only Linux needs MUJOCO_GL")
    code = "import sys; from lerobot_theia.demos.metaworld import main; sys.exit(main(sys.argv[1:]))"
    root = tmp_path / "datasets" / "drawer"
    options = ["--episodes", "1", "--workers", "0"]
    done = run(code, setting, "--task", "drawer-open", "--root", str(root), *options)
    assert done.returncode == 1, done.stderr
    for word in ("cannot render", "MUJOCO_GL=osmesa", "apt-get install libosmesa6", "MUJOCO_GL=egl"):
        assert word in done.stderr
    assert not root.parent.exists() or list(root.parent.iterdir()) == []


def attempts(outcomes: str):
    """s = success, f = failure; the seed is the position."""
    episode = Episode({"action": np.zeros((1, 4), dtype=np.float32)}, "task")
    yield from (_Attempt(seed, episode if outcome == "s" else None) for seed, outcome in enumerate(outcomes))


def test_failed_episodes_are_left_out_and_counted() -> None:
    failed: list[int] = []
    assert len(list(_successes("drawer-open-v3", attempts("sffss"), 2, 5, failed))) == 2
    assert failed == [1, 2]


def test_too_many_failures_are_an_error() -> None:
    with pytest.raises(RecordingError, match=r"failed in 3 of 4 episodes.*max_failures=2.*1 of 9"):
        list(_successes("drawer-open-v3", attempts("sfff"), 9, 2, []))
