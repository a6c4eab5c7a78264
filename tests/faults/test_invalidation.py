"""The world moves on: for each thing that may change, what a cache made before is still good for.

The rows are those of the invalidation table in docs/cache.md, one test each.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import lerobot_dataset
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from transformers import Dinov2Config, Dinov2Model

from lerobot_theia.cache import CacheError, CacheMismatchError, FeatureCache, plan
from lerobot_theia.cache.augment import Augment
from lerobot_theia.cache.catalog import CacheRequest, find_cache
from lerobot_theia.cache.manifest import FORMAT_VERSION, checksum, spelt
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.precompute import Report, precompute
from lerobot_theia.data.serve import serve_features
from lerobot_theia.encoder import TheiaEncoder, preprocess
from lerobot_theia.encoder.names import THEIA
from lerobot_theia.encoder.preprocess import Normalization
from tests.data_room.conftest import act, train_config
from tests.data_room.test_serve import lerobots_own
from tests.datasets import (
    REPO_ID,
    TASKS,
    make_dataset,
    open_dataset,
    ordinary_scheduling,
    random_value,
    texture,
)
from tests.encoder.published_layout import translator_shapes
from tests.faults.workshop import CAMERAS, EPISODES, TOP, WRIST, Job, make_encoder, state

pytestmark = pytest.mark.faults

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cache.md"
HEADING = "## Invalidation table"
FRAMES = sum(EPISODES)
"""16 frames a camera, in episodes of 5, 7 and 4, each in a file of its own; shards hold 6, 6 and 4 frames."""


@dataclass
class World:
    """A dataset, an encoder, and the cache that was made of them before something changed."""

    folder: Path
    job: Job
    cache: FeatureCache
    monkeypatch: pytest.MonkeyPatch

    @property
    def root(self) -> Path:
        return self.cache.path.parents[1]

    def request(self, revision: str | None = None, repo_id: str = REPO_ID, **changes: Any) -> CacheRequest:
        encoder = TheiaEncoder.from_pretrained(self.job.encoder, translators=False)
        fields = {
            "meta": LeRobotDatasetMetadata(repo_id, root=self.job.dataset, revision=revision),
            "cameras": (TOP, WRIST),
            "encoder": encoder.spec,
            "encoder_name": str(self.job.encoder),
        }
        return CacheRequest(**fields | changes)

    def precompute(self, **changes: Any) -> Report:
        return precompute(self.job.settings(self.root, **changes))

    def training(self, **dataset: Any) -> TrainPipelineConfig:
        """What `lerobot-train` would be given; `dataset` are its `--dataset.*`."""
        policy = act(features="cached", cache_root=str(self.root), encoder=str(self.job.encoder))
        return train_config(self.job.dataset, policy, **dataset)

    def still_fits(self, **asked: Any) -> None:
        """Training takes the cache, and precompute has nothing to do."""
        before = state(self.cache.path)
        assert find_cache(self.root, self.request(**asked)).path == self.cache.path
        assert self.precompute().up_to_date
        assert state(self.cache.path) == before

    def refused(self, *fields: str, **asked: Any) -> None:
        """Training does not take it, and is told these fields."""
        with pytest.raises(CacheMismatchError) as error:
            find_cache(self.root, self.request(**asked))
        told = re.findall(r"^  (\S+): wanted ", str(error.value), re.MULTILINE)
        assert told == sorted(fields)

    def made_anew(self, copied: int, encoded: int, **changes: Any) -> None:
        """Precompute makes another cache beside the old one: so many frames are copied, so many encoded.

        The new one is what it would have been without the old one.
        """
        before = state(self.cache.path)
        report = self.precompute(**changes)
        assert (report.frames_copied, report.frames_encoded) == (copied, encoded)
        assert report.path != self.cache.path and state(self.cache.path) == before
        alone = precompute(self.job.settings(self.folder / "alone", **changes))
        assert FeatureCache.open(report.path).verify() == []
        assert FeatureCache.open(report.path).manifest.shards == FeatureCache.open(alone.path).manifest.shards
        assert self.precompute(**changes).up_to_date


Row = Callable[[World], None]
ROWS: dict[str, tuple[Row, bool]] = {}


def row(name: str, videos: bool = False) -> Callable[[Row], Row]:
    """A row of the table; with images in parquet files, or videos."""

    def register(function: Row) -> Row:
        ROWS[name] = (function, videos)
        return function

    return register


def camera_field(camera: str, field: str) -> str:
    return f"dataset.cameras.{camera}.{field}"


def edit_parquet(path: Path, column: str, edit: Callable[[Any], Any]) -> None:
    """Change the first value of a column."""
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[0] = edit(values[0])
    changed = pa.array(values, type=table.schema.field(column).type)
    pq.write_table(
        table.set_column(table.schema.get_field_index(column), table.schema.field(column), changed), path
    )


def parquet_file(world: World, episode: int) -> Path:
    return sorted(world.job.dataset.glob("data/*/*.parquet"))[episode]


def another_dataset(world: World, name: str, **changes: Any) -> Path:
    settings = {"cameras": CAMERAS, "episodes": EPISODES, "use_videos": False, "episodes_per_file": 1}
    return make_dataset(world.folder / name, **settings | changes)


def take(world: World, **changes: Any) -> None:
    world.job = dataclasses.replace(world.job, **changes)


# --- the dataset


@row("a frame, in an image dataset")
def _(world: World) -> None:
    brighter = another_dataset(world, "brighter", seed=1)
    picture = pq.read_table(sorted(brighter.glob("data/*/*.parquet"))[2]).column(TOP).to_pylist()[0]
    edit_parquet(parquet_file(world, 2), TOP, lambda _: picture)
    # The file holds the frames of both cameras.
    world.refused(camera_field(TOP, "content"), camera_field(WRIST, "content"))
    world.made_anew(copied=2 * 12, encoded=2 * 4)


@row("a frame, in a video dataset", videos=True)
def _(world: World) -> None:
    again = another_dataset(world, "again", use_videos=True, seed=1)
    video = sorted(world.job.dataset.glob(f"videos/{TOP}/*/*.mp4"))[0]
    shutil.copy(again / video.relative_to(world.job.dataset), video)
    world.refused(camera_field(TOP, "content"))
    world.made_anew(copied=FRAMES + 10, encoded=6)


@row("a state, action or task, in a video dataset", videos=True)
def _(world: World) -> None:
    for column in ("observation.state", "action"):
        edit_parquet(parquet_file(world, 0), column, lambda value: [number + 1 for number in value])
    edit_parquet(parquet_file(world, 0), "task_index", lambda value: 1 - value)
    world.still_fits()


@row("a timestamp, in a video dataset", videos=True)
def _(world: World) -> None:
    before = open_dataset(world.job.dataset, video_backend="pyav")[0][TOP]
    edit_parquet(parquet_file(world, 0), "timestamp", lambda at: at + 0.1)  # the time of the frame after it
    assert not torch.equal(open_dataset(world.job.dataset, video_backend="pyav")[0][TOP], before)
    world.refused(camera_field(TOP, "frames"), camera_field(WRIST, "frames"))
    world.made_anew(copied=0, encoded=2 * FRAMES)


@row("a state, action or task, in an image dataset")
def _(world: World) -> None:
    edit_parquet(parquet_file(world, 0), "observation.state", lambda value: [number + 1 for number in value])
    world.refused(camera_field(TOP, "content"), camera_field(WRIST, "content"))
    world.made_anew(copied=2 * 10, encoded=2 * 6)


@ordinary_scheduling()
def record_more(dataset: Path, frames: int) -> None:
    """An episode more, by LeRobot's own means."""
    more = LeRobotDataset.resume(REPO_ID, root=dataset)
    draw = np.random.default_rng(7)
    for frame in range(frames):
        features = more.meta.features
        pictures = {name: texture(draw, features[name]["shape"], frame) for name in CAMERAS}
        values = {
            name: random_value(draw, features[name])
            for name in ("observation.state", "action", "next.reward", "next.done")
        }
        more.add_frame({**values, **pictures, "task": TASKS[0]})
    more.save_episode()
    more.finalize()


@row("an episode is added")
def _(world: World) -> None:
    record_more(world.job.dataset, 3)
    fields = [camera_field(camera, field) for camera in CAMERAS for field in ("content", "frames")]
    world.refused("dataset.num_episodes", "dataset.num_frames", *fields)
    world.made_anew(copied=2 * 12, encoded=2 * 7)  # the last shard was not full


@row("an episode is removed")
def _(world: World) -> None:
    take(world, dataset=another_dataset(world, "shorter", episodes=EPISODES[:-1]))
    fields = [camera_field(camera, field) for camera in CAMERAS for field in ("content", "frames")]
    world.refused("dataset.num_episodes", "dataset.num_frames", *fields)
    world.made_anew(copied=0, encoded=2 * 12)


@row("the frame rate")
def _(world: World) -> None:
    info = world.job.dataset / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fps": 20}))
    world.refused(camera_field(TOP, "frames"), camera_field(WRIST, "frames"))
    world.made_anew(copied=0, encoded=2 * FRAMES)


@row("the dataset's revision")
def _(world: World) -> None:
    world.refused("dataset.revision", revision="v3.1-cleaned")
    world.made_anew(copied=2 * FRAMES, encoded=0, revision="v3.1-cleaned")


@row("the dataset's repo id")
def _(world: World) -> None:
    world.refused("dataset.repo_id", repo_id="me/renamed")
    world.made_anew(copied=0, encoded=2 * FRAMES, repo_id="me/renamed")


@row("the dataset's folder")
def _(world: World) -> None:
    world.job.dataset.rename(world.folder / "moved")
    take(world, dataset=world.folder / "moved")
    world.still_fits()


@row("time stamps of its files")
def _(world: World) -> None:
    for path in world.job.dataset.rglob("*"):
        os.utime(path, (0, 0))
    world.still_fits()


@row("files of episodes that are not trained on are not here", videos=True)
def _(world: World) -> None:
    third = [*world.job.dataset.glob("videos/*/*/file-002.mp4"), parquet_file(world, 2)]
    assert len(third) == len(CAMERAS) + 1
    for file in third:
        file.unlink()
    served, _ = serve_features(world.training(episodes=[0, 1]), lerobots_own)
    assert served.cache.path == world.cache.path and len(served) == 12


@row("videos of episodes that are trained on are deleted", videos=True)
def _(world: World) -> None:
    """LeRobot opens the dataset before a cache is looked for."""

    def ask(repo_id: str, *_: object) -> None:
        raise ConnectionError(f"the Hub is asked for {repo_id}")

    world.monkeypatch.setattr(lerobot_dataset, "get_safe_version", ask)
    shutil.rmtree(world.job.dataset / "videos")
    with pytest.raises(ConnectionError, match=f"the Hub is asked for {REPO_ID}"):
        serve_features(world.training(), lerobots_own)


@row("a camera less is asked for")
def _(world: World) -> None:
    assert find_cache(world.root, world.request(cameras=(WRIST,))).path == world.cache.path
    world.made_anew(copied=FRAMES, encoded=0, cameras=(WRIST,))


@row("a camera more is asked for")
def _(world: World) -> None:
    old = world.precompute(cameras=(WRIST,))
    shutil.rmtree(world.cache.path)
    world.cache = FeatureCache.open(old.path)
    world.refused("dataset.cameras")
    world.made_anew(copied=FRAMES, encoded=FRAMES)


@row("the size of a camera's frames")
def _(world: World) -> None:
    take(world, dataset=another_dataset(world, "larger", cameras={TOP: (24, 16), WRIST: (16, 16)}))
    told = [camera_field(TOP, field) for field in ("content", "height")] + [camera_field(WRIST, "content")]
    world.refused(*told)
    world.made_anew(copied=0, encoded=2 * FRAMES)


# --- the encoder


@row("other encoder weights, under the same name")
def _(world: World) -> None:
    make_encoder(world.job.encoder, seed=1)
    world.refused("encoder.weights_sha256")
    world.made_anew(copied=0, encoded=2 * FRAMES)


@row("the encoder's name or folder")
def _(world: World) -> None:
    world.job.encoder.rename(world.folder / "renamed")
    take(world, encoder=world.folder / "renamed")
    world.still_fits()


@row("translator heads, licence, other settings of the encoder")
def _(world: World) -> None:
    config = json.loads((world.job.encoder / "config.json").read_text())
    heads = {"a/teacher": [8, 16, 16]}
    make_encoder(world.job.encoder, config=config | {"license": "mit", "target_feature_sizes": heads},
                 more=translator_shapes(192, heads))  # fmt: skip
    world.still_fits()


@row("`num_attention_heads` in the config.json of a DINOv2")
def _(world: World) -> None:
    """The same weights, split among other heads, give other tokens. In the identity where a head has not 64 channels."""
    folder = world.folder / "dinov2"
    torch.manual_seed(0)
    settings = {"hidden_size": 128, "num_hidden_layers": 1, "image_size": 518}
    Dinov2Model(Dinov2Config(**settings, num_attention_heads=4)).save_pretrained(folder)
    take(world, encoder=folder)
    world.cache = FeatureCache.open(world.precompute().path)
    world.still_fits()
    config = json.loads((folder / "config.json").read_text())
    for heads in (8, 2):
        (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": heads}))
        world.refused("encoder.num_heads")
        world.made_anew(copied=0, encoded=2 * FRAMES)


@row("a constant of the preprocessing")
def _(world: World) -> None:
    changed = {THEIA: Normalization(0.45, 0.5)}
    world.monkeypatch.setattr(preprocess, "NORMALIZATIONS", preprocess.NORMALIZATIONS | changed)
    world.refused("preprocessing.mean")
    world.made_anew(copied=0, encoded=2 * FRAMES)


@row("the version of the preprocessing")
def _(world: World) -> None:
    world.monkeypatch.setitem(preprocess.PREPROCESSING, "version", 2)
    world.refused("preprocessing.version")
    world.made_anew(copied=0, encoded=2 * FRAMES)


# --- what is asked for


@row("`dtype`")
def _(world: World) -> None:
    world.refused("tokens.dtype", dtype="int8")
    world.made_anew(copied=0, encoded=2 * FRAMES, dtype="int8")


@row("`pool`")
def _(world: World) -> None:
    world.refused("tokens.grid", "tokens.pool", pool=2)
    world.made_anew(copied=0, encoded=2 * FRAMES, pool=2)


@row("`augment.views`")
def _(world: World) -> None:
    world.refused("views", "augment", views=2)
    world.made_anew(copied=0, encoded=2 * FRAMES, views=2)
    assert find_cache(world.root, world.request()).views == 2
    assert find_cache(world.root, world.request(views=1)).views == 1


@row("`augment.*`, how views are made")
def _(world: World) -> None:
    for seed in (0, 1):
        world.made_anew(copied=0, encoded=2 * FRAMES, views=2, augment=Augment(seed=seed))
    shutil.rmtree(world.cache.path)
    assert find_cache(world.root, world.request(views=2)).views == 2


@row("`compute_dtype`")
def _(world: World) -> None:
    world.made_anew(copied=0, encoded=2 * FRAMES, compute_dtype="bfloat16")
    assert find_cache(world.root, world.request()).path == world.cache.path  # the more precise one
    shutil.rmtree(world.cache.path)
    found = find_cache(world.root, world.request())
    assert found.manifest.identity.tokens.compute_dtype == "bfloat16"


@row("`batch_size`, `device`, `video_backend`, `compile`, `decode_threads`")
def _(world: World) -> None:
    for changes in (
        {"batch_size": 3},
        {"video_backend": "torchcodec"},
        {"decode_threads": 2},
        {"compile": True},
    ):
        assert world.precompute(**changes).up_to_date
    world.still_fits()


@row("`tolerance_s`", videos=True)
def _(world: World) -> None:
    assert world.precompute(tolerance_s=0.01).up_to_date
    world.still_fits()


@row("`shard_mib`")
def _(world: World) -> None:
    assert world.precompute(shard_mib=2).up_to_date
    world.still_fits()


# --- the software


def edit_manifest(cache: Path, edit: Callable[[dict], object]) -> None:
    """Change a manifest as another version of the plugin would have written it."""
    path = cache / "manifest.json"
    body = json.loads(path.read_text())
    edit(body)
    del body["checksum"]
    path.write_bytes(spelt(body | {"checksum": checksum(body)}))


@row("LeRobot, torch, the plugin are upgraded")
def _(world: World) -> None:
    edit_manifest(
        world.cache.path, lambda body: body["made_with"]["versions"].update(lerobot="0.5.0", torch="1.0")
    )
    world.still_fits()


@row("LeRobot's dataset format")
def _(world: World) -> None:
    """It stands for the revision where none is asked for."""
    asked = world.request()
    asked.meta.revision = "v3.1"
    with pytest.raises(CacheMismatchError, match=r"dataset\.revision: wanted 'v3\.1', it has 'v3\.0'"):
        find_cache(world.root, asked)


@row("a newer cache format")
def _(world: World) -> None:
    refused_as(world, FORMAT_VERSION + 1, "Upgrade lerobot_policy_theia")


@row("an older cache format")
def _(world: World) -> None:
    refused_as(world, 1, "precompute again")


def refused_as(world: World, version: int, remedy: str) -> None:
    """Named and passed over by training; not overwritten by precompute, whose cache it may not be."""
    edit_manifest(world.cache.path, lambda body: body.update(format_version=version))
    message = rf"format_version {version}; this plugin reads 2 to {FORMAT_VERSION}\..*{remedy}"
    with pytest.raises(CacheMismatchError, match=message):
        find_cache(world.root, world.request())
    before = state(world.cache.path)
    with pytest.raises(CacheError, match=message):
        world.precompute()
    assert state(world.cache.path) == before


# --- the cache


@row("the cache is moved, copied or renamed")
def _(world: World) -> None:
    moved = world.folder / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.copytree(world.cache.path, moved)
    assert find_cache(moved.parent, world.request()).path == moved
    assert find_cache(moved, world.request()).path == moved
    renamed = world.cache.path.rename(world.cache.path.with_name("mine"))
    world.cache = FeatureCache.open(renamed)
    world.still_fits()


# --- the tests


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Datasets, encoder and caches before anything changes, with images and with videos. Read only."""
    made = {}
    for videos in (False, True):
        folder = made[videos] = tmp_path_factory.mktemp("before")
        dataset = make_dataset(
            folder / "dataset", cameras=CAMERAS, episodes=EPISODES, use_videos=videos, episodes_per_file=1
        )
        precompute(Job(dataset, make_encoder(folder / "encoder")).settings(folder / "caches"))
    return made


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, before: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function, videos = ROWS[name]
    folder = shutil.copytree(before[videos], tmp_path / "world")
    [manifest] = folder.glob("caches/*/*/manifest.json")
    world = World(
        folder, Job(folder / "dataset", folder / "encoder"), FeatureCache.open(manifest.parent), monkeypatch
    )
    world.still_fits()
    function(world)


def test_the_rows_are_those_of_the_docs() -> None:
    text = DOCS.read_text()
    table = text[text.index(HEADING) :].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[0] == "what changes" and rows[1:] == list(ROWS)


def test_an_unfinished_cache_is_gone_on_with_under_another_name_of_the_encoder(
    before: dict[bool, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(before[False], tmp_path / "world")
    [manifest] = folder.glob("caches/*/*/manifest.json")
    manifest.unlink()
    (folder / "encoder").rename(folder / "renamed")
    report = precompute(Job(folder / "dataset", folder / "renamed").settings(folder / "caches"))
    assert (report.path, report.frames_kept, report.frames_encoded) == (manifest.parent, 2 * FRAMES, 0)


# --- copying


def test_a_damaged_shard_is_not_copied(before: dict[bool, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(before[False], tmp_path / "world")
    [shard] = folder.glob(f"caches/*/*/{TOP}/000001.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    report = precompute(
        Job(folder / "dataset", folder / "encoder").settings(folder / "caches", revision="new")
    )
    assert (report.frames_copied, report.frames_encoded) == (2 * FRAMES - 6, 6)
    assert FeatureCache.open(report.path).verify() == []


def test_a_longer_dataset_is_cut_into_shards_as_before_so_that_they_can_be_copied(
    before: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(before[False], tmp_path / "world")
    job = Job(folder / "dataset", folder / "encoder")
    monkeypatch.setattr(plan, "SHARD_BYTES", 1)
    monkeypatch.setattr(plan, "SHARDS_PER_CAMERA", 3)

    def shard_frames(settings: PrecomputeSettings) -> int:
        return FeatureCache.open(precompute(settings).path).manifest.shard_frames

    settings = job.settings(folder / "caches", shard_mib=None)
    record_more(job.dataset, 3)
    assert shard_frames(job.settings(tmp_path / "alone", shard_mib=None)) == 7  # of 19 frames a third
    report = precompute(settings)
    assert (report.frames_copied, report.frames_encoded) == (2 * 12, 2 * 7)
    assert FeatureCache.open(report.path).manifest.shard_frames == 6

    # Shards do not stay small for ever, and what is asked for counts.
    monkeypatch.setattr(plan, "SHARDS_PER_CAMERA", 1)
    assert shard_frames(dataclasses.replace(settings, revision="one shard, of more than twice six")) == 19
    assert shard_frames(dataclasses.replace(settings, revision="asked for", shard_mib=2)) == 13


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_copies_are_what_encoding_would_give(before: dict[bool, Path], tmp_path: Path, dtype: str) -> None:
    job = Job(before[False] / "dataset", before[False] / "encoder")
    first = precompute(job.settings(tmp_path, dtype=dtype))
    second = precompute(job.settings(tmp_path, dtype=dtype, revision="new"))
    assert (second.frames_copied, second.frames_encoded) == (2 * FRAMES, 0)
    one, other = FeatureCache.open(first.path), FeatureCache.open(second.path)
    assert one.manifest.shards == other.manifest.shards
    assert one.manifest.statistics == other.manifest.statistics
    assert all(
        torch.equal(one.gather(name, range(FRAMES)), other.gather(name, range(FRAMES))) for name in CAMERAS
    )
