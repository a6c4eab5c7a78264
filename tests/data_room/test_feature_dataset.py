"""FeatureDataset's items are LeRobotDataset's, but for cameras: these are tokens of the very same frames."""

import pickle  # noqa: TID251 (to hand a dataset to loader workers, as torch does)
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot.datasets import EpisodeAwareSampler
from torch.utils.data import DataLoader, Subset, default_collate

from lerobot_theia.cache import CacheDamagedError, FeatureCache
from lerobot_theia.data import batch
from lerobot_theia.data.feature_dataset import FeatureDataset
from lerobot_theia.data.keys import scale_key, tokens_key
from lerobot_theia.data.residency import LoadedTokens, load_tokens
from tests.cache.helpers import copy_of
from tests.data_room.conftest import cache_of
from tests.datasets import CAMERAS, column, make_dataset, open_dataset

TOP, WRIST = CAMERAS
SAME_NAMES = {camera: camera for camera in CAMERAS}
FPS, EPISODES = 10, 5
DELTA_KEYS = (TOP, WRIST, "observation.state", "observation.matrix", "observation.double", "action",
              "next.done", "count", "flags")  # fmt: skip

windows = st.lists(st.integers(-6, 6), min_size=1, max_size=4)
deltas_of_keys = st.dictionaries(st.sampled_from(DELTA_KEYS), windows, max_size=5)
selections = st.none() | st.lists(st.integers(0, EPISODES - 1), min_size=1, max_size=EPISODES, unique=True)


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
        else:
            assert found[key] == value, key


def without_cameras(item: dict[str, Any]) -> dict[str, Any]:
    tokens = {key for camera in CAMERAS for key in (camera, tokens_key(camera), scale_key(camera))}
    return {key: value for key, value in item.items() if key not in tokens}


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(episodes=selections, deltas=deltas_of_keys | st.none(), data=st.data())
def test_items_and_batches_are_lerobots_own(
    rich_dataset: Path, rich_cache: FeatureCache, episodes: list[int] | None, deltas: dict | None, data: Any
) -> None:
    seconds = deltas and {key: [step / FPS for step in steps] for key, steps in deltas.items()}
    plain = open_dataset(rich_dataset, episodes=episodes, delta_timestamps=seconds)
    served = FeatureDataset(plain, rich_cache, SAME_NAMES)
    assert len(served) == len(plain) == served.num_frames == plain.num_frames
    assert served.num_episodes == plain.num_episodes and served.episodes == plain.episodes

    indices = data.draw(st.lists(st.integers(0, len(plain) - 1), min_size=1, max_size=4))
    wanted = [without_cameras(plain[i]) for i in indices]
    found = [served[i] for i in indices]
    for mine, lerobots in zip(found, wanted, strict=True):
        assert_same(without_cameras(mine), lerobots)
    [batch] = DataLoader(served, batch_size=len(indices), sampler=indices)
    assert_same(without_cameras(batch), default_collate(wanted))

    starts, stops = (plain.meta.episodes[f"dataset_{side}_index"] for side in ("from", "to"))
    for camera in CAMERAS:
        for item, lerobots in zip(found, wanted, strict=True):
            episode, frame = int(lerobots["episode_index"]), int(lerobots["index"])
            steps = np.array((deltas or {}).get(camera, [0]))
            reached = np.clip(frame + steps, starts[episode], stops[episode] - 1)
            tokens = rich_cache.gather(camera, reached)
            tokens = tokens if camera in (deltas or {}) else tokens[0]
            assert torch.equal(item[tokens_key(camera)], tokens)
            assert camera not in item
        assert torch.equal(
            batch[tokens_key(camera)], torch.stack([item[tokens_key(camera)] for item in found])
        )


@pytest.fixture
def served(rich_dataset: Path, rich_cache: FeatureCache) -> FeatureDataset:
    plain = open_dataset(rich_dataset, delta_timestamps={"action": [0, 0.1], TOP: [-0.1, 0]})
    return FeatureDataset(plain, rich_cache, SAME_NAMES)


def test_tokens_at_an_episodes_border_repeat_its_frame_and_say_so(
    served: FeatureDataset, rich_cache: FeatureCache
) -> None:
    item = served[5]  # the first frame of episode 2
    assert item["episode_index"] == 2 and item["frame_index"] == 0
    assert item[f"{TOP}_is_pad"].tolist() == [True, False]
    assert torch.equal(item[tokens_key(TOP)], rich_cache.gather(TOP, [5, 5]))


def test_negative_indices_count_from_the_end(served: FeatureDataset) -> None:
    assert_same(served[-1], served[len(served) - 1])


@pytest.mark.parametrize("index", [15, -16])
def test_indices_outside_are_refused(served: FeatureDataset, index: int) -> None:
    with pytest.raises(IndexError, match="asked of 15"):
        served[index]


def test_a_subset_serves_batches_too(served: FeatureDataset) -> None:
    [batch] = DataLoader(Subset(served, [7, 2, 9]), batch_size=3)
    assert_same(batch, default_collate([served[i] for i in (7, 2, 9)]))


def test_what_the_training_loop_asks_for_is_there(served: FeatureDataset, rich_dataset: Path) -> None:
    plain = open_dataset(rich_dataset)
    assert served.meta.camera_keys == plain.meta.camera_keys
    assert served.features == plain.features and served.fps == FPS
    assert len(served.hf_dataset) == 15 and served.absolute_to_relative_idx is None


def test_cameras_can_be_renamed_and_left_out(rich_dataset: Path, rich_cache: FeatureCache) -> None:
    served = FeatureDataset(open_dataset(rich_dataset), rich_cache, {WRIST: "observation.images.hand"})
    item = served[3]
    assert torch.equal(item["observation.theia.images.hand"], rich_cache.gather(WRIST, [3])[0])
    assert not [key for key in item if "top" in key or "wrist" in key]


def test_int8_tokens_travel_with_their_scales(rich_dataset: Path, tmp_path: Path) -> None:
    cache = cache_of(rich_dataset, tmp_path, dtype="int8", cameras=(TOP,))
    served = FeatureDataset(open_dataset(rich_dataset, delta_timestamps={TOP: [0, 0.1]}), cache, {TOP: TOP})
    batch = served.gather([0, 5])
    tokens, scale = batch[tokens_key(TOP)], batch[scale_key(TOP)]
    assert tokens.dtype == torch.int8 and tokens.shape == (2, 2, 4, 192) and scale.shape == (2, 2, 4)
    wanted = cache.gather(TOP, [0, 1, 5, 6]).view(2, 2, 4, 192)
    assert torch.equal(tokens.float() * scale.unsqueeze(-1), wanted)


def test_text_columns_come_through(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "dataset", episodes=(2, 3), cameras={TOP: (32, 32)}, use_videos=False,
        extra_features={"note": column("string", 1)},
    )  # fmt: skip
    plain = open_dataset(root)
    served = FeatureDataset(plain, cache_of(root, tmp_path / "caches", pool=14), {TOP: TOP})
    for i in range(5):
        assert_same(without_cameras(served[i]), without_cameras(plain[i]))
    [batch] = DataLoader(served, batch_size=3, sampler=[4, 0, 2])
    assert_same(without_cameras(batch), default_collate([without_cameras(plain[i]) for i in (4, 0, 2)]))


@pytest.mark.parametrize("text", [False, True])
def test_a_worker_keeps_shared_memory_for_whole_batches_only(
    text: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are copied by the collate function: nobody would say when memory that they lay in is free again."""
    root = make_dataset(
        tmp_path / "dataset", episodes=(8, 8), cameras={TOP: (32, 32)}, use_videos=False,
        extra_features={"note": column("string", 1)} if text else {},
    )  # fmt: skip
    served = FeatureDataset(open_dataset(root), cache_of(root, tmp_path / "caches"), {TOP: TOP})
    slots = batch.Slots()
    monkeypatch.setattr(batch, "SLOTS", slots)
    monkeypatch.setattr(batch, "get_worker_info", lambda: "a worker's")
    monkeypatch.setattr(batch, "SMALL_BYTES", 1)
    for _ in range(3):
        _ = served.__getitems__([*range(16)]), served[3]
    assert len(slots.memory) == (0 if text else 3)


def test_a_cache_of_another_length_is_refused(video_dataset: Path, rich_cache: FeatureCache) -> None:
    with pytest.raises(ValueError, match=r"holds 15 frames, local/tiny has 16"):
        FeatureDataset(open_dataset(video_dataset), rich_cache, SAME_NAMES)


def test_pickle_for_workers_leaves_metadata_and_tokens_behind(served: FeatureDataset) -> None:
    wanted = served[6]
    data = pickle.dumps(served)
    copy = pickle.loads(data)  # noqa: S301
    assert copy.meta is None and copy.hf_dataset is None and served.meta is not None
    assert len(data) < 40_000
    assert_same(copy[6], wanted)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("residency", ["disk", "memory"])
def test_batches_and_their_order_are_the_same_for_any_number_of_workers_and_residency(
    residency: str, workers: int, rich_dataset: Path, rich_cache: FeatureCache
) -> None:
    """Over two epochs, with the sampler and the loader of `lerobot-train`."""
    plain = open_dataset(
        rich_dataset, delta_timestamps={"action": [0, 0.1], TOP: [-0.1, 0]}, episodes=[0, 2, 4]
    )

    def two_epochs(tokens: LoadedTokens | None, workers: int) -> list[dict[str, Any]]:
        served = FeatureDataset(plain, rich_cache, SAME_NAMES, tokens=tokens)
        sampler = EpisodeAwareSampler(
            plain.meta.episodes["dataset_from_index"],
            plain.meta.episodes["dataset_to_index"],
            episode_indices_to_use=plain.episodes,
            shuffle=True,
            absolute_to_relative_idx=plain.absolute_to_relative_idx,
        )
        loader = DataLoader(
            served, batch_size=4, sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
        )  # type: ignore[arg-type]  # fmt: skip
        return [*loader, *loader]

    wanted = two_epochs(None, 0)
    frames = sorted(index for batch in wanted for index in batch["index"].tolist())
    assert frames == sorted(2 * plain.hf_dataset["index"][:])
    tokens = load_tokens(rich_cache, list(CAMERAS), torch.device("cpu")) if residency == "memory" else None
    found = two_epochs(tokens, workers)
    assert len(found) == len(wanted) == 6
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_raised_with_its_traceback(
    workers: int, rich_dataset: Path, rich_cache: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(rich_cache, tmp_path)
    served = FeatureDataset(open_dataset(rich_dataset), cache, SAME_NAMES)
    shard = cache.path / TOP / "000000.safetensors"
    shard.unlink()
    loader = DataLoader(
        served, batch_size=4, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    with pytest.raises(CacheDamagedError, match=rf"{shard}") as raised:
        next(iter(loader))
    if workers:
        assert "Caught CacheDamagedError in DataLoader worker process 0" in str(raised.value)
        assert "in gather_stored" in str(raised.value)


@pytest.mark.slow
def test_spawned_workers_serve_the_same_batches(served: FeatureDataset) -> None:
    alone = list(DataLoader(served, batch_size=4))
    spawned = list(DataLoader(served, batch_size=4, num_workers=2, multiprocessing_context="spawn"))
    assert len(alone) == len(spawned) == 4
    for one, other in zip(alone, spawned, strict=True):
        assert_same(other, one)


def test_sending_the_dataset_to_a_worker_leaves_no_array_on_freed_memory(served: FeatureDataset) -> None:
    """Pickling for a process moves tensors to shared memory; arrays that view them would dangle, and read anything."""
    columns = [column.numpy() for column in served._columns.values() if column.numel()]
    arrays = [value for value in vars(served).values() if isinstance(value, np.ndarray)]
    arrays += [value for value in vars(served._episode_rows).values() if isinstance(value, np.ndarray)]
    assert len(arrays) >= 5
    assert not any(np.shares_memory(array, column) for array in arrays for column in columns)
