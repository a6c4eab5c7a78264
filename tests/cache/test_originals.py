"""A cache is of the dataset that was hashed: one that changes while it is encoded is an error, not another's tokens."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from lerobot_theia.cache import CacheError, FeatureCache, loaded
from lerobot_theia.cache.plan import Plan
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.encoder import TheiaEncoder
from tests.cache.helpers import TOP, digests, run, settings, shards
from tests.datasets import make_dataset

CAMERAS = {TOP: (32, 32)}
EPISODES = (6, 6, 6)
"""Each in a file of its own; with float32, a shard each."""


@pytest.fixture(scope="module", params=["videos", "images"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset, and another one of the same shape. Read only."""
    folder = tmp_path_factory.mktemp("pair")
    made = [
        make_dataset(
            folder / f"seed{seed}", cameras=CAMERAS, episodes=EPISODES, seed=seed, episodes_per_file=1,
            use_videos=request.param == "videos",
        )
        for seed in (0, 1)
    ]  # fmt: skip
    return made[0], made[1]


def files(dataset: Path) -> list[Path]:
    """The three that hold frames."""
    return sorted(dataset.glob("videos/**/*.mp4")) or sorted(dataset.glob("data/*/*.parquet"))


@pytest.fixture
def after_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Let something happen when so many batches, here shards, have been encoded."""
    encode = TheiaEncoder.encode_preprocessed

    def arrange(number: int, happens: Callable[[], object]) -> None:
        left = number

        def watched(self: TheiaEncoder, pixels: Tensor) -> Tensor:
            nonlocal left
            tokens = encode(self, pixels)
            left -= 1
            if left == 0:
                happens()
            return tokens

        monkeypatch.setattr(TheiaEncoder, "encode_preprocessed", watched)

    return arrange


def test_a_dataset_that_is_replaced_between_plan_and_work_is_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, other = (shutil.copytree(each, tmp_path / each.name) for each in pair)

    def replaced(plan: Plan) -> None:
        dataset.rename(tmp_path / "old")
        other.rename(dataset)

    with pytest.raises(CacheError, match=r"file-000\.\w+ has changed while it was being encoded"):
        precompute(settings(dataset, tmp_path / "caches"), on_plan=replaced)
    assert not list(tmp_path.glob("caches/**/*.safetensors"))
    assert not list(tmp_path.glob("caches/**/manifest.json"))


def test_of_a_dataset_that_changes_meanwhile_only_what_was_finished_remains(
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after_batch: Callable[[int, Callable[[], object]], None],
) -> None:
    whole, _ = run(pair[0], tmp_path / "whole", dtype="float32")
    dataset = shutil.copytree(pair[0], tmp_path / "dataset")
    path, other = files(dataset)[1], files(pair[1])[1]
    after_batch(2, lambda: shutil.copy(other, path))
    with pytest.raises(CacheError, match=rf"{path} has changed .* run the same command again"):
        run(dataset, tmp_path / "caches", dtype="float32")
    monkeypatch.undo()
    [cache] = tmp_path.glob("caches/*/random-tiny-*")
    assert digests(cache) == dict(list(digests(whole.path).items())[:1])
    assert not (cache / "manifest.json").exists()

    again, _ = run(dataset, tmp_path / "caches", dtype="float32")
    alone, _ = run(dataset, tmp_path / "alone", dtype="float32")
    assert again.path != cache and digests(again.path) == digests(alone.path)


def test_files_that_are_touched_or_copied_back_are_the_same(
    pair: tuple[Path, Path], tmp_path: Path, after_batch: Callable[[int, Callable[[], object]], None]
) -> None:
    dataset = shutil.copytree(pair[0], tmp_path / "dataset")
    touched, replaced, _ = files(dataset)

    def happens() -> None:
        os.utime(touched, (0, 0))
        replaced.unlink()
        shutil.copy(files(pair[0])[1], replaced)

    after_batch(1, happens)
    report, _ = run(dataset, tmp_path / "caches", dtype="float32")
    assert len(shards(report.path)) == 3 and FeatureCache.open(report.path).verify() == []


def test_a_file_that_goes_is_told_of(
    pair: tuple[Path, Path], tmp_path: Path, after_batch: Callable[[int, Callable[[], object]], None]
) -> None:
    dataset = shutil.copytree(pair[0], tmp_path / "dataset")
    gone = files(dataset)[0]
    after_batch(1, gone.unlink)
    with pytest.raises(CacheError, match=rf"{gone} has changed"):
        run(dataset, tmp_path / "caches", dtype="float32")


def test_a_data_file_that_changes_without_its_time_is_not_taken_from_lerobots_copy_of_it(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Frames of images, timestamps of videos: what is read from it."""
    dataset = shutil.copytree(pair[0], tmp_path / "dataset")
    run(dataset, tmp_path / "caches", dtype="float32")
    path = sorted(dataset.glob("data/*/*.parquet"))[1]
    status, table = path.stat(), pq.read_table(path)
    column = TOP if TOP in table.column_names else "timestamp"
    place, field = table.schema.get_field_index(column), table.schema.field(column)
    values = table.column(column).to_pylist()
    values[3] = values[2]
    pq.write_table(table.set_column(place, field, pa.array(values, type=field.type)), path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size != status.st_size, (
        "for one that has the same size, too, the remembered hash is taken"
    )

    with pytest.raises(CacheError, match=rf"{path} has changed, but not its time .* `touch {path}`"):
        run(dataset, tmp_path / "caches", dtype="float32")
    path.touch()
    again, _ = run(dataset, tmp_path / "caches", dtype="float32")
    cache = FeatureCache.open(again.path)
    assert torch.equal(cache.gather(TOP, [9]), cache.gather(TOP, [8]))


def test_a_data_file_that_is_older_than_lerobots_copy_is_not_read_again(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shutil.copytree(pair[0], tmp_path / "dataset")
    monkeypatch.setattr(loaded, "holds", lambda *_: pytest.fail("read"))
    run(dataset, tmp_path / "caches", dtype="float32")


def test_other_timestamps_and_places_are_a_change_though_no_video_is(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset", cameras=CAMERAS, episodes=(6,))

    def later(plan: Plan) -> None:
        [path] = dataset.glob("data/*/*.parquet")
        table = pq.read_table(path)
        place, field = table.schema.get_field_index("timestamp"), table.schema.field("timestamp")
        times = pa.array([0.1, *table.column("timestamp").to_pylist()[1:]], type=field.type)
        pq.write_table(table.set_column(place, field, times), path)

    with pytest.raises(CacheError, match=rf"says that frames of '{TOP}' are has changed"):
        precompute(settings(dataset, tmp_path / "caches"), on_plan=later)
