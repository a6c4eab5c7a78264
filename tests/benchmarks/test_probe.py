"""The probe: what can be read off features is found, what cannot is not, and of what is told nothing was seen before."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from lerobot_theia.encoder.pictures import principal_colours

CHECKOUT = Path(__file__).resolve().parents[2]
FIT, UNSEEN, FEATURES = 400, 200, 12


@pytest.fixture
def ridge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    import ridge

    return ridge


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestRegression:
    def test_a_linear_map_is_found(self, ridge: ModuleType) -> None:
        units = torch.logspace(-1, 1, FEATURES, dtype=torch.float64)
        features = randn(FIT + UNSEEN, FEATURES) * units + 5
        truth = (features / units) @ randn(FEATURES, 2, seed=1) + 7
        predictions, _ = ridge.regress(features[:FIT], {"pose": truth[:FIT]}, features[FIT:])
        assert ridge.r_squared(truth[FIT:], predictions["pose"]) > 1 - 1e-6

    def test_a_linear_map_with_noise_is_found_as_far_as_it_is_there(self, ridge: ModuleType) -> None:
        features = randn(FIT + UNSEEN, FEATURES)
        signal = features @ randn(FEATURES, 1, seed=1)
        truth = signal + signal.std() * randn(FIT + UNSEEN, 1, seed=2)  # as much noise as signal
        predictions, _ = ridge.regress(features[:FIT], {"pose": truth[:FIT]}, features[FIT:])
        assert ridge.r_squared(truth[FIT:], predictions["pose"]) == pytest.approx(0.5, abs=0.12)

    @pytest.mark.parametrize("num_features", [FEATURES, 2 * FIT])
    def test_in_noise_nothing_is_found_however_many_features(
        self, ridge: ModuleType, num_features: int
    ) -> None:
        features, truth = randn(FIT + UNSEEN, num_features), randn(FIT + UNSEEN, 2, seed=1)
        predictions, strengths = ridge.regress(features[:FIT], {"pose": truth[:FIT]}, features[FIT:])
        assert ridge.r_squared(truth[FIT:], predictions["pose"]) == pytest.approx(0, abs=0.1)
        assert strengths["pose"] >= 0.1, "held-out rows ask for a strong penalty"

    def test_it_solves_the_normal_equations(self, ridge: ModuleType) -> None:
        features, targets, unseen = randn(50, 4), randn(50, 2, seed=1), randn(7, 4, seed=2)
        mean, std = features.mean(0), features.std(0, correction=0)
        x, y = (features - mean) / std, targets - targets.mean(0)
        weights = torch.linalg.solve(x.T @ x + 0.3 * 50 * torch.eye(4, dtype=x.dtype), x.T @ y)
        wanted = (unseen - mean) / std @ weights + targets.mean(0)
        torch.testing.assert_close(ridge.Ridge(features).predict(targets, 0.3, unseen), wanted)

    def test_each_target_has_its_own_penalty_and_a_dead_feature_does_no_harm(self, ridge: ModuleType) -> None:
        features = randn(FIT + UNSEEN, FEATURES)
        features[:, 0] = 3
        truth = features @ randn(FEATURES, 1, seed=1)
        known = {"signal": truth[:FIT], "noise": randn(FIT, 1, seed=2)}
        predictions, strengths = ridge.regress(features[:FIT], known, features[FIT:])
        assert strengths["signal"] < strengths["noise"]
        assert ridge.r_squared(truth[FIT:], predictions["signal"]) > 1 - 1e-6

    def test_a_feature_that_wakes_up_in_unseen_rows_does_no_harm(self, ridge: ModuleType) -> None:
        features = randn(FIT + UNSEEN, FEATURES)
        features[:FIT, 0] *= 1e-6
        truth = features[:, 1:] @ randn(FEATURES - 1, 1, seed=1) + 0.1 * randn(FIT + UNSEEN, 1, seed=2)
        predictions, _ = ridge.regress(features[:FIT], {"pose": truth[:FIT]}, features[FIT:])
        assert ridge.r_squared(truth[FIT:], predictions["pose"]) > 0.98

    def test_r_squared_is_one_zero_and_below(self, ridge: ModuleType) -> None:
        truth = randn(50, 3)
        assert ridge.r_squared(truth, truth) == 1
        assert ridge.r_squared(truth, truth.mean(0).expand_as(truth)) == pytest.approx(0)
        assert ridge.r_squared(truth, -truth) < 0


def test_the_page_has_a_table_for_each_suite_and_a_column_for_each_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    import probe_report

    values = {
        "pusht: block angle, pixels, 14x14": -0.004,
        "pusht: block angle, mine": 0.75,
        "metaworld push: goal position, pixels, 14x14": 0.5,
        "metaworld push: goal position, mine": 1.0,
    }
    settings = {"encoders": {"mine": "mine 192-d"}, "pusht": "about PushT", "metaworld push": "about push"}
    result = {
        "date": "2026-01-01",
        "settings": settings,
        "notes": ["a note"],
        "arms": {name: {"median": value} for name, value in values.items()},
    }
    lines = probe_report.section("machine", result)
    assert lines.count("| | pixels, 14x14 | mine |") == 2
    assert "| block angle | 0.00 | 0.75 |" in lines
    assert "| goal position | 0.50 | 1.00 |" in lines
    assert {"**pusht**: about PushT.", "**metaworld push**: about push.", "- a note"} <= set(lines)


class TestPictures:
    def test_tokens_alike_have_one_colour_in_all_frames(self) -> None:
        kinds = torch.randint(0, 3, (4, 49), generator=torch.Generator().manual_seed(0))
        colours = principal_colours(randn(3, 20)[kinds].float())
        assert colours.shape == (4, 7, 7, 3)
        assert colours.dtype == torch.uint8
        of_kind = [colours[kinds.view(4, 7, 7) == kind].unique(dim=0) for kind in range(3)]
        assert [len(each) for each in of_kind] == [1, 1, 1]
        assert len(torch.cat(of_kind).unique(dim=0)) == 3

    def test_the_sign_of_a_component_is_fixed(self) -> None:
        tokens = randn(2, 49, 20).float()
        assert torch.equal(principal_colours(tokens), principal_colours(tokens.double()))


@pytest.mark.slow
class TestCommand:
    def probe(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "benchmarks/probe.py", "--quick", *arguments]
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False)

    def test_every_suite_of_pusht_beside_pixels_with_a_picture(self, tmp_path: Path) -> None:
        pytest.importorskip("gym_pusht")
        picture = tmp_path / "here" / "tokens.png"
        done = self.probe(
            "--suites=pusht,pusht-goals",
            "--frames=60",
            f"--work={tmp_path}",
            f"--out={tmp_path}",
            f"--picture={picture}",
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(next(tmp_path.glob("*/probe.json")).read_text())
        quantities = ["agent position", "block position", "block angle"]
        with_goals = [*quantities, "goal position", "goal angle"]
        assert set(result["arms"]) == {
            f"{suite}: {quantity}, {features}"
            for suite, known in (("pusht", quantities), ("pusht-goals", with_goals))
            for quantity in known
            for features in ("pixels, 14x14", "theia-tiny-sim", "random-tiny")
        }
        assert all(arm["values"][0] <= 1 for arm in result["arms"].values())
        assert "UNTRAINED" in result["settings"]["encoders"]["random-tiny"]
        with Image.open(picture) as image:
            assert image.size == (6 * 112, 3 * (112 + 14))
            assert len(image.convert("L").getcolors()) > 50

    @pytest.mark.parametrize(
        ("suite", "needs", "things"),
        [
            ("metaworld drawer-open", "metaworld", {"gripper position", "object position"}),
            (
                "aloha transfer-cube",
                "gym_aloha",
                {"left gripper position", "right gripper position", "box position"},
            ),
        ],
    )
    def test_scenes_of_mujoco(self, suite: str, needs: str, things: set[str], tmp_path: Path) -> None:
        pytest.importorskip(needs)
        done = self.probe(
            f"--suites={suite.split()[0]}", "--tasks=drawer-open", "--frames=20", "--encoders=random-tiny",
            f"--work={tmp_path}", f"--out={tmp_path}",
        )  # fmt: skip
        if "cannot render" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stderr
        result = json.loads(next(tmp_path.glob("*/probe.json")).read_text())
        assert {f"{suite}: {thing}, random-tiny" for thing in things} <= set(result["arms"])
        assert "20 frames to fit, 5 unseen" in result["settings"][suite]

    def test_frames_and_features_are_kept_for_the_next_run(self, tmp_path: Path) -> None:
        pytest.importorskip("gym_pusht")
        arms, made = [], []
        for _ in range(2):
            done = self.probe("--suites=pusht", "--encoders=random-tiny", f"--work={tmp_path}")
            assert done.returncode == 0, done.stderr
            arms.append(json.loads(next(tmp_path.glob("results/*/probe.json")).read_text())["arms"])
            made.append({path: path.stat().st_mtime_ns for path in (tmp_path / "probe").iterdir()})
        assert arms[0] == arms[1]
        assert made[0] == made[1]
        assert len(made[0]) == 2

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("--suites=libero", "libero is not known; choose from pusht,pusht-goals,metaworld,aloha"),
            ("--frames=3", "at least 20"),
            ("--encoders=random-tiny,random_tiny", "two that are called random-tiny"),
        ],
    )
    def test_what_cannot_be_is_refused_at_once(self, flag: str, message: str) -> None:
        done = self.probe(flag)
        assert done.returncode == 1
        assert message in done.stderr
