"""A cache holds what the encoder makes of the dataset's frames, in every storage type and from both sources."""

import itertools
import pickle  # noqa: TID251 (to hand a cache to loader workers, as torch does)
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lerobot_theia.cache import FeatureCache, paging, reader
from lerobot_theia.cache.paging import read_ahead
from lerobot_theia.cache.pooling import pool_tokens
from lerobot_theia.encoder import TheiaEncoder
from tests.cache.helpers import TOP, WRIST, run
from tests.datasets import CAMERAS, open_dataset


def tokens_of(dataset_root: Path, camera: str, encoder: TheiaEncoder, pool: int = 1) -> Tensor:
    """What the cache must hold, by the plain path: LeRobot's items through the encoder."""
    dataset = open_dataset(dataset_root)
    frames = torch.stack([dataset[i][camera] for i in range(len(dataset))])
    assert frames.shape[2:] == CAMERAS[camera]
    return pool_tokens(encoder(frames), pool)


@pytest.fixture(scope="module")
def wanted(video_dataset: Path, tiny_encoder: TheiaEncoder) -> dict[str, Tensor]:
    return {camera: tokens_of(video_dataset, camera, tiny_encoder) for camera in CAMERAS}


def test_frames_differ_so_that_a_wrong_one_shows(wanted: dict[str, Tensor]) -> None:
    for tokens in wanted.values():
        distances = torch.cdist(tokens.flatten(1), tokens.flatten(1)) + torch.eye(len(tokens)) * 1e9
        assert distances.min() > 1


@pytest.mark.parametrize("camera", CAMERAS)
def test_float16_tokens_of_videos_are_the_encoders(
    video_cache: FeatureCache, wanted: dict[str, Tensor], camera: str
) -> None:
    found = video_cache.gather(camera, range(16))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), wanted[camera], rtol=2**-10, atol=1e-4)


def test_tokens_of_images_are_the_encoders(
    image_dataset: Path, tiny_encoder: TheiaEncoder, tmp_path: Path
) -> None:
    cache = FeatureCache.open(run(image_dataset, tmp_path, dtype="float32")[0].path)
    for camera in CAMERAS:
        wanted = tokens_of(image_dataset, camera, tiny_encoder)
        torch.testing.assert_close(cache.gather(camera, range(16)), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", {"rtol": 0, "atol": 2e-5}), ("bfloat16", {"rtol": 2**-8, "atol": 1e-4})],
)
def test_float_types_round_and_no_more(
    video_dataset: Path, wanted: dict[str, Tensor], tmp_path: Path, dtype: str, tolerance: dict
) -> None:
    cache = FeatureCache.open(run(video_dataset, tmp_path, dtype=dtype, cameras=(WRIST,))[0].path)
    found = cache.gather(WRIST, range(16))
    assert found.dtype == getattr(torch, dtype)
    torch.testing.assert_close(found.float(), wanted[WRIST], **tolerance)


def test_int8_keeps_direction_and_half_a_step(
    video_dataset: Path, wanted: dict[str, Tensor], tmp_path: Path
) -> None:
    cache = FeatureCache.open(run(video_dataset, tmp_path, dtype="int8", cameras=(TOP,))[0].path)
    found = cache.gather(TOP, range(16))
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, wanted[TOP], dim=-1).min() >= 0.999
    half_step = wanted[TOP].abs().amax(-1, keepdim=True) / 127 / 2
    assert ((found - wanted[TOP]).abs() <= half_step * 1.01 + 2e-5).all()


def test_pooling_averages_windows_of_the_grid(
    video_dataset: Path, tiny_encoder: TheiaEncoder, wanted: dict[str, Tensor], tmp_path: Path
) -> None:
    cache = FeatureCache.open(run(video_dataset, tmp_path, dtype="float32", pool=2, cameras=(TOP,))[0].path)
    assert cache.token_shape == (49, 192)
    found = cache.gather(TOP, [3])
    grid = wanted[TOP][3].view(14, 14, 192)
    torch.testing.assert_close(found[0, 8], grid[2:4, 2:4].mean((0, 1)), rtol=0, atol=2e-5)
    torch.testing.assert_close(found, pool_tokens(wanted[TOP][3:4], 2), rtol=0, atol=2e-5)


def test_batch_size_changes_no_token_beyond_rounding(video_dataset: Path, tmp_path: Path) -> None:
    caches = [
        FeatureCache.open(
            run(video_dataset, tmp_path / str(size), dtype="float32", cameras=(WRIST,), batch_size=size)[
                0
            ].path
        )
        for size in (1, 5)
    ]
    one, five = (cache.gather(WRIST, range(16)) for cache in caches)
    torch.testing.assert_close(one, five, rtol=0, atol=2e-5)


@pytest.mark.parametrize("camera", CAMERAS)
def test_manifest_statistics_are_those_of_the_stored_tokens(video_cache: FeatureCache, camera: str) -> None:
    tokens = video_cache.gather(camera, range(16)).double().flatten(0, 1)
    statistics = video_cache.manifest.statistics[camera]
    np.testing.assert_allclose(statistics.mean, tokens.mean(0).numpy(), atol=1e-6)
    np.testing.assert_allclose(statistics.std, tokens.std(0, correction=0).numpy(), atol=1e-6)


class TestGather:
    def test_takes_rows_in_any_order_and_more_than_once(self, video_cache: FeatureCache) -> None:
        order = [15, 0, 13, 12, 13]
        all_rows = video_cache.gather(TOP, range(16))
        assert torch.equal(video_cache.gather(TOP, order), all_rows[order])
        assert torch.equal(video_cache.gather(TOP, torch.tensor(order)), all_rows[order])

    def test_reading_ahead_changes_nothing(
        self, video_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows that have to come from disk are asked for ahead; that is advice, and no other way to read."""
        # The shared cache may itself be reading ahead, after a real wait in another test: it answers unwatched.
        wanted = video_cache.gather(TOP, [9, 4])
        cache = FeatureCache.open(video_cache.path)
        waits = itertools.count()
        monkeypatch.setattr(reader, "waits_for_disk", lambda: next(waits))
        advised: list[int] = []
        monkeypatch.setattr(reader, "read_ahead", lambda row: (advised.append(row.nbytes), read_ahead(row)))
        assert torch.equal(cache.gather(TOP, [9, 4]), wanted) and not advised
        assert torch.equal(cache.gather(TOP, [9, 4]), wanted) and advised == [196 * 192 * 2] * 2

    def test_large_results_in_huge_pages_are_right(
        self, video_cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(paging, "HUGE_FROM_BYTES", 1)
        rows = [*range(16)] * 4
        assert torch.equal(video_cache.gather(TOP, rows), video_cache.gather(TOP, range(16)).repeat(4, 1, 1))

    def test_goes_where_the_caller_wants_it(self, video_cache: FeatureCache) -> None:
        made: list[torch.Tensor] = []

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            made.append(torch.empty(shape, dtype=dtype).share_memory_())
            return made[-1]

        stored = video_cache.gather_stored(TOP, np.array([3, 1]), empty)
        assert stored.tokens is made[0] and stored.tokens.is_shared()
        assert torch.equal(stored.tokens, video_cache.gather(TOP, [3, 1]))

    def test_of_nothing_is_nothing(self, video_cache: FeatureCache) -> None:
        assert video_cache.gather(TOP, []).shape == (0, 196, 192)

    @pytest.mark.parametrize("index", [-1, 16, 2**40])
    def test_refuses_frames_outside_the_dataset(self, video_cache: FeatureCache, index: int) -> None:
        with pytest.raises(IndexError, match=r"holds 0\.\.15"):
            video_cache.gather(TOP, [0, index])

    def test_refuses_an_unknown_camera_and_names_those_there_are(self, video_cache: FeatureCache) -> None:
        with pytest.raises(KeyError, match=r"no camera 'nose'.*observation\.images\.wrist"):
            video_cache.gather("nose", [0])

    def test_result_is_a_copy(self, video_cache: FeatureCache) -> None:
        before = video_cache.gather(TOP, [4]).clone()
        video_cache.gather(TOP, [4]).zero_()
        assert torch.equal(video_cache.gather(TOP, [4]), before)

    def test_keeps_no_file_open(self, video_cache: FeatureCache) -> None:
        cache = FeatureCache.open(video_cache.path)
        descriptors = Path("/proc/self/fd")
        if not descriptors.is_dir():
            pytest.skip("needs /proc")
        cache.gather(TOP, range(16))
        open_files = [str(link.readlink()) for link in descriptors.iterdir() if link.is_symlink()]
        assert not [file for file in open_files if file.startswith(str(cache.path))]


def test_pickle_of_an_open_cache_carries_no_tokens(video_cache: FeatureCache) -> None:
    cache = FeatureCache.open(video_cache.path)
    wanted = cache.gather(TOP, range(16))
    data = pickle.dumps(cache)
    assert len(data) < 30_000 < wanted.numel()
    assert torch.equal(pickle.loads(data).gather(TOP, range(16)), wanted)  # noqa: S301
