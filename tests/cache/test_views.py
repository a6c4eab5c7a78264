"""Augmented views: how they are drawn, what they show, and how a cache keeps them."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from lerobot_theia.cache import CacheMismatchError, FeatureCache
from lerobot_theia.cache.augment import Augment, View, draw, from_settings
from lerobot_theia.cache.catalog import CacheRequest, find_cache
from lerobot_theia.cache.pooling import pool_tokens
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.cache.repair import settings_of
from lerobot_theia.cache.views import all_views, apply
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.encoder.resize import resize
from tests.cache.helpers import TOP, WRIST, digests, run, shards
from tests.datasets import CAMERAS, open_dataset

VIEWS = 3
NOTHING = Augment(shift=0, scale=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0)
PLAIN = View(dx=0, dy=0, scale=1, brightness=1, contrast=1, saturation=1, hue=0, blur=0)


@pytest.fixture(scope="module")
def made(image_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureCache, str]:
    root = tmp_path_factory.mktemp("views")
    report, said = run(image_dataset, root, dtype="float32", pool=2, views=VIEWS)
    return FeatureCache.open(report.path), said


@pytest.fixture(scope="module")
def cache(made: tuple[FeatureCache, str]) -> FeatureCache:
    return made[0]


@pytest.fixture
def picture() -> Tensor:
    """(1, 3, 64, 64): a gradient with a red square on it."""
    ramp = torch.linspace(40, 200, 64).byte()
    frame = ramp.expand(3, 64, 64).clone()
    frame[:, 20:40, 20:40] = torch.tensor([220, 30, 30], dtype=torch.uint8).view(3, 1, 1)
    return frame[None]


class TestDrawing:
    @examples(max_examples=50, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 2**53 - 1),
        episode=st.integers(0, 10**6),
        view=st.integers(1, 63),
        reach=st.floats(0, 0.5),
    )
    def test_stays_within_the_ranges(self, seed: int, episode: int, view: int, reach: float) -> None:
        names = ("shift", "scale", "brightness", "contrast", "saturation", "hue", "blur")
        drawn = draw(Augment(seed=seed, **dict.fromkeys(names, reach)), TOP, episode, view)
        assert max(abs(drawn.dx), abs(drawn.dy), abs(drawn.hue)) <= reach
        factors = (drawn.scale, drawn.brightness, drawn.contrast, drawn.saturation)
        assert all(1 - reach <= factor <= 1 + reach for factor in factors)
        assert 0 <= drawn.blur <= reach

    def test_differs_by_seed_camera_episode_and_view_and_is_repeatable(self) -> None:
        places = itertools.product((0, 1), (TOP, WRIST), (0, 1), (1, 2))
        drawn = [draw(Augment(seed=seed), *place) for seed, *place in places]
        assert len(set(drawn)) == 16
        assert draw(Augment(), TOP, 5, 2) == draw(Augment(), TOP, 5, 2)

    def test_is_the_same_on_every_machine(self) -> None:
        """`printf 0/cam/3/1/dx | sha256sum`, by hand."""
        assert draw(Augment(shift=0.5), "cam", 3, 1).dx == -0.332348974684718

    def test_numbers_cover_their_range_evenly(self) -> None:
        shifts = [draw(Augment(shift=0.5), TOP, episode, 1).dx for episode in range(2000)]
        counts, _ = np.histogram(shifts, bins=10, range=(-0.5, 0.5))
        assert counts.min() > 140 and counts.max() < 260  # 200 each; three standard deviations are 40


class TestPictures:
    def test_nothing_to_do_leaves_every_bit(self, picture: Tensor) -> None:
        assert draw(NOTHING, TOP, 0, 1) == PLAIN
        assert torch.equal(apply(PLAIN, picture), picture)

    @pytest.mark.parametrize(("dx", "dy"), [(0.125, 0), (0, -0.125), (0.125, 0.25)])
    def test_shift_moves_and_repeats_the_edge(self, picture: Tensor, dx: float, dy: float) -> None:
        moved = apply(View(**{**vars(PLAIN), "dx": dx, "dy": dy}), picture)
        right, down = int(64 * dx), int(64 * dy)
        assert torch.equal(
            moved[0, :, 20 + down : 40 + down, 20 + right : 40 + right], picture[0, :, 20:40, 20:40]
        )
        if right:
            assert torch.equal(moved[..., 5, 0], picture[..., 5, 0])  # what came in from beyond is the edge

    def test_scale_magnifies(self, picture: Tensor) -> None:
        for scale in (0.5, 2.0):
            pixels = apply(View(**{**vars(PLAIN), "scale": scale}), picture).float()
            square = (pixels[0, 0] - pixels[0, 1]) > 95  # half of the red that the square has more than green
            assert square.sum() == pytest.approx(400 * scale**2, rel=0.2)

    def test_light_colour_and_blur_change_what_they_say(self, picture: Tensor) -> None:
        def with_(**changes: float) -> Tensor:
            return apply(View(**{**vars(PLAIN), **changes}), picture).float()

        plain = picture.float()
        assert with_(brightness=0.5).mean().item() == pytest.approx(plain.mean().item() / 2, rel=0.02)
        assert with_(contrast=0.5).std() < 0.7 * plain.std()
        grey = with_(saturation=0.0)
        assert (grey.amax(1) - grey.amin(1)).max() <= 1
        turned = with_(hue=1 / 3)[0, :, 30, 30]
        assert turned.argmax() == 1  # red turned green
        edge = (plain.diff(dim=-1).abs().max(), with_(blur=2.0).diff(dim=-1).abs().max())
        assert edge[1] < 0.5 * edge[0]

    def test_frames_of_an_episode_are_treated_alike(self) -> None:
        """So that the frames of an observation window go together: equal frames stay equal."""
        frames = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(5, -1, -1, -1)
        views = all_views(frames, [(0, 3), (1, 2)], Augment(), VIEWS, TOP).unflatten(0, (5, VIEWS))
        assert torch.equal(views[:, 0], frames)
        for first, second in itertools.pairwise(range(5)):
            same = first != 2  # between 2 and 3 an episode ends
            assert torch.equal(views[first, 1:], views[second, 1:]) == same


def rows(cache: FeatureCache, camera: str, view: int) -> Tensor:
    frames = np.arange(len(cache))
    return cache.gather_stored(camera, frames, views=np.full(len(frames), view)).tokens


class TestCache:
    def test_view_0_is_the_plain_frame(
        self, cache: FeatureCache, image_dataset: Path, tmp_path: Path
    ) -> None:
        plain = FeatureCache.open(run(image_dataset, tmp_path, dtype="float32", pool=2)[0].path)
        for camera in CAMERAS:
            wanted = plain.gather(camera, range(16))
            torch.testing.assert_close(cache.gather(camera, range(16)), wanted, rtol=0, atol=2e-5)
            torch.testing.assert_close(rows(cache, camera, 0), wanted, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("camera", CAMERAS)
    def test_others_are_tokens_of_the_pictures_drawn(
        self, cache: FeatureCache, image_dataset: Path, tiny_encoder: TheiaEncoder, camera: str
    ) -> None:
        dataset = open_dataset(image_dataset)
        items = [dataset[i] for i in range(16)]
        frames = resize(torch.stack([item[camera] for item in items]).mul(255).round().byte(), 224)
        for view in range(1, VIEWS):
            pictures = [
                apply(draw(Augment(), camera, int(item["episode_index"]), view), frame[None])
                for item, frame in zip(items, frames, strict=True)
            ]
            wanted = pool_tokens(tiny_encoder(torch.cat(pictures)), 2)
            torch.testing.assert_close(rows(cache, camera, view), wanted, rtol=0, atol=2e-5)
            assert not torch.allclose(rows(cache, camera, 0), wanted, atol=1e-2)

    def test_a_run_says_before_it_starts_how_many_bytes_that_is(self, made: tuple[FeatureCache, str]) -> None:
        cache, said = made
        size = 16 * 2 * VIEWS * 49 * 192 * 4
        assert f"x {VIEWS} views: {VIEWS * 49 * 192 * 4:,} bytes a frame, {size / 1e6:.4g} MB in all" in said
        assert size <= cache.manifest.num_bytes < 1.01 * size + 6 * 2**12

    def test_statistics_are_those_of_all_views(self, cache: FeatureCache) -> None:
        for camera in CAMERAS:
            tokens = torch.stack([rows(cache, camera, view) for view in range(VIEWS)]).double().flatten(0, 2)
            found = cache.manifest.statistics[camera]
            torch.testing.assert_close(torch.tensor(found.mean, dtype=torch.float64), tokens.mean(0))
            torch.testing.assert_close(
                torch.tensor(found.std, dtype=torch.float64), tokens.std(0, correction=0)
            )

    def test_a_lost_shard_is_made_again_byte_for_byte(self, cache: FeatureCache, image_dataset: Path) -> None:
        before = digests(cache.path)
        shards(cache.path)[1].unlink()
        settings = settings_of(cache.manifest, dataset_root=image_dataset, encoder="random-tiny")
        assert (settings.views, settings.augment) == (VIEWS, Augment())
        report = precompute(settings, path=cache.path, say=lambda _: None)
        assert 0 < report.frames_encoded < 32
        assert digests(cache.path) == before

    def test_a_view_that_is_not_there_is_refused(self, cache: FeatureCache) -> None:
        with pytest.raises(IndexError, match=f"views 3..3 asked of cache .*, which holds {VIEWS} a frame"):
            cache.gather_stored(TOP, np.array([0]), views=np.array([VIEWS]))

    def test_it_says_which_version_reads_it(
        self, cache: FeatureCache, image_dataset: Path, tmp_path: Path
    ) -> None:
        """Caches of plain frames are as they were before there were views."""
        plain = run(image_dataset, tmp_path, pool=7)[0].path
        manifests = [json.loads((path / "manifest.json").read_text()) for path in (plain, cache.path)]
        assert [manifest["format_version"] for manifest in manifests] == [2, 3]
        assert [manifest["identity"].get("augment") for manifest in manifests] == [None, vars(Augment())]

    def test_other_augmentation_is_another_cache(
        self, cache: FeatureCache, image_dataset: Path, tmp_path: Path
    ) -> None:
        found = run(image_dataset, cache.path.parents[1], dtype="float32", pool=2, views=VIEWS)[0]
        assert found.up_to_date
        other = run(image_dataset, tmp_path, dtype="float32", pool=2, views=VIEWS, augment=Augment(seed=1))[0]
        assert other.path.name != cache.path.name
        assert digests(other.path) != digests(cache.path)


class TestChoice:
    """Which of several caches a policy gets."""

    @pytest.fixture(scope="class")
    def root(self, image_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("choice")
        for views, dtype in ((1, "float32"), (1, "float16"), (2, "float16"), (3, "float16")):
            run(image_dataset, root, pool=14, views=views, dtype=dtype)
        return root

    def request(
        self, dataset: Path, encoder: TheiaEncoder, views: int | None, dtype: str | None = None
    ) -> CacheRequest:
        return CacheRequest(
            meta=open_dataset(dataset).meta,
            cameras=(TOP, WRIST),
            encoder=encoder.spec,
            encoder_name="random-tiny",
            pool=14,
            views=views,
            dtype=dtype,
        )

    @pytest.mark.parametrize(
        ("views", "dtype", "found"),
        [
            (
                None,
                None,
                (1, "float32"),
            ),  # precision before views: a cache of augmented ones is made to try it
            (None, "float16", (3, "float16")),
            (1, None, (1, "float32")),
            (1, "float16", (1, "float16")),
            (2, None, (2, "float16")),
            (3, None, (3, "float16")),
        ],
    )
    def test_fits_best(
        self,
        root: Path,
        image_dataset: Path,
        tiny_encoder: TheiaEncoder,
        views: int | None,
        dtype: str | None,
        found: tuple[int, str],
    ) -> None:
        cache = find_cache(root, self.request(image_dataset, tiny_encoder, views, dtype))
        assert (cache.views, cache.manifest.identity.tokens.dtype) == found

    def test_too_few_views_are_refused_with_the_command_that_makes_more(
        self, root: Path, image_dataset: Path, tiny_encoder: TheiaEncoder
    ) -> None:
        with pytest.raises(CacheMismatchError, match=r"views: wanted 4, it has [123]\n") as error:
            find_cache(root, self.request(image_dataset, tiny_encoder, 4))
        assert "augment.views=4" in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"views": 0}, "augment.views=0 must be a whole number of 1 to 64"),
        ({"views": 2.0}, "augment.views=2.0 must be"),
        ({"shift": -0.1}, "augment.shift=-0.1 must be a number of 0 to 0.5"),
        ({"blur": float("nan")}, "augment.blur=nan must be"),
        ({"seed": -1}, "augment.seed=-1 must be a whole number"),
        (
            {"shift": 0.3, "seed": 9},
            "augment.shift=0.3, augment.seed=9 would change nothing: view 0 is the plain",
        ),
        (4, "augment=4 is no group of settings; for views of each frame set augment.views"),
        ({"rotation": 3}, r"augment has no \['rotation'\]; it has"),
    ],
)
def test_bad_settings_are_errors_that_name_them(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_settings(values)
