"""Training from augmented views: which view a sample is served in, and who sees the plain frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor
from torch.utils.data import DataLoader

from lerobot_theia.cache import CacheMismatchError, FeatureCache
from lerobot_theia.data.feature_dataset import FeatureDataset
from lerobot_theia.data.keys import frame_key, tokens_key
from lerobot_theia.data.residency import LoadedTokens, load_tokens
from lerobot_theia.data.serve import frames_of, serve_features
from lerobot_theia.data.token_statistics import statistics_of_cache
from lerobot_theia.policies.common.configuration import InvalidSettingError
from tests.data_room.conftest import act, cache_of, train_config
from tests.data_room.test_serve import lerobots_own
from tests.datasets import CAMERAS, open_dataset

TOP, WRIST = CAMERAS
SAME_NAMES = {camera: camera for camera in CAMERAS}
VIEWS = 4


@pytest.fixture(scope="module", params=["float16", "int8"])
def cache(request, rich_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return cache_of(rich_dataset, tmp_path_factory.mktemp("views"), dtype=request.param, views=VIEWS)


@pytest.fixture
def windows(rich_dataset: Path) -> LeRobotDataset:
    return open_dataset(rich_dataset, delta_timestamps={camera: [-0.1, 0] for camera in CAMERAS})


def view_of(cache: FeatureCache, camera: str, frame: int, tokens: Tensor) -> int:
    """The view of a frame that stored tokens (N, D) are; each is another."""
    frames, views = np.full(VIEWS, frame), np.arange(VIEWS)
    every = cache.gather_stored(camera, frames, views=views).tokens
    found = [view for view in range(VIEWS) if torch.equal(every[view], tokens)]
    assert len(found) == 1
    return found[0]


def views_of(cache: FeatureCache, batch: dict[str, Any], camera: str) -> list[list[int]]:
    """Of each frame of each window of a batch; the window is the frame before and the frame itself."""
    return [
        [
            view_of(cache, camera, int(index) - (1 if step == 0 and not pad[0] else 0), window[step])
            for step in range(2)
        ]
        for index, pad, window in zip(
            batch["index"], batch[f"{camera}_is_pad"], batch[tokens_key(camera)], strict=True
        )
    ]


def test_a_window_is_served_in_one_view_and_samples_in_all(
    cache: FeatureCache, windows: LeRobotDataset
) -> None:
    dataset = FeatureDataset(windows, cache, SAME_NAMES, views=VIEWS)
    rng = np.random.default_rng(0)
    seen: dict[str, list[int]] = {camera: [] for camera in CAMERAS}
    for _ in range(8):
        batch = dataset.gather(rng.permutation(15).tolist())
        for camera in CAMERAS:
            drawn = views_of(cache, batch, camera)
            assert all(before == now for before, now in drawn)
            seen[camera] += [now for _, now in drawn]
    for camera in CAMERAS:
        assert np.bincount(seen[camera], minlength=VIEWS).min() > 15  # 30 each
    assert 0.1 < np.mean(np.array(seen[TOP]) == np.array(seen[WRIST])) < 0.45  # cameras draw for themselves


def test_the_same_samples_come_in_other_views_in_another_order(
    cache: FeatureCache, windows: LeRobotDataset
) -> None:
    """As in the next epoch. A batch that comes again, as after a resume, is the same."""
    dataset = FeatureDataset(windows, cache, SAME_NAMES, views=VIEWS)
    first, again, shuffled = (
        dataset.gather(rows) for rows in ([0, 3, 6, 9, 12], [0, 3, 6, 9, 12], [12, 9, 6, 3, 0])
    )
    key = tokens_key(TOP)
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], shuffled[key].flip(0))


@pytest.mark.parametrize("used", [2, VIEWS])
@pytest.mark.parametrize("residency", ["memory", "device"])
def test_memory_and_device_serve_what_disk_serves(
    cache: FeatureCache, windows: LeRobotDataset, residency: str, used: int
) -> None:
    rows = [5, 0, 5, 7, 14]
    frames = frames_of(windows.meta, windows, views=used)
    loaded: LoadedTokens = load_tokens(cache, list(CAMERAS), torch.device("cpu"), frames)
    disk = FeatureDataset(windows, cache, SAME_NAMES, views=used).gather(rows)
    where = {"tokens": loaded} if residency == "memory" else {"on_device": frames}
    batch = FeatureDataset(windows, cache, SAME_NAMES, views=used, **where).gather(rows)
    for camera in CAMERAS:
        found = batch.get(tokens_key(camera))
        if residency == "device":
            found = loaded.take(camera, batch[frame_key(camera)].flatten()).tokens
        assert torch.equal(found.view_as(disk[tokens_key(camera)]), disk[tokens_key(camera)])


def test_workers_serve_what_one_process_does(cache: FeatureCache, windows: LeRobotDataset) -> None:
    dataset = FeatureDataset(windows, cache, SAME_NAMES, views=VIEWS)
    batches = [
        [batch[tokens_key(TOP)].clone() for batch in DataLoader(dataset, batch_size=4, num_workers=workers)]
        for workers in (0, 2)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))


class TestSettings:
    def serve(self, dataset: Path, cache: FeatureCache, batch_size: int = 8, **changes: Any) -> tuple:
        fields: dict[str, Any] = {
            "cache_root": str(cache.path.parents[1]), "token_pool": 7, "cache_residency": "disk",
        }  # fmt: skip
        config = train_config(dataset, act(**fields | changes), eval_split=0.4)
        config.batch_size = batch_size
        return serve_features(config, lerobots_own)

    def test_training_draws_from_all_views_and_held_out_frames_are_plain(
        self, cache: FeatureCache, rich_dataset: Path
    ) -> None:
        train, held_out = self.serve(rich_dataset, cache)
        assert (train.views, held_out.views) == (VIEWS, 1)
        batch = held_out.gather([*range(len(held_out))])
        plain = cache.gather_stored(TOP, batch["index"].numpy())
        assert torch.equal(batch[tokens_key(TOP)], plain.tokens)
        wanted = statistics_of_cache(cache, {TOP: TOP})[tokens_key(TOP)]["mean"]
        np.testing.assert_array_equal(train.meta.stats[tokens_key(TOP)]["mean"], wanted)

    def test_cache_views_1_trains_on_plain_frames(self, cache: FeatureCache, rich_dataset: Path) -> None:
        train, _ = self.serve(rich_dataset, cache, cache_views=1)
        batch = train.gather([*range(len(train))])
        plain = cache.gather_stored(WRIST, batch["index"].numpy())
        assert torch.equal(batch[tokens_key(WRIST)], plain.tokens)

    def test_more_views_than_the_cache_has_are_refused(self, cache: FeatureCache, rich_dataset: Path) -> None:
        with pytest.raises(CacheMismatchError, match=r"views: wanted 9, it has 4[\s\S]*augment\.views=9"):
            self.serve(rich_dataset, cache, cache_views=9)

    def test_views_do_not_go_with_online_frames(self, cache: FeatureCache, rich_dataset: Path) -> None:
        with pytest.raises(ValueError, match=r"--policy.cache_views=2 needs a cache, .*features=online"):
            self.serve(rich_dataset, cache, cache_views=2, features="online")

    def test_batches_of_one_sample_are_refused(self, cache: FeatureCache, rich_dataset: Path) -> None:
        """Which view is drawn depends on the samples that come together."""
        with pytest.raises(ValueError, match=r"--batch_size=1 would see the same one of 4 views"):
            self.serve(rich_dataset, cache, batch_size=1)

    @pytest.mark.parametrize("views", [0, 65])
    def test_numbers_out_of_range_are_refused(self, views: int) -> None:
        with pytest.raises(InvalidSettingError, match=f"cache_views={views} must be 1 to 64"):
            act(cache_views=views)
