"""The seam into lerobot-train: who gets a cache, who gets LeRobot's own datasets, and who gets an error."""

import importlib.metadata
import inspect
import sys
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType
from typing import Any

import lerobot.datasets.factory as factory
import numpy as np
import pytest
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.factory import make_policy

from lerobot_theia.cache import CacheDamagedError, CacheMismatchError, FeatureCache
from lerobot_theia.data import seam
from lerobot_theia.data.feature_dataset import FeatureDataset
from lerobot_theia.data.keys import tokens_key
from lerobot_theia.data.serve import serve_features
from lerobot_theia.data.token_statistics import statistics_of_cache, statistics_of_sample
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.policies.common.configuration import InvalidSettingError
from lerobot_theia.policies.theia_act.modeling_theia_act import TheiaACTPolicy
from tests.cache.helpers import copy_of
from tests.data_room.conftest import act, train_config
from tests.datasets import CAMERAS, open_dataset
from tests.policies.conftest import token_statistics

TOP, WRIST = CAMERAS


def lerobot_function() -> Any:
    """LeRobot's own, whether the seam is installed by now or not."""
    return getattr(factory.make_train_eval_datasets, "lerobot_function", factory.make_train_eval_datasets)


def lerobots_own(cfg: Any) -> tuple:
    return lerobot_function()(cfg)


def must_not_be_called(cfg: Any) -> tuple:
    raise AssertionError("datasets were built")


@pytest.fixture
def root(rich_cache: FeatureCache) -> str:
    return str(rich_cache.path.parents[1])


class TestCached:
    def test_a_fitting_cache_is_served_with_its_statistics(
        self, rich_dataset: Path, rich_cache: FeatureCache, root: str
    ) -> None:
        config = train_config(rich_dataset, act(features="cached", cache_root=root, token_pool=7))
        train, held_out = serve_features(config, lerobots_own)
        assert isinstance(train, FeatureDataset) and held_out is None
        assert train.cache.path == rich_cache.path and len(train) == 15
        for camera in CAMERAS:
            np.testing.assert_allclose(
                train.meta.stats[tokens_key(camera)]["std"],
                rich_cache.manifest.statistics[camera].std,
                rtol=1e-6,
            )
        assert train[0]["action"].shape == (3, 2)  # the policy's chunk

    def test_auto_takes_a_cache_that_fits(self, rich_dataset: Path, root: str) -> None:
        config = train_config(rich_dataset, act(cache_root=root, token_pool=7))
        assert isinstance(serve_features(config, lerobots_own)[0], FeatureDataset)

    def test_held_out_episodes_are_served_too(
        self, rich_dataset: Path, rich_cache: FeatureCache, root: str
    ) -> None:
        policy = act(features="cached", cache_root=root, token_pool=7)
        train, held_out = serve_features(train_config(rich_dataset, policy, eval_split=0.4), lerobots_own)
        assert isinstance(train, FeatureDataset) and isinstance(held_out, FeatureDataset)
        assert len(train) + len(held_out) == 15 and not set(train.episodes) & set(held_out.episodes)
        item = held_out[0]
        assert item["episode_index"] in held_out.episodes
        assert (item[tokens_key(TOP)] == rich_cache.gather(TOP, [int(item["index"])])[0]).all()

    def test_none_that_fits_is_an_error_with_the_command(self, rich_dataset: Path, tmp_path: Path) -> None:
        config = train_config(rich_dataset, act(features="cached", cache_root=str(tmp_path)))
        with pytest.raises(CacheMismatchError, match="lerobot-theia-precompute"):
            serve_features(config, lerobots_own)

    def test_the_command_has_the_tolerance_of_the_run(self, rich_dataset: Path, tmp_path: Path) -> None:
        config = train_config(rich_dataset, act(features="cached", cache_root=str(tmp_path)))
        config.tolerance_s = 0.001
        with pytest.raises(CacheMismatchError, match=r"lerobot-theia-precompute .* tolerance_s=0\.001"):
            serve_features(config, lerobots_own)

    def test_a_flipped_bit_is_found_when_every_byte_is_asked_for(
        self, rich_dataset: Path, rich_cache: FeatureCache, tmp_path: Path
    ) -> None:
        cache = copy_of(rich_cache, tmp_path)
        path = cache.path / TOP / "000000.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        places = {"cache_root": str(tmp_path / "caches"), "token_pool": 7}
        quick = train_config(rich_dataset, act(**places))
        assert isinstance(serve_features(quick, lerobots_own)[0], FeatureDataset)
        full = train_config(rich_dataset, act(cache_verify="full", **places))
        with pytest.raises(CacheDamagedError, match=rf"{path} was altered(.|\n)*1 shard.*verify --repair"):
            serve_features(full, lerobots_own)

    def test_a_whole_cache_passes_the_full_check(
        self, rich_dataset: Path, root: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = train_config(rich_dataset, act(cache_verify="full", cache_root=root, token_pool=7))
        with caplog.at_level("INFO"):
            assert isinstance(serve_features(config, lerobots_own)[0], FeatureDataset)
        assert "every byte of the cache is as it was written" in caplog.text

    def test_an_unknown_check_is_refused_with_the_choices(self) -> None:
        with pytest.raises(InvalidSettingError, match=r"cache_verify='deep'; choose one of quick, full"):
            act(cache_verify="deep")

    def test_a_damaged_one_is_an_error_even_in_auto(
        self, rich_dataset: Path, rich_cache: FeatureCache, tmp_path: Path
    ) -> None:
        cache = copy_of(rich_cache, tmp_path)
        (cache.path / TOP / "000000.safetensors").unlink()
        config = train_config(rich_dataset, act(cache_root=str(tmp_path / "caches"), token_pool=7))
        with pytest.raises(CacheDamagedError, match=r"000000\.safetensors is missing"):
            serve_features(config, lerobots_own)

    @pytest.mark.parametrize(
        ("change", "flag"),
        [("streaming", "--dataset.streaming=true"), ("transforms", "--dataset.image_transforms.enable=true")],
    )
    def test_what_rules_a_cache_out_is_said_before_datasets_are_built(
        self, rich_dataset: Path, change: str, flag: str
    ) -> None:
        config = train_config(rich_dataset, act(features="cached"))
        if change == "streaming":
            config.dataset.streaming = True
        else:
            config.dataset.image_transforms.enable = True
        with pytest.raises(ValueError, match=rf"features=cached does not go with {flag}"):
            serve_features(config, must_not_be_called)


class TestOnline:
    @pytest.mark.parametrize("features", ["auto", "online"])
    def test_lerobots_own_dataset_comes_with_statistics_of_its_tokens(
        self, rich_dataset: Path, tmp_path: Path, features: str
    ) -> None:
        policy = act(features=features, cache_root=str(tmp_path), token_pool=7)
        train, _ = serve_features(train_config(rich_dataset, policy), lerobots_own)
        assert isinstance(train, LeRobotDataset)
        assert train.meta.stats[tokens_key(TOP)]["mean"].shape == (192,)

    def test_online_takes_frames_but_the_statistics_of_the_cache(
        self, rich_dataset: Path, rich_cache: FeatureCache, root: str
    ) -> None:
        """So that the same policy comes out whichever way its tokens came in."""
        policy = act(features="online", cache_root=root, token_pool=7)
        train, _ = serve_features(train_config(rich_dataset, policy, episodes=[0]), lerobots_own)
        assert isinstance(train, LeRobotDataset)
        for key, statistics in statistics_of_cache(
            rich_cache, {camera: camera for camera in CAMERAS}
        ).items():
            np.testing.assert_array_equal(train.meta.stats[key]["mean"], statistics["mean"])

    def test_a_stream_begins_at_its_beginning_and_travels_to_workers_after_its_sample(
        self, image_dataset: Path, tmp_path: Path
    ) -> None:
        config = train_config(image_dataset, act(cache_root=str(tmp_path), token_pool=7))
        config.dataset.streaming, config.num_workers = True, 1
        untouched, _ = lerobots_own(config)
        train, _ = serve_features(config, lerobots_own)
        assert train.meta.stats[tokens_key(TOP)]["mean"].shape == (192,)
        ForkingPickler.dumps(train)
        assert next(iter(train))["index"] == next(iter(untouched))["index"]

    def test_a_stream_of_no_shards_is_refused_with_the_way_out(
        self, image_dataset: Path, tmp_path: Path
    ) -> None:
        config = train_config(image_dataset, act(cache_root=str(tmp_path), token_pool=7))
        config.dataset.streaming, config.num_workers = True, 0
        with pytest.raises(ValueError, match="--num_workers=1 or more"):
            serve_features(config, lerobots_own)

    def test_image_transforms_make_auto_online(self, rich_dataset: Path, root: str) -> None:
        config = train_config(rich_dataset, act(cache_root=root, token_pool=7))
        config.dataset.image_transforms.enable = True
        assert isinstance(serve_features(config, lerobots_own)[0], LeRobotDataset)


@pytest.mark.parametrize("features", ["online", "cached"])
def test_a_run_loads_its_encoder_once(
    features: str, rich_dataset: Path, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To know which it is, for statistics, and for the policy."""
    loads, real = [], TheiaEncoder.from_pretrained
    monkeypatch.setattr(
        TheiaEncoder, "from_pretrained", lambda *args, **kw: loads.append(args) or real(*args, **kw)
    )
    policy = act(features=features, cache_root=root if features == "cached" else str(tmp_path), token_pool=7)
    train, _ = serve_features(train_config(rich_dataset, policy), lerobots_own)
    first = make_policy(policy, ds_meta=train.meta)
    assert len(loads) == 1
    second = make_policy(policy, ds_meta=train.meta)
    assert second.features.encoder is not first.features.encoder


class TestCameras:
    def test_renamed_ones_are_served_under_the_policys_names(
        self, rich_dataset: Path, rich_cache: FeatureCache, root: str
    ) -> None:
        config = train_config(rich_dataset, act(features="cached", cache_root=root, token_pool=7))
        config.rename_map = {TOP: "observation.images.front"}
        train, _ = serve_features(config, lerobots_own)
        item = train[2]
        assert (item["observation.theia.images.front"] == rich_cache.gather(TOP, [2])[0]).all()
        assert "observation.theia.images.front" in train.meta.stats
        assert tokens_key(WRIST) in item and tokens_key(TOP) not in item

    def test_only_those_the_policy_looks_at_are_served(self, rich_dataset: Path, root: str) -> None:
        policy = act(features="cached", cache_root=root, token_pool=7)
        policy.input_features = {WRIST: PolicyFeature(FeatureType.VISUAL, (3, 32, 32))}
        train, _ = serve_features(train_config(rich_dataset, policy), lerobots_own)
        assert tokens_key(WRIST) in train[0] and tokens_key(TOP) not in train[0]

    def test_two_under_one_name_are_refused(self, rich_dataset: Path, root: str) -> None:
        config = train_config(rich_dataset, act(cache_root=root, token_pool=7))
        config.rename_map = {WRIST: TOP}
        with pytest.raises(ValueError, match=rf"calls camera '{TOP}' '{TOP}', as '{WRIST}' is called, too"):
            serve_features(config, lerobots_own)
        config.rename_map = {WRIST: TOP, TOP: WRIST}
        assert isinstance(serve_features(config, lerobots_own)[0], FeatureDataset)

    def test_a_window_that_does_not_tile_the_grid_is_refused(self, rich_dataset: Path, root: str) -> None:
        config = train_config(rich_dataset, act(cache_root=root, token_pool=3))
        with pytest.raises(ValueError, match=r"--policy\.token_pool=3: .*14x14 .*\[1, 2, 7, 14\]"):
            serve_features(config, must_not_be_called)

    def test_a_fine_tuned_checkpoint_decides_which_and_in_which_order(
        self, rich_dataset: Path, root: str, tmp_path: Path
    ) -> None:
        """`--policy.type=theia_act --policy.pretrained_path=<checkpoint>`: LeRobot would take all that the dataset has."""
        front = "observation.images.front"
        policy = act(token_pool=7)
        policy.input_features = {front: PolicyFeature(FeatureType.VISUAL, (3, 32, 32))}
        policy.output_features = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
        TheiaACTPolicy(policy, dataset_stats=token_statistics({front: (32, 32)})).save_pretrained(tmp_path)
        config = train_config(
            rich_dataset, act(cache_root=root, token_pool=7, pretrained_path=tmp_path, features="cached")
        )
        config.rename_map = {WRIST: front}
        train, _ = serve_features(config, lerobots_own)
        assert list(train.cameras.values()) == [front] == list(config.policy.image_features)

    def test_a_checkpoint_of_another_policy_is_refused(self, rich_dataset: Path, tmp_path: Path) -> None:
        ACTConfig(push_to_hub=False, device="cpu")._save_pretrained(tmp_path)
        config = train_config(rich_dataset, act(pretrained_path=tmp_path))
        with pytest.raises(ValueError, match=r"is a policy of type 'act', and --policy\.type is 'theia_act'"):
            serve_features(config, must_not_be_called)

    def test_one_the_dataset_does_not_have_is_named(self, rich_dataset: Path, root: str) -> None:
        policy = act(features="cached", cache_root=root)
        policy.input_features = {"observation.images.nose": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))}
        with pytest.raises(
            ValueError, match=r"looks at cameras \['observation\.images\.nose'\].*--rename_map"
        ):
            serve_features(train_config(rich_dataset, policy), lerobots_own)


class TestStatistics:
    @pytest.mark.parametrize("dataset", ["video_dataset", "rich_dataset"])
    def test_a_sample_of_everything_has_the_caches_statistics(
        self, dataset: str, tiny_encoder: TheiaEncoder, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        from tests.data_room.conftest import cache_of

        root = request.getfixturevalue(dataset)
        names = {TOP: "observation.images.front"}
        cache = cache_of(root, tmp_path, dtype="float32", cameras=(TOP,))
        exact = statistics_of_cache(cache, names)
        sampled = statistics_of_sample(open_dataset(root), tiny_encoder, names, pool=7)
        assert exact.keys() == sampled.keys() == {"observation.theia.images.front"}
        for name in ("mean", "std"):
            found, wanted = sampled[tokens_key(names[TOP])][name], exact[tokens_key(names[TOP])][name]
            assert found.dtype == wanted.dtype == np.float32 and found.shape == (192,)
            np.testing.assert_allclose(found, wanted, atol=2e-5)

    def test_a_sample_sees_only_the_selected_episodes(
        self, rich_dataset: Path, rich_cache: FeatureCache, tiny_encoder: TheiaEncoder
    ) -> None:
        plain = open_dataset(rich_dataset, episodes=[2])  # frames 5..8
        sampled = statistics_of_sample(plain, tiny_encoder, {WRIST: WRIST}, pool=7)[tokens_key(WRIST)]
        tokens = rich_cache.gather(WRIST, range(5, 9)).float().flatten(0, 1)
        np.testing.assert_allclose(sampled["mean"], tokens.mean(0).numpy(), atol=2e-3)


class TestSeam:
    @pytest.fixture(autouse=True)
    def put_back(self) -> Iterator[None]:
        modules = [factory, sys.modules["lerobot.datasets"]]
        before = [getattr(module, seam.NAME, None) for module in modules]
        yield
        for module, function in zip(modules, before, strict=True):
            if function is not None:
                setattr(module, seam.NAME, function)

    @pytest.fixture
    def script(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        """A stand-in for LeRobot's training script, which holds the name."""
        module = ModuleType(seam.TRAIN_SCRIPT)
        module.make_train_eval_datasets = lerobot_style  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, seam.TRAIN_SCRIPT, module)
        return module

    def test_a_theia_config_installs_it_once(self, script: ModuleType) -> None:
        act()
        bound = script.make_train_eval_datasets
        assert bound.lerobot_function is lerobot_style
        seam.install()
        act()
        assert script.make_train_eval_datasets is bound

    def test_lerobots_real_script_has_the_shape_it_knows(self) -> None:
        own = lerobot_function()
        assert list(inspect.signature(own).parameters) == ["cfg"]
        source = Path(factory.__file__).parents[1] / "scripts" / "lerobot_train.py"
        assert f"{seam.NAME}(cfg)" in source.read_text()

    def test_other_policies_get_lerobots_answer_untouched(self, script: ModuleType) -> None:
        seam.install()
        config = train_config(Path("/nowhere"), ACTConfig(push_to_hub=False, device="cpu"))
        assert script.make_train_eval_datasets(config) is ANSWER

    def test_the_factory_is_bound_too(self, script: ModuleType) -> None:
        seam.install()
        assert hasattr(factory.make_train_eval_datasets, "lerobot_function")

    def test_a_script_run_as_main_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        main = ModuleType("__main__")
        main.__spec__ = type("Spec", (), {"name": seam.TRAIN_SCRIPT})()
        main.make_train_eval_datasets = lerobot_style  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "__main__", main)
        seam.install()
        assert main.make_train_eval_datasets.lerobot_function is lerobot_style  # type: ignore[attr-defined]

    @pytest.mark.parametrize("version", ["0.6.0", "0.7.0", "1.0"])
    def test_another_lerobot_is_refused(self, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
        with pytest.raises(seam.SeamError, match=rf"LeRobot {version} is installed; this plugin works with"):
            act()

    def test_a_script_without_the_function_is_refused(self, script: ModuleType) -> None:
        del script.make_train_eval_datasets
        with pytest.raises(seam.SeamError, match=r"has no make_train_eval_datasets"):
            act()

    def test_a_changed_signature_is_refused(self, script: ModuleType) -> None:
        script.make_train_eval_datasets = lambda cfg, accelerator: None  # type: ignore[attr-defined]
        with pytest.raises(seam.SeamError, match=r"takes \['cfg', 'accelerator'\], expected \['cfg'\]"):
            act()

    def test_a_changed_answer_is_refused(self, rich_dataset: Path) -> None:
        with pytest.raises(TypeError, match="expected two datasets"):
            serve_features(train_config(rich_dataset), lambda cfg: (1, 2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"features": "sometimes"}, "choose one of auto, cached, online"), ({"token_pool": 0}, "at least 1")],
)
def test_wrong_settings_are_refused_by_the_config(change: dict, message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        act(**change)


ANSWER = ("training", "held out")


def lerobot_style(cfg: Any) -> tuple:
    return ANSWER
