"""The quality benchmark's parts: intervals, arms and their commands, names, budgets, what is read off a log, the report."""

import dataclasses
import functools
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.quality import arms, clock, commands
from benchmarks.quality.aims import aims
from benchmarks.quality.arms import ArmError, known_arms, load_arm
from benchmarks.quality.checkpoints import checkpoint_step, stride
from benchmarks.quality.clock import Clock, Rate, Record
from benchmarks.quality.evaluations import summary
from benchmarks.quality.gaps import CONFIGS, beyond, gaps
from benchmarks.quality.intervals import bootstrap_mean, independent, overlap, wilson
from benchmarks.quality.page import write
from benchmarks.quality.places import Work
from benchmarks.quality.plan import make_plan
from benchmarks.quality.plots import by_demonstrations, lines
from benchmarks.quality.results import Results
from benchmarks.quality.rows import rows
from benchmarks.quality.settings import Budget, Scene, SettingsError, Training, digest, slug
from benchmarks.quality.status import status
from lerobot_theia.cache.files import sha256_of_file
from lerobot_theia.demos import metaworld, pusht

SUITES = ("pusht", "metaworld")


def settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        container = OmegaConf.to_container(compose("run", overrides=list(overrides)), resolve=True)
    assert isinstance(container, dict)
    return {str(name): value for name, value in container.items()}


def plan(*overrides: str) -> list[Training]:
    return make_plan(settings(*overrides), "cpu")


# --- intervals


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)  # of Newcombe's comparison of methods, Statistics in Medicine 17 (1998), table I
def test_wilson_interval_is_the_published_one(successes: int, episodes: int, low: float, high: float) -> None:
    assert wilson(successes, episodes) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_mirrors_failures_and_refuses_nonsense() -> None:
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    assert wilson(10, 10)[1] == 1
    for successes, episodes in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="no success rate"):
            wilson(successes, episodes)


def test_bootstrap_interval_is_that_of_a_normal_mean_where_there_is_one() -> None:
    values = [(number * 37 % 101) / 101 for number in range(101)]  # all of 0, 1/101, ..., in some order
    mean = sum(values) / len(values)
    error = 1.96 * math.sqrt(sum((each - mean) ** 2 for each in values) / len(values) ** 2)
    assert bootstrap_mean(values) == pytest.approx((mean - error, mean + error), abs=0.2 * error)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean([0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize("policies", [1, 2, 3])
def test_policies_from_the_same_starts_say_less_than_as_many_episodes(policies: int) -> None:
    won = np.array([0, 1, 1, 0, 1, 0, 0, 0], dtype=float)
    assert independent(np.stack([won] * policies)) == pytest.approx(8), "the same again says nothing new"
    others = np.stack([np.roll(won, 3 * number) for number in range(policies)])
    assert 8 <= independent(others) <= 8 * policies + 1e-9
    assert independent(np.zeros((policies, 8))) == 8


def test_policies_that_fail_elsewhere_say_as_much_as_as_many_episodes() -> None:
    rng = np.random.default_rng(0)
    assert independent((rng.random((3, 100_000)) < 0.4).astype(float)) == pytest.approx(300_000, rel=0.02)


def test_intervals_overlap_where_they_touch() -> None:
    assert overlap((0.1, 0.3), (0.3, 0.5))
    assert not overlap((0.1, 0.3), (0.4, 0.5))


# --- arms and commands


def arms_of(suite: str) -> list[str]:
    """Names of the arms that are possible there: PushT has no randomized scenes."""
    return [name for name in known_arms() if suite == "metaworld" or not load_arm(name).randomize]


@pytest.fixture(scope="module")
def trainings() -> dict[tuple[str, str], Training]:
    """Each arm in each suite that can record for it."""
    found = {}
    for suite in SUITES:
        for name in arms_of(suite):
            overrides = (f"suite={suite}", f"arms=[{name}]", "seeds=[1]", "minutes=[]", "steps=[100]")
            found[suite, name] = plan(*overrides)[0]
    return found


@pytest.mark.parametrize(("suite", "name"), [(suite, name) for suite in SUITES for name in arms_of(suite)])
def test_lerobot_train_takes_the_flags_of_an_arm(
    suite: str, name: str, trainings: dict[tuple[str, str], Training], tmp_path: Path
) -> None:
    from lerobot.configs.train import TrainPipelineConfig

    training = trainings[suite, name]
    _, *arguments = commands.train(
        training, Work(tmp_path), tmp_path / "run", steps=50_000, save_every=10, log_every=1
    )
    config = draccus.parse(TrainPipelineConfig, args=arguments)

    assert config.policy is not None
    config.policy.validate_features()
    for flag, wanted in training.flags.items():
        found = getattr(config.policy, flag)
        if flag == "input_features":
            assert set(found) == set(training.suite.inputs[training.arm.sees])
        elif flag == "normalization_mapping":
            assert {kind: mode.value for kind, mode in found.items()} == wanted
        else:
            assert (list(found) if isinstance(found, tuple) else found) == wanted, flag
    for flag, wanted in training.optimization.items():
        assert functools.reduce(getattr, flag.split("."), config) == wanted, flag
    assert config.dataset.episodes == list(range(training.suite.recorded))
    assert (config.steps, config.save_freq, config.seed) == (50_000, 10, 1)
    assert config.num_workers == training.arm.num_workers
    assert config.policy.push_to_hub is False


def test_arms_of_a_family_have_the_same_sizes_and_inputs(
    trainings: dict[tuple[str, str], Training],
) -> None:
    for suite in SUITES:
        for family in ("act", "diffusion"):
            arms = [each for (of, _), each in trainings.items() if of == suite and each.arm.family == family]
            sizes = arms[0].suite.sizes[family]
            assert len(arms) > 3
            for training in arms:
                assert {name: training.flags[name] for name in sizes} == sizes


@pytest.mark.parametrize(
    ("suite", "sees", "scene"),
    [(suite, sees, "plain") for suite in SUITES for sees in ("pixels", "state")]
    + [("metaworld", "pixels", "randomized")],
)
def test_lerobot_eval_takes_the_environment_of_a_suite_and_gives_what_policies_want(
    suite: str, sees: str, scene: Scene, trainings: dict[tuple[str, str], Training], tmp_path: Path
) -> None:
    from lerobot.configs.eval import EvalPipelineConfig
    from lerobot.envs.utils import env_to_policy_features

    from benchmarks.quality import envs  # noqa: F401  (registers those that LeRobot does not have)

    training = dataclasses.replace(
        trainings[suite, {"pixels": "act", "state": "act_state"}[sees]], scenes=(scene,)
    )
    _, *arguments = commands.evaluate(training.experiments(7)[0], tmp_path / "checkpoint", tmp_path / "out")
    # LeRobot's own wrapper takes these two off before the rest is parsed.
    rest = [each for each in arguments if not each.startswith("--policy.") and "discover" not in each]
    config = draccus.parse(EvalPipelineConfig, args=rest)

    assert config.eval.n_episodes == 7 and config.eval.batch_size <= 7
    assert config.seed == 100000
    assert config.eval.use_async_envs is False
    given = env_to_policy_features(config.env)
    wanted = training.suite.inputs[sees]
    assert set(wanted) <= set(given)
    for name, feature in wanted.items():
        if feature["type"] != "VISUAL":  # PushT declares other sizes of images than it sends
            assert list(given[name].shape) == feature["shape"]


@pytest.mark.parametrize("name", [name for name in arms_of("pusht") if load_arm(name).encoder])
def test_precompute_takes_the_settings_of_an_arm(name: str, tmp_path: Path) -> None:
    from lerobot_theia.scripts.configs import config_folder
    from lerobot_theia.scripts.precompute import settings_of

    (training,) = plan("arms=[theia_act]", "seeds=[1]", "minutes=[]", "steps=[100]")
    arm = load_arm(f'{name}@{tmp_path}/my encoder, "new" = 1')  # a path as bad as they come
    _, *overrides = commands.precompute(training.suite, "pusht", arm, Work(tmp_path / "a b"), "cpu")
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = compose("precompute", overrides=overrides)
    found = settings_of(config)

    assert found["encoder"] == arm.encoder
    assert found["pool"] == arm.token_pool
    assert found["root"] == str(Work(tmp_path / "a b").dataset(training.suite, "pusht", arm, "pixels"))
    assert config.augment.views == arm.views


def test_recorders_are_scripts_of_this_checkout_and_take_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def record_metaworld(task: str, root: Path, episodes: int, seed: int, **more: Any) -> str:
        asked.update(task=task, root=root, episodes=episodes, seed=seed, **more)
        return "recorded"

    def record_pusht(root: Path, repo_id: str, episodes: int, **more: Any) -> str:
        asked.update(root=root, repo_id=repo_id, episodes=episodes, **more)
        return "recorded"

    monkeypatch.setattr(metaworld, "record_metaworld", record_metaworld)
    monkeypatch.setattr(pusht, "record_pusht", record_pusht)
    recorders = {"pusht": pusht.main, "metaworld": metaworld.main}
    for suite, name in [
        ("pusht", "act"),
        ("metaworld", "act"),
        ("metaworld", "theia_diffusion_2x2_randomized"),
    ]:
        for training in plan(f"suite={suite}", f"arms=[{name}]", "seeds=[1]", "steps=[10]", "minutes=[]"):
            command = commands.record(training.suite, training.task, training.arm, Work(tmp_path))
            assert Path(command[1]).name == f"record_{suite}_demos.py" and Path(command[1]).is_file()
            asked.clear()
            assert recorders[suite](command[2:]) == 0
            assert asked["root"] == Work(tmp_path).dataset(
                training.suite, training.task, training.arm, "pixels"
            )
            assert asked["episodes"] == training.suite.recorded
            assert asked["environment_state"] and asked["if_missing"] and not asked["overwrite"]
            if suite == "metaworld":
                assert (asked["task"], asked["seed"]) == (training.task, 0)
                assert asked["randomize"] == [kind for kind in training.arm.randomize.split(",") if kind]


def test_an_arm_with_another_encoder_differs_in_nothing_else() -> None:
    arm, other = load_arm("theia_act"), load_arm("theia_act@random-tiny")
    assert dataclasses.replace(other, name=arm.name, what=arm.what, encoder=arm.encoder) == arm
    assert other.encoder == "random-tiny"


def test_an_encoders_folder_is_found_from_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "random-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_arm("theia_act@mine").encoder == str(tmp_path / "mine")
    assert load_arm("theia_act@random-tiny").encoder == "random-tiny"
    assert load_arm("theia_act@me/theia").encoder == "me/theia"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arms=[theia_atc]"], "no arm 'theia_atc'; there are act, "),
        (["arms=[act@random-tiny]"], "act has no encoder to exchange"),
        (["arms=[theia_act@]"], "none is named after @"),
        (["arms=[]"], "arms=.* is empty"),
        (["seeds=[1,1]"], "names one twice"),
        (["seeds=3"], r"no list; write seeds=\[3\]"),
        (["seeds=[-1]"], r"seeds=\[-1\]; seeds are whole numbers"),
        (["steps=[]", "minutes=[]"], "how long shall policies train"),
        (["minutes=[0]"], "larger than 0"),
        (["demonstrations=[300]"], "demonstrations=300, but suite pusht records suite.recorded=260"),
        (["episodes=0"], "at least one"),
        (["+suite.sizes.act.dim_modle=3"], "arm act: act has no --policy.dim_modle in this checkout"),
        (["scenes=[dark]"], r"scenes=\['dark'\]; choose from plain, randomized"),
        (["scenes=[]"], "scenes=.* is empty"),
        (["scenes=[plain,randomized]"], "suite pusht has no randomized scenes"),
        (
            ["arms=[theia_diffusion_2x2_randomized]"],
            "such as theia_diffusion_2x2_randomized; suite=metaworld",
        ),
        (
            ["suite=metaworld", "demonstrations=[25]", "arms=[act_state]", "scenes=[randomized]"],
            "act_state sees no scene",
        ),
        (["arms=[theia_act@a/enc,theia_act@b/enc]"], "would have the same name in results"),
        (["suite.first_seed=1000"], "suite.first_seed=1000: demonstrations .* have seeds below 100000"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(overrides: list[str], message: str) -> None:
    with pytest.raises((ArmError, SettingsError), match=message):
        plan(*overrides)


@pytest.mark.parametrize(
    ("arm", "flag", "usual"),
    [
        ("act", "--scheduler.num_warmup_steps", 100),
        ("theia_act_2x2", "--scheduler.num_warmup_steps", 100),
        ("diffusion", "--policy.scheduler_warmup_steps", 500),
        ("theia_diffusion_2x2", "--policy.scheduler_warmup_steps", 500),
    ],
)
def test_no_arm_spends_its_training_on_the_warm_up(arm: str, flag: str, usual: int, tmp_path: Path) -> None:
    (training,) = plan(f"arms=[{arm}]", "seeds=[1]", "minutes=[30]")
    for steps, expected in {520: 26, 1000: 50, 50_000: usual, 3: 1}.items():
        command = commands.train(training, Work(tmp_path), tmp_path, steps=steps, save_every=0, log_every=1)
        assert f"{flag}={expected}" in command


def test_demonstrations_of_push_t_are_those_of_the_recorders_version() -> None:
    """Whoever changes them raises `recorder_version` in configs/suite/pusht.yaml, and what is here: results of the earlier ones
    are others."""
    (training,) = plan("arms=[act]", "seeds=[1]", "minutes=[30]")
    assert (training.suite.recorder_version, sha256_of_file(pusht.DEFAULT_ACTIONS)[:12]) == (
        1,
        "8cfa3c2c874f",
    )


# --- names, digests, budgets


def test_questions_are_plans() -> None:
    for path in (CONFIGS / "question").glob("*.yaml"):
        suite = "metaworld" if path.stem == "randomization" else "pusht"
        config = settings(f"question={path.stem}", f"suite={suite}")
        found = make_plan(config, "cpu")
        arms, budgets = config["arms"], bool(config["steps"]) + bool(config["minutes"])
        cells = len(config["seeds"]) * len(config["demonstrations"]) * len(config["suite"]["tasks"])
        assert len(found) == len(arms) * cells * budgets
        names = [each.name for training in found for each in training.experiments(config["episodes"])]
        assert len(set(names)) == len(names)


def test_headline_has_three_seeds_and_at_least_two_hundred_episodes() -> None:
    config = settings()
    assert len(config["seeds"]) >= 3 and config["episodes"] >= 200
    assert config["suite"]["first_seed"] == 100000


def test_names_say_what_it_is_and_are_always_the_same() -> None:
    overrides = ("arms=[theia_act@outputs/my enc]", "seeds=[2]", "demonstrations=[50]", "minutes=[30,120]")
    first, second = (plan(*overrides)[0].experiments(200) for _ in range(2))
    assert [each.name for each in first] == [
        "pusht--pusht--theia_act@my-enc--50of260demos--seed2--30of120min",
        "pusht--pusht--theia_act@my-enc--50of260demos--seed2--120min",
    ]
    assert [digest(each.settings) for each in first] == [digest(each.settings) for each in second]


def test_other_settings_are_another_experiment_and_evaluation_is_no_setting_of_a_training(
    tmp_path: Path,
) -> None:
    (base,) = plan("arms=[theia_act]", "seeds=[1]", "steps=[100]", "minutes=[]")
    others = {
        "episodes": (base, 5),
        "flag": (plan("arms=[theia_act]", "seeds=[1]", "steps=[100]", "minutes=[]",
                      "suite.sizes.act.dim_model=64")[0], 200),
        "device": (dataclasses.replace(base, device="cuda"), 200),
        "seed": (dataclasses.replace(base, seed=9), 200),
        "quick": (dataclasses.replace(base, quick=True), 200),
    }  # fmt: skip
    digests = {name: digest(each.experiments(n)[0].settings) for name, (each, n) in others.items()}
    assert len({*digests.values(), digest(base.experiments(200)[0].settings)}) == len(others) + 1
    assert Work(tmp_path).training(base) == Work(tmp_path).training(others["episodes"][0])
    assert Work(tmp_path).training(base) != Work(tmp_path).training(others["flag"][0])


def test_an_encoder_that_was_trained_again_is_another_one(tmp_path: Path) -> None:
    def work() -> tuple[str, Path]:
        (training,) = plan(f"arms=[theia_act@{tmp_path}]", "seeds=[1]", "steps=[100]", "minutes=[]")
        return digest(training.settings), Work(tmp_path).precompute(training.suite, "pusht", training.arm)

    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = work()
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert before[0] != work()[0] and before[1] != work()[1]


def test_so_is_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digests() -> set[str]:
        names = ("theia_act@theia-tiny-sim", "theia_act@theia_tiny_sim")
        trainings = plan(f"arms=[{','.join(names)}]", "seeds=[1]", "steps=[100]", "minutes=[]")
        return {str(training.arm.encoder_file_sha256) for training in trainings}

    before = digests()
    folder = tmp_path / "theia-tiny-sim"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"trained again")
    monkeypatch.setattr(arms, "ASSETS", tmp_path)
    after = digests()
    assert len(before) == len(after) == 1 and not before & after and "None" not in before


RANDOMIZED = ("suite=metaworld", "suite.tasks=[hammer]", "question=randomization", "seeds=[1]")


def test_scenes_are_experiments_of_one_training_and_those_of_demonstrations_are_another(
    tmp_path: Path,
) -> None:
    plain, randomized = plan(*RANDOMIZED)
    work = Work(tmp_path)
    names = [
        each.name.split("--", 2)[2] for training in (plain, randomized) for each in training.experiments(25)
    ]
    assert names == [
        "theia_diffusion_2x2--25demos--seed1--10000steps",
        "theia_diffusion_2x2--25demos--seed1--10000steps--randomized",
        "theia_diffusion_2x2_randomized--25demos--seed1--10000steps",
        "theia_diffusion_2x2_randomized--25demos--seed1--10000steps--randomized",
    ]
    (usual,) = plan(*RANDOMIZED, "arms=[theia_diffusion_2x2]", "scenes=[plain]")
    assert work.training(usual) == work.training(plain) != work.training(randomized)
    assert usual.experiments(25)[0].settings == plain.experiments(25)[0].settings

    recordings = [commands.record(each.suite, "hammer", each.arm, work) for each in (plain, randomized)]
    assert set(recordings[1]) - set(recordings[0]) == {
        "--randomize=light,camera,texture",
        f"--root={work.dataset(randomized.suite, 'hammer', randomized.arm, 'pixels')}",
    }
    assert "hammer-25-light+camera+texture-" in recordings[1][4]
    caches = {work.caches(each.suite, "hammer", each.arm) for each in (plain, randomized)}
    assert len(caches) == 2


def test_what_is_recorded_otherwise_lies_elsewhere(tmp_path: Path) -> None:
    overrides = ("arms=[act]", "seeds=[1]", "steps=[10]", "minutes=[]")
    (usual,) = plan(*overrides)
    (other,) = plan(*overrides, "suite.recorder=[scripts/record_pusht_demos.py,--images]")
    folders = {Work(tmp_path).task(each.suite, "pusht", each.arm) for each in (usual, other)}
    assert len(folders) == 2 and usual.settings != other.settings


def test_other_looks_are_another_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    def digests(*overrides: str) -> list[str]:
        trainings = plan(*RANDOMIZED, *overrides)
        return [digest(each.settings) for training in trainings for each in training.experiments(25)]

    usual = digests()
    light = digests("suite.randomized.randomize=light")
    assert [a == b for a, b in zip(usual, light, strict=True)] == [True, False, True, False]
    monkeypatch.setattr("benchmarks.quality.settings.VERSION", 2)
    assert [a == b for a, b in zip(usual, digests(), strict=True)] == [True, False, False, False]


def test_slug_keeps_an_encoders_name_and_no_folder() -> None:
    assert slug("theia_act@/home/me/my encoder") == "theia_act@my-encoder"
    assert slug("theia_act") == "theia_act"


@pytest.mark.parametrize(
    ("amounts", "every"), [([20000], 2000), ([1250, 2500, 5000], 625), ([2, 4], 1), ([7], 1), ([30, 45], 5)]
)
def test_checkpoints_meet_all_budgets_and_are_about_ten(amounts: list[int], every: int) -> None:
    assert stride(amounts) == every
    assert all(each % every == 0 for each in amounts)


def test_budgets_without_a_common_stride_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"steps=\[1000, 20001\] .* take rounder numbers"):
        stride([1000, 20001])


def test_a_time_budget_gets_the_last_checkpoint_made_in_it() -> None:
    record = Record(steps=30, save_every=10, seconds={10: 50.0, 20: 110.0, 30: 170.0})
    assert checkpoint_step(record, Budget(kind="minutes", amount=2, of=3)) == 20
    assert checkpoint_step(record, Budget(kind="minutes", amount=3, of=3)) == 30
    assert checkpoint_step(record, Budget(kind="steps", amount=10, of=30)) == 10
    with pytest.raises(SettingsError, match=r"within 0.5 minutes; the first came after 0.83"):
        checkpoint_step(record, Budget(kind="minutes", amount=0.5, of=3))


# --- what is read off a log


class Time:
    """`time.monotonic` as told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    told = Time()
    monkeypatch.setattr(clock, "time", told)
    return told


def test_clock_starts_with_the_first_step_and_notes_each_checkpoint(time: Time, tmp_path: Path) -> None:
    record = Record(steps=20, save_every=10)
    watch = Clock(record, tmp_path / "record.json", before=100.0, limit_s=130.0)
    assert not watch("importing for a while\n")
    time.now += 500
    assert not watch("Training: 0%| | 0/20 [00:00<?]INFO Start offline training on a fixed")
    assert not watch(" dataset\n")
    time.now += 20
    assert not watch(
        "Training: 9%|█ | 5/20 [..]\rTraining: 50%|█ | 10/20 [..]INFO step:10 loss:0.250 updt_s:1\n"
    )
    assert not watch("INFO Checkpoint policy after step 10\n")
    time.now += 9
    assert not watch("")
    time.now += 1
    assert watch("")

    assert record == Record(steps=20, save_every=10, seconds={10: 120.0}, losses={10: 0.25}, out_of_time=True)
    saved = Record.load(tmp_path / "record.json")
    assert saved == dataclasses.replace(record, out_of_time=False)
    saved.forget_after(9)
    assert not saved.seconds and not saved.losses


def test_a_training_that_is_done_and_still_ending_is_not_cut_off(time: Time, tmp_path: Path) -> None:
    record = Record(steps=20, save_every=10)
    watch = Clock(record, tmp_path / "record.json", limit_s=30.0)
    watch("INFO Start offline training on a fixed dataset\n")
    time.now += 29
    assert not watch("INFO Checkpoint policy after step 20\n")
    time.now += 5
    assert not watch("INFO End of training\n") and not record.out_of_time


def test_rate_leaves_the_beginning_out(time: Time) -> None:
    rate = Rate(measure_s=10)
    for step in range(1, 40):
        time.now += 3 if step == 1 else 1
        done = rate(f"\rTraining:   1%|▍         | {step}/1000000000 [00:01<1:00, 1.00step/s]\r")
        if done:
            break
    assert done and rate.per_s == pytest.approx(1.0)
    assert rate.counted[0][1] == 6


# --- report


def result(
    results: Results,
    training: Training,
    rewards: list[float],
    *,
    seconds: float,
    encoding_cores: int = 2,
    cpu: str = "A CPU",
) -> None:
    """Write what a run would have written, had its episodes had these best rewards."""
    (experiment,) = training.experiments(len(rewards))
    successes = [int(each == 1) for each in rewards]
    theia = training.arm.encoder is not None
    results.save(
        experiment,
        {
            "what": training.arm.what,
            "suite": {"what": training.suite.what, "reward": training.suite.reward},
            "training": {
                "steps": 1000,
                "of_steps": 1000,
                "seconds": seconds,
                "loss": 0.25,
                "out_of_time": training.arm.name == "act",
                "cores_used_by_others": 0.1 * training.seed,
            },
            "encoder": {"name": "enc", "weights_sha256": "ab" * 32, "seconds": 90.0, "cores": encoding_cores}
            if theia
            else None,
            "evaluation": {
                **summary([rewards], [successes]),
                "seconds": 2.0 * len(rewards),
                "max_rewards": rewards,
                "successes": successes,
                "seeds": list(range(100_000, 100_000 + len(rewards))),
            },
            "videos": {"successes": ["success-0.mp4"], "failures": []},
            "machine": {"cpu": cpu, "cores": 2, "memory_gb": 8, "gpu": None},
            "versions": {"lerobot": "0.6.1"},
            "date": "2026-01-02",
        },
    )


@pytest.fixture
def measured(tmp_path: Path) -> Results:
    """Two arms after the same time, one with two seeds."""
    results = Results(tmp_path / "results", "a-machine")
    arms = ("minutes=[15]", "demonstrations=[100]")
    for seed, rewards in {1: [1.0] * 6 + [0.8] * 4, 2: [1.0] * 8 + [0.9] * 2}.items():
        (training,) = plan("arms=[theia_act]", f"seeds=[{seed}]", *arms)
        result(results, training, rewards, seconds=900.0)
    (training,) = plan("arms=[act]", "seeds=[1]", *arms)
    result(results, training, [0.5] * 10, seconds=885.0)
    return results


def test_rows_take_seeds_together_and_keep_other_settings_apart(measured: Results) -> None:
    found = {row["arm"]: row for row in rows(measured.all())}
    theia = found["theia_act"]
    assert theia.by_seed == [0.6, 0.8]
    assert theia.success == 0.7
    # The starts' means are 1 (six), 0.5 (two) and 0 (two): a variance of 0.16, where independent episodes have 0.21.
    episodes = 10 * 0.21 / 0.16
    assert theia.summary["success_interval"] == pytest.approx(wilson(0.7 * episodes, episodes))
    assert theia.summary["episodes"] == 20
    assert theia.summary["mean_max_reward"] == pytest.approx((6 + 3.2 + 8 + 1.8) / 20)
    assert theia.minutes == 15 and found["act"].minutes == 14.75

    (other,) = plan("arms=[theia_act]", "seeds=[3]", "minutes=[15]", "demonstrations=[100]",
                    "suite.batch_size=8")  # fmt: skip
    result(measured, other, [0.0] * 10, seconds=60.0)
    assert len(rows(measured.all())) == 3


def test_minutes_of_encoding_are_said_to_be_of_other_cores_than_training_had(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", "a-machine")
    arms = {"theia_act": 2, "theia_diffusion": 4, "act": 2}
    for arm, cores in arms.items():
        (training,) = plan(f"arms=[{arm}]", "seeds=[1]", "minutes=[15]")
        result(results, training, [1.0], seconds=900.0, encoding_cores=cores)
    found = {row["arm"]: row.encoding for row in rows(results.all())}
    assert found == {"theia_act": "1.5", "theia_diffusion": "1.5 (4 cores)", "act": ""}


def test_episodes_are_stuck_whose_best_reward_stays_below_a_tenth() -> None:
    assert summary([[0.0, 0.09, 0.1, 1.0]], [[0, 0, 0, 1]])["stuck"] == 0.5
    assert summary([[0.1, 1.0], [0.0, 1.0]], [[0, 1], [0, 1]])["stuck"] == 0.25


def test_aims_are_met_missed_or_not_measured(measured: Results) -> None:
    success, reward, time, steps = aims(rows(measured.all()))
    assert success.met is True and "70.0%" in success.found
    assert reward.met is True and "0.950" in reward.found
    assert time.met is True and "theia_act" in time.found and "against 0.0%, 0.500 (act" in time.found
    assert "15.0 minutes and 1.5 of encoding) against" in time.found and time.found.endswith(
        ", 14.8 minutes)"
    )
    assert steps.met is None and steps.found == "not measured"
    assert [each.met for each in aims([])] == [None] * 4

    (raw,) = plan("arms=[diffusion]", "seeds=[1]", "minutes=[15]", "demonstrations=[100]")
    result(measured, raw, [1.0] * 200, seconds=880.0)
    assert aims(rows(measured.all()))[2].met is False
    result(measured, raw, [0.999] * 200, seconds=880.0)
    assert aims(rows(measured.all()))[2].met is False, "not in reward, though in success"


def test_one_policy_has_to_meet_both_aims(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", "a-machine")
    for arm, rewards in {
        "theia_act": [1.0] * 12 + [0.5] * 8,
        "theia_diffusion": [1.0] * 8 + [0.9] * 12,
    }.items():
        (training,) = plan(f"arms=[{arm}]", "seeds=[1]", "minutes=[15]", "demonstrations=[100]")
        result(results, training, rewards, seconds=900.0)
    success, reward, *_ = aims(rows(results.all()))
    assert success.met is True and "60.0% (theia_act" in success.found
    assert reward.met is False and "0.800 (theia_act" in reward.found


def test_page_has_rates_intervals_verdicts_pictures_and_what_is_missing(
    measured: Results, tmp_path: Path
) -> None:
    page = tmp_path / "docs" / "quality.md"
    write(measured.all(), page)
    text = page.read_text()

    low, high = wilson(0.7 * 10 * 0.21 / 0.16, 10 * 0.21 / 0.16)
    assert f"| `theia_act` | pusht | 70.0% [{low:.1%}, {high:.1%}] | 60% 80% | 0.950 [" in text
    assert "**100 of 260 demonstrations, 15 minutes of training, 2-core-a**" in text
    assert "- `2-core-a`: A CPU, 2 cores, 8 GB, no GPU. Measured 2026-01-02 with lerobot 0.6.1." in text
    assert "met |" in text and "not measured |" in text
    assert "| 1,000 ⏱ | 14.8 |" in text and "| 1,000 | 15.0 |" in text
    assert "other processes kept 0.10 to 0.20 cores busy" in text
    assert "- pusht, headline: all of it" in text
    assert "- pusht, demonstrations: all of it" in text, "that asks for 200 episodes"
    assert "- ALOHA, transfer cube: " in text and "- Published Theia weights" in text
    assert "- metaworld, headline: all of it" in text
    picture = page.parent / "images" / "quality-pusht.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 100_000
    assert f"(images/{picture.name})" in text
    assert "videos/" not in text

    before = text, picture.read_bytes()
    write(measured.all(), page)
    assert (page.read_text(), picture.read_bytes()) == before


def test_times_are_compared_on_one_machine_and_steps_on_all(measured: Results, tmp_path: Path) -> None:
    """Another machine: its policies are no rivals after the same time, and are after the same number of steps."""
    other = Results(tmp_path / "results", "b-machine")
    (raw,) = plan("arms=[diffusion]", "seeds=[1]", "minutes=[15]", "demonstrations=[100]")
    result(other, raw, [1.0] * 200, seconds=880.0, cpu="B CPU")
    time = aims(rows(measured.all() + other.all()))[2]
    assert time.met is True and "2-core-b" not in time.found
    (ours,) = plan("arms=[theia_act]", "seeds=[1]", "minutes=[15]", "demonstrations=[100]")
    result(other, ours, [0.0] * 200, seconds=880.0, cpu="B CPU")
    time = aims(rows(measured.all() + other.all()))[2]
    assert time.met is False and "2-core-a" in time.found and "2-core-b" in time.found

    steps = ("steps=[500]", "minutes=[]", "demonstrations=[100]", "seeds=[1]")
    for results, cpu, arm, rewards in (
        (measured, "A CPU", "theia_act", [0.5] * 50),
        (other, "B CPU", "theia_act", [1.0] * 40 + [0.5] * 10),
        (other, "B CPU", "act", [1.0] * 10 + [0.5] * 40),
    ):
        (training,) = plan(f"arms=[{arm}]", *steps)
        result(results, training, rewards, seconds=60.0, cpu=cpu)
    everything = measured.all() + other.all()
    aim = aims(rows(everything, pool=True))[3]
    assert aim.met is True and "lower" not in aim.but
    assert aim.found.startswith("40.0%") and "1 seed(s), 2-core-a and 2-core-b" in aim.found
    assert "against 20.0%" in aim.found

    write(everything, tmp_path / "quality.md")
    table = (
        (tmp_path / "quality.md")
        .read_text()
        .partition("**100 of 260 demonstrations, 500 steps**")[2]
        .split("**")[0]
    )
    found = [(cells[0], cells[-1]) for each in table.splitlines() if "| pusht |" in each
             for cells in [each.strip("| ").split(" | ")]]  # fmt: skip
    assert found == [("`theia_act`", "2-core-b"), ("`act`", "2-core-b"), ("`theia_act`", "2-core-a")]
    drawn = lines(
        [row for row in rows(everything, pool=True) if row.budget.kind == "steps"], lambda row: row.steps
    )
    assert drawn["theia_act (of 260)"][0][1] == 0.4 and len(drawn["theia_act (of 260)"]) == 1


def test_what_is_lower_by_chance_is_called_so(measured: Results, tmp_path: Path) -> None:
    (raw,) = plan("arms=[act]", "seeds=[1]", "minutes=[15]", "demonstrations=[100]")
    result(measured, raw, [1.0] * 8 + [0.8] * 2, seconds=880.0)
    time = aims(rows(measured.all()))[2]
    assert time.met is True
    # Of ten starts two differ, by a half each: none of them is among one in ten resamples.
    assert time.but.startswith(
        "lower in success by 0.0 to 25.0 points on the same starts, which may be chance"
    )
    write(measured.all(), tmp_path / "quality.md")
    assert "| met: lower in success by 0.0 to 25.0 points" in (tmp_path / "quality.md").read_text()


def test_what_is_lower_on_the_same_starts_is_missed_though_intervals_overlap(tmp_path: Path) -> None:
    """12 and 24 of 200: the intervals overlap; but where they differ, it is nearly always in one direction."""
    results = Results(tmp_path / "results", "a-machine")
    for arm, successes in {"theia_act": 12, "act": 24}.items():
        (training,) = plan(f"arms=[{arm}]", "seeds=[1]", "minutes=[15]", "demonstrations=[100]")
        result(results, training, [1.0] * successes + [0.5] * (200 - successes), seconds=880.0)
    one, other = ([each["evaluation"]["success_interval"] for each in results.all()][i] for i in (0, 1))
    assert overlap(one, other)
    time = aims(rows(results.all()))[2]
    assert time.met is False and "on the same starts, though the intervals overlap" in time.but
    assert wilson(12, 200)[1] > wilson(24, 200)[0]
    write(results.all(), tmp_path / "quality.md")
    assert "| **missed**: lower in success by " in (tmp_path / "quality.md").read_text()


def test_other_starts_are_compared_by_their_intervals(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", "a-machine")
    for arm, rewards in {"theia_act": [1.0] * 12 + [0.5] * 188, "act": [1.0] * 25 + [0.5] * 185}.items():
        (training,) = plan(f"arms=[{arm}]", "seeds=[1]", "minutes=[15]", "demonstrations=[100]")
        result(results, training, rewards, seconds=880.0)
    time = aims(rows(results.all()))[2]
    assert time.met is True and "lower in success, the intervals overlap" in time.but


def test_a_verdict_names_what_of_lerobot_was_not_measured(measured: Results) -> None:
    assert aims(rows(measured.all()))[2].but == "`diffusion` on raw RGB was not measured"
    (raw,) = plan("arms=[diffusion]", "seeds=[1]", "minutes=[15]", "demonstrations=[100]")
    result(measured, raw, [0.1] * 10, seconds=880.0)
    assert aims(rows(measured.all()))[2].but == ""


def test_a_verdict_says_where_the_policy_of_the_first_aims_is_below(tmp_path: Path) -> None:
    """One policy may be good after a time, another after a number of steps."""
    results = Results(tmp_path / "results", "a-machine")
    after_time = {"theia_diffusion": [1.0] * 150, "act": [0.0] * 200}
    after_steps = {"theia_diffusion": [0.0] * 200, "theia_act": [1.0] * 90, "act": [1.0] * 60}
    for budget, found in (("minutes", after_time), ("steps", after_steps)):
        other = {"minutes": "steps=[]", "steps": "minutes=[]"}[budget]
        for arm, rewards in found.items():
            (training,) = plan(f"arms=[{arm}]", "seeds=[1]", f"{budget}=[15]", other, "demonstrations=[100]")
            result(results, training, rewards + [0.5] * (200 - len(rewards)), seconds=880.0)
    success, _, time, steps = aims(rows(results.all()))
    assert "(theia_diffusion" in success.found and "(theia_diffusion" in time.found
    assert time.but == "`diffusion` on raw RGB was not measured"
    assert steps.met is True and steps.found.startswith("45.0%, 0.725 (theia_act")
    assert re.search(
        "`theia_diffusion`, of the first rows, is lower in success by 2.* than `act`$", steps.but
    )


def test_a_row_of_more_seeds_is_shown_before_a_better_one(measured: Results) -> None:
    (training,) = plan("arms=[theia_diffusion]", "seeds=[1]", "minutes=[15]", "demonstrations=[100]")
    result(measured, training, [1.0] * 10, seconds=900.0)
    success, *_ = aims(rows(measured.all()))
    assert "70.0% (theia_act" in success.found


def test_page_links_videos_that_are_there_and_marks_time_that_was_not_filled(
    measured: Results, tmp_path: Path
) -> None:
    (training,) = plan("arms=[diffusion]", "seeds=[2]", "minutes=[15]", "demonstrations=[100]")
    result(measured, training, [0.5] * 10, seconds=840.0)
    name = training.experiments(10)[0].name
    film = tmp_path / "videos" / "2-core-a" / name / "success-0.mp4"
    film.parent.mkdir(parents=True)
    film.write_bytes(b"film")
    write(measured.all(), tmp_path / "quality.md")
    text = (tmp_path / "quality.md").read_text()
    assert (
        f"- `diffusion`, pusht, 15 minutes of training: [success-0](videos/2-core-a/{name}/success-0.mp4)"
        in text
    )
    assert text.count("](videos/") == 1
    # A film of which it is known that this policy is not the one in it.
    path = measured.path(training.experiments(10)[0])
    found = json.loads(path.read_text())
    for content, links in {b"film": 1, b"another policy's film": 0}.items():
        path.write_text(
            json.dumps(found | {"video_sha256": {"success-0.mp4": hashlib.sha256(content).hexdigest()}})
        )
        write(measured.all(), tmp_path / "quality.md")
        assert (tmp_path / "quality.md").read_text().count("](videos/") == links
    assert "| 1,000 ◔ | 14.0 |" in text and "| 1,000 ⏱ | 14.8 |" in text


def test_page_says_how_uneven_seeds_are_and_what_they_cannot_be_traced_to(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", "a-machine")
    for seed, steps, version in ((1, 520, "2.10.0"), (2, 902, "2.11.0")):
        (training,) = plan("arms=[diffusion]", f"seeds=[{seed}]", "minutes=[15]", "demonstrations=[100]")
        result(results, training, [0.5] * 10, seconds=900.0)
        path = results.path(training.experiments(10)[0])
        found = json.loads(path.read_text())
        found["training"] |= {"steps": steps}
        found["versions"] = {"lerobot": "0.6.1", "torch": version}
        if seed == 2:
            found["training"]["begun"] = {"code": {"commit": "0" * 40, "uncommitted_changes": True}}
        path.write_text(json.dumps(found))
    write(results.all(), tmp_path / "quality.md")
    text = (tmp_path / "quality.md").read_text()
    assert "| 520 to 902 | 15.0 |" in text
    assert "with lerobot 0.6.1, torch 2.10.0 or 2.11.0." in text
    assert "1 of 2 results do not say from which commit they are; 1 were begun with changes" in text


def test_demonstrations_have_a_panel_for_steps_and_one_for_time(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", "a-machine")
    assert by_demonstrations([]) == [("demonstrations", [])]
    for budgets in (
        ["steps=[500]", "minutes=[]"],
        ["steps=[1000]", "minutes=[]"],
        ["steps=[]", "minutes=[15]"],
    ):
        for training in plan("arms=[theia_act]", "seeds=[1]", "demonstrations=[25,50]", *budgets):
            result(results, training, [0.5] * 10, seconds=900.0)
    panels = by_demonstrations(rows(results.all(), pool=True))
    assert [name for name, _ in panels] == [
        "demonstrations (1,000 steps)",
        "demonstrations (15 minutes, 2-core-a)",
    ]
    assert [[row["demonstrations"] for row in shown] for _, shown in panels] == [[25, 50], [25, 50]]


def test_the_first_so_many_of_more_demonstrations_are_not_as_many_by_themselves(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", "a-machine")
    few = ("arms=[theia_diffusion_2x2]", "seeds=[1]", "steps=[1000]", "minutes=[]")
    for more in (
        ["demonstrations=[25]"],
        ["demonstrations=[50]"],
        ["demonstrations=[100]", "suite.recorded=100"],
    ):
        (training,) = plan(*few, *more)
        result(results, training, [1.0, 0.0], seconds=60.0)
    write(results.all(), tmp_path / "quality.md")
    text = (tmp_path / "quality.md").read_text()
    for heading in ("25 of 260", "50 of 260", "100"):
        assert f"**{heading} demonstrations, 1,000 steps**" in text
    drawn = lines(rows(results.all()), lambda row: row["demonstrations"])
    assert {name: [each[0] for each in points] for name, points in drawn.items()} == {
        "theia_diffusion_2x2 (of 260)": [25, 50], "theia_diffusion_2x2": [100],
    }  # fmt: skip


def test_page_keeps_scenes_apart(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", "a-machine")
    for training in plan(*RANDOMIZED, "arms=[theia_diffusion_2x2]"):
        for scene, rewards in {"plain": [1.0] * 25, "randomized": [1.0] * 5 + [0.0] * 20}.items():
            result(results, dataclasses.replace(training, scenes=(scene,)), rewards, seconds=60.0)
    write(results.all(), tmp_path / "quality.md")
    text = (tmp_path / "quality.md").read_text()
    assert "| `theia_diffusion_2x2` | hammer | 100.0% [" in text
    assert "| `theia_diffusion_2x2` | hammer; random light, camera, texture | 20.0% [" in text
    assert "- metaworld, randomization: 58 of 60 experiments" in text
    assert "- pusht, randomization" not in text
    drawn = lines(rows(results.all()), lambda row: row.steps)
    assert {name: points[0][1] for name, points in drawn.items()} == {
        "theia_diffusion_2x2 (hammer)": 1.0, "theia_diffusion_2x2 (hammer, randomized scene)": 0.2,
    }  # fmt: skip


def test_several_tasks_are_drawn_as_the_mean_of_theirs_and_other_settings_apart(tmp_path: Path) -> None:
    results = Results(tmp_path / "results", "a-machine")
    overrides = ("suite=metaworld", "arms=[theia_act]", "steps=[1000]", "minutes=[]", "demonstrations=[25]")
    for task, seeds, rewards in (("hammer", "[1,2,3]", [1.0] * 5), ("assembly", "[1]", [0.0] * 5)):
        for training in plan(*overrides, f"suite.tasks=[{task}]", f"seeds={seeds}"):
            result(results, training, rewards, seconds=60.0)
    (other,) = plan(*overrides, "suite.tasks=[drawer-open]", "seeds=[1]", "suite.batch_size=8")
    result(results, other, [1.0] * 7, seconds=60.0)
    drawn = lines(rows(results.all()), lambda row: row.steps)
    assert {name: points[0][1] for name, points in drawn.items()} == {
        "theia_act (2 tasks)": 0.5, "theia_act (drawer-open)": 1.0,
    }  # fmt: skip
    write(results.all(), tmp_path / "quality.md")
    text = (tmp_path / "quality.md").read_text()
    assert "| `theia_act` | drawer-open | 100.0% [" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| `theia_act` | drawer-open")]
    assert row.split(" | ")[5].strip() == "", "stuck is of Push-T"


def test_weights_that_lie_elsewhere_are_not_called_earlier_ones(measured: Results, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "student"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (training,) = plan(f"arms=[theia_act@{folder}]", "seeds=[1]", "minutes=[15]")
    result(measured, training, [1.0], seconds=900.0)
    found = {row["arm"]: row for row in rows(measured.all())}
    assert found["theia_act@student"]["encoder_file"] is not None
    assert found["theia_act@student"].outdated == ""


def test_results_of_earlier_settings_are_marked(measured: Results, tmp_path: Path) -> None:
    for path in measured.folder.glob("*theia_act--*seed1*.json"):
        found = json.loads(path.read_text())
        found["settings"]["encoder_file"] = "0" * 64
        path.write_text(json.dumps(found | {"settings_digest": digest(found["settings"])}))
    write(measured.all(), tmp_path / "quality.md")
    text = (tmp_path / "quality.md").read_text()
    assert "| `theia_act` † | pusht | 60.0% [" in text and "| `theia_act` | pusht | 80.0% [" in text
    assert "- † `theia_act`, 15 minutes of training, 2-core-a: earlier weights of its encoder" in text


def test_page_without_results_says_so(tmp_path: Path) -> None:
    page = tmp_path / "quality.md"
    write([], page)
    assert "Nothing has been measured yet." in page.read_text()


def test_nothing_is_missing_where_all_of_a_question_was_measured(measured: Results) -> None:
    for training in plan("question=demonstrations"):
        result(measured, training, [1.0] * 200, seconds=900.0)
    missing = gaps(measured.all())
    assert not [line for line in missing if line.startswith("pusht, demonstrations")]
    assert [line for line in missing if line.startswith("pusht, heads: all of it")]

    path = min(measured.folder.glob("*theia_act_2x2--*.json"))
    found = json.loads(path.read_text())
    found["settings"]["encoder_file"] = "0" * 64  # other weights
    path.write_text(json.dumps(found | {"settings_digest": digest(found["settings"])}))
    assert "pusht, demonstrations: 1 of 48 experiments (1 of `theia_act_2x2`)" in gaps(measured.all())


def test_what_no_question_asks_is_said_until_it_was_measured(measured: Results) -> None:
    before = {each.what for each in beyond(measured.all())}
    (training,) = plan("arms=[theia_act@theia-tiny-cdiv]", "seeds=[1]", "minutes=[15]")
    result(measured, training, [1.0], seconds=900.0)
    assert before - {each.what for each in beyond(measured.all())} == {"Published Theia weights, DINOv2"}


def test_status_tells_what_is_left_and_how_long_it_takes(measured: Results) -> None:
    overrides = ("demonstrations=[100]", "seeds=[1,3]", "minutes=[15]", "episodes=10")
    text = status(plan("arms=[theia_act]", *overrides), measured, 10)
    assert "seed1--15min: 1 of 1 done\n" in text
    assert "seed3--15min: 0 of 1 done, about 15 min left\n" in text
    assert text.endswith("left: about 15 min")

    fresh = status(plan("suite=metaworld", "arms=[act]", "seeds=[1]", "minutes=[15]"), measured, 10)
    assert fresh.endswith("left: about 1 h 15 min")

    steps = plan("arms=[act,diffusion]", "demonstrations=[100]", "seeds=[1]", "minutes=[]", "steps=[500]")
    text = status(steps, measured, 10)
    # 500 steps at 0.885 s, and 10 episodes at 2 s, are 7 min 43 s.
    assert "--act--100of260demos--seed1--500steps: 0 of 1 done, about 8 min left" in text
    assert "--diffusion--100of260demos--seed1--500steps: 0 of 1 done, time unknown" in text
    assert text.endswith("left: about 8 min, and 1 training(s) of whose kind none was measured here")


def test_results_are_short_files_without_paths_of_the_machine(measured: Results, tmp_path: Path) -> None:
    (training,) = plan(f"arms=[theia_act@{tmp_path}/enc]", "seeds=[1]", "minutes=[15]")
    result(measured, training, [1.0], seconds=900.0)
    for path in measured.folder.glob("*.json"):
        text = path.read_text()
        assert str(tmp_path) not in text and str(commands.CHECKOUT) not in text
        assert json.loads(text)["evaluation"]["successes"]
        assert len(text.splitlines()) < 150
