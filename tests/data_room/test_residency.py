"""`--policy.cache_residency`: the same tokens wherever they are, and a clear answer where they do not fit."""

import contextlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy

from lerobot_theia.cache import CacheError, FeatureCache
from lerobot_theia.data.feature_dataset import FeatureDataset
from lerobot_theia.data.keys import frame_key, scale_key, tokens_key
from lerobot_theia.data.residency import FrameRuns, LoadedTokens, choose_residency, load_tokens
from lerobot_theia.data.serve import frames_of, serve_features
from lerobot_theia.policies.common.configuration import InvalidSettingError
from tests.data_room.conftest import act, cache_of, train_config
from tests.data_room.test_serve import lerobots_own
from tests.datasets import CAMERAS, open_dataset

SAME_NAMES = {camera: camera for camera in CAMERAS}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["float16", "int8"])
def cache(request, rich_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return cache_of(rich_dataset, tmp_path_factory.mktemp("caches"), dtype=request.param)


@pytest.fixture
def plain(rich_dataset: Path) -> LeRobotDataset:
    windows = {camera: [-0.1, 0] for camera in CAMERAS}
    return open_dataset(rich_dataset, delta_timestamps=windows, episodes=[1, 3, 4])


def memory_of(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


def selected(cache: FeatureCache, plain: LeRobotDataset) -> LoadedTokens:
    return load_tokens(cache, list(CAMERAS), CPU, frames_of(plain.meta, plain))


def test_memory_serves_the_batches_that_disk_serves(cache: FeatureCache, plain: LeRobotDataset) -> None:
    rows = [5, 0, 5, 7, 2]
    disk = FeatureDataset(plain, cache, SAME_NAMES).gather(rows)
    for loaded in (load_tokens(cache, list(CAMERAS), CPU), selected(cache, plain)):
        memory = FeatureDataset(plain, cache, SAME_NAMES, tokens=loaded).gather(rows)
        assert disk.keys() == memory.keys()
        for key, value in disk.items():
            assert (
                torch.equal(value, memory[key]) if isinstance(value, torch.Tensor) else value == memory[key]
            )


def test_device_moves_only_rows_and_the_policy_finds_the_same_tokens(
    cache: FeatureCache, plain: LeRobotDataset
) -> None:
    rows = [5, 0, 5, 7, 2]
    loaded = selected(cache, plain)
    disk = FeatureDataset(plain, cache, SAME_NAMES).gather(rows)
    batch = FeatureDataset(plain, cache, SAME_NAMES, on_device=loaded.frames).gather(rows)
    for camera in CAMERAS:
        assert tokens_key(camera) not in batch
        assert scale_key(camera) not in batch
        stored = loaded.take(camera, batch[frame_key(camera)].flatten())
        assert torch.equal(stored.tokens.view(disk[tokens_key(camera)].shape), disk[tokens_key(camera)])


class TestSelectedFrames:
    """The dataset's episodes have 3, 2, 4, 2 and 4 frames."""

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=8), data=st.data())
    def test_rows_count_the_frames_of_the_selected_episodes(self, lengths: list[int], data: Any) -> None:
        episodes = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1))
        stops = np.cumsum(lengths)
        starts = stops - lengths
        runs = FrameRuns.of_episodes(starts, stops, episodes)
        wanted = np.concatenate([np.arange(starts[each], stops[each]) for each in sorted(set(episodes))])
        assert len(runs) == len(wanted)
        np.testing.assert_array_equal(runs.rows(wanted), np.arange(len(wanted)))

    @pytest.mark.parametrize("residency", ["memory", "device"])
    def test_only_their_tokens_are_loaded(
        self, residency: str, rich_dataset: Path, rich_cache: FeatureCache, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        policy = act(
            cache_root=str(rich_cache.path.parents[1]),
            token_pool=7,
            features="cached",
            cache_residency=residency,
        )
        config = train_config(rich_dataset, policy, episodes=[0, 3, 4], eval_split=0.4)
        train, held_out = serve_features(config, lerobots_own)
        loaded = policy.tokens_on_device if residency == "device" else train._source
        for camera in CAMERAS:
            assert torch.equal(loaded.tables[camera].tokens[:3], rich_cache.gather(camera, range(3)))
            assert torch.equal(loaded.tables[camera].tokens[3:], rich_cache.gather(camera, range(9, 15)))
        assert "27.65 kB of tokens in 9 rows" in caplog.text
        if residency == "memory":
            assert held_out._source is train._source
        assert sorted([*train.episodes, *held_out.episodes]) == [0, 3, 4]

    def test_what_fits_is_counted_in_them(
        self, rich_dataset: Path, rich_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = 2 * 4 * 192 * 2  # cameras x tokens x channels x bytes, of one frame
        memory_of(monkeypatch, 3 * size)
        root = str(rich_cache.path.parents[1])
        for episodes, fits in (([0], True), ([2], False)):
            policy = act(cache_root=root, token_pool=7, features="cached", cache_residency="memory")
            config = train_config(rich_dataset, policy, episodes=episodes)
            with (
                contextlib.nullcontext()
                if fits
                else pytest.raises(CacheError, match="cache_residency=memory needs")
            ):
                serve_features(config, lerobots_own)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the kernel lists no maps")
def test_loading_leaves_no_shard_mapped(cache: FeatureCache) -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(str(cache.path))

    opened, before = FeatureCache.open(cache.path), maps()
    load_tokens(opened, list(CAMERAS), CPU)
    assert maps() == before
    opened.gather(next(iter(CAMERAS)), [0])
    assert maps() > before


@pytest.mark.parametrize("residency", ["disk", "memory", "device"])
def test_the_loss_of_a_batch_is_the_same_wherever_the_tokens_are(
    residency: str, rich_dataset: Path, rich_cache: FeatureCache
) -> None:
    root = str(rich_cache.path.parents[1])
    losses = []
    for where in ("disk", residency):
        settings = act(
            cache_root=root,
            token_pool=7,
            features="cached",
            cache_residency=where,
            use_vae=False,
            dropout=0.0,
        )
        config = train_config(rich_dataset, settings)
        dataset, _ = serve_features(config, lerobots_own)
        torch.manual_seed(0)
        policy = make_policy(config.policy, ds_meta=dataset.meta)
        batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
        # One-number states are vectors of one for a policy; LeRobot's processor adds the dimension for robots only.
        batch["observation.state"] = batch["observation.state"].view(4, 1)
        losses.append(policy.train().forward(batch)[0].item())
        assert not any("frame" in name or "table" in name for name in policy.state_dict())
    assert losses[0] == losses[1]


def test_auto_takes_memory_if_half_of_it_is_enough_and_says_why(
    rich_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    size = 2 * len(rich_cache) * 4 * 192 * 2  # cameras x frames x tokens x channels x bytes
    caplog.set_level(logging.INFO)
    memory_of(monkeypatch, 2 * size)
    assert choose_residency("auto", rich_cache, list(CAMERAS), len(rich_cache), CPU) == "memory"
    memory_of(monkeypatch, 2 * size - 1)
    assert choose_residency("auto", rich_cache, list(CAMERAS), len(rich_cache), CPU) == "disk"
    memory_of(monkeypatch, 100 * size)
    assert choose_residency("auto", rich_cache, list(CAMERAS), len(rich_cache), CPU, num_workers=2) == "disk"
    assert "kB of tokens" in caplog.text
    assert "of memory free" in caplog.text


@pytest.mark.parametrize("residency", ["memory", "device"])
def test_what_does_not_fit_is_refused_with_both_numbers_before_loading(
    residency: str, rich_dataset: Path, rich_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_of(monkeypatch, 1000)
    root = str(rich_cache.path.parents[1])
    settings = act(cache_root=root, token_pool=7, features="cached", cache_residency=residency)
    monkeypatch.setattr("lerobot_theia.data.serve.load_tokens", lambda *_: pytest.fail("loaded"))
    with pytest.raises(CacheError, match=rf"cache_residency={residency} needs .* kB, 1 kB are free"):
        serve_features(train_config(rich_dataset, settings), lerobots_own)


def test_processes_of_one_machine_share_its_memory(
    rich_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 * len(rich_cache) * 4 * 192 * 2
    memory_of(monkeypatch, 2 * size)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_residency("auto", rich_cache, list(CAMERAS), len(rich_cache), CPU) == "disk"


def test_those_beside_a_runs_first_process_find_its_copy_loaded(
    rich_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot lets the first load before the others: of 4 copies' worth it leaves 3 to the second, who needs half of that."""
    size = 2 * len(rich_cache) * 4 * 192 * 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    found = []
    for rank, left in (("0", 4 * size), ("1", 3 * size)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        memory_of(monkeypatch, left)
        found.append(choose_residency("auto", rich_cache, list(CAMERAS), len(rich_cache), CPU))
    assert found == ["memory", "memory"]
    monkeypatch.setenv("RANK", "3")  # of another machine, where two begin at once
    assert choose_residency("auto", rich_cache, list(CAMERAS), len(rich_cache), CPU) == "disk"


def test_for_workers_tokens_are_loaded_into_shared_memory(rich_cache: FeatureCache) -> None:
    for shared in (False, True):
        loaded = load_tokens(rich_cache, list(CAMERAS), CPU, shared=shared)
        assert all(table.tokens.is_shared() == shared for table in loaded.tables.values())


def test_an_unknown_residency_lists_the_known_ones() -> None:
    with pytest.raises(InvalidSettingError, match="auto, disk, memory, device"):
        act(cache_residency="gpu")


def test_frame_indices_for_a_policy_without_tokens_are_refused() -> None:
    from tests.policies.conftest import make_policy, training_batch

    policy = make_policy("theia_act").train()
    batch = training_batch(policy)
    del batch["observation.image"]
    batch[frame_key("observation.image")] = torch.from_numpy(np.arange(2))
    with pytest.raises(RuntimeError, match="cache_residency=device"):
        policy.forward(batch)
