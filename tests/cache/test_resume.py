"""All or nothing: what is finished stays, what was interrupted resumes, and nobody sees a half."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lerobot_theia.cache import CacheDamagedError, CacheError, FeatureCache
from lerobot_theia.cache.files import machine
from lerobot_theia.cache.plan import Plan
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.encoder import TheiaEncoder
from tests.cache.helpers import TOP, WRIST, copy_of, digests, identities, run, settings, shards, strays


@pytest.fixture(scope="module")
def whole(video_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """One camera in float32: shards of 6, 6 and 4 frames, made without interruption."""
    root = tmp_path_factory.mktemp("whole")
    return FeatureCache.open(run(video_dataset, root, dtype="float32", cameras=(TOP,))[0].path)


@pytest.fixture
def fail_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the encoder fail after so many batches."""
    encode = TheiaEncoder.encode_preprocessed

    def arrange(batches: int) -> None:
        left = batches

        def failing(self: TheiaEncoder, *args: object) -> object:
            nonlocal left
            if left == 0:
                raise RuntimeError("the power went")
            left -= 1
            return encode(self, *args)

        monkeypatch.setattr(TheiaEncoder, "encode_preprocessed", failing)

    return arrange


def test_a_second_run_does_nothing_and_says_so(
    video_dataset: Path, whole: FeatureCache, tmp_path: Path, fail_after: Callable[[int], None]
) -> None:
    cache = copy_of(whole, tmp_path)
    before, manifest = identities(cache.path), (cache.path / "manifest.json").stat().st_mtime_ns
    fail_after(0)
    report, said = run(video_dataset, tmp_path / "caches", dtype="float32", cameras=(TOP,))
    assert report.up_to_date and report.frames_kept == 16 and report.path == cache.path
    assert "nothing to do" in said
    assert identities(cache.path) == before
    assert (cache.path / "manifest.json").stat().st_mtime_ns == manifest


def test_another_shard_size_leaves_a_finished_cache_as_it_is(
    video_dataset: Path, whole: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(whole, tmp_path)
    before = identities(cache.path)
    report, said = run(video_dataset, tmp_path / "caches", dtype="float32", cameras=(TOP,), shard_mib=2)
    assert report.up_to_date and "nothing to do" in said
    assert identities(cache.path) == before


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_an_interrupted_run_resumes_with_the_bytes_of_a_whole_one(
    video_dataset: Path,
    whole: FeatureCache,
    tmp_path: Path,
    fail_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    batches: int,
) -> None:
    asked = {"dtype": "float32", "cameras": (TOP,), "batch_size": 8}  # a batch is a shard
    fail_after(batches)
    with pytest.raises(RuntimeError, match="the power went"):
        run(video_dataset, tmp_path, **asked)
    path = tmp_path / whole.path.relative_to(whole.path.parents[1])
    finished = identities(path)
    assert len(finished) == batches
    with pytest.raises(CacheDamagedError, match="not finished"):
        FeatureCache.open(path)
    monkeypatch.undo()
    report, _ = run(video_dataset, tmp_path, **asked)
    assert report.frames_kept + report.frames_encoded == 16
    assert {place: identities(path)[place] for place in finished} == finished
    assert digests(path) == digests(whole.path)
    assert not strays(path)
    assert FeatureCache.open(path).verify() == []


def test_leftovers_of_a_killed_writer_are_cleared_away(
    video_dataset: Path, whole: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(whole, tmp_path)
    (cache.path / "manifest.json").unlink()
    (cache.path / TOP / f".writing-{machine()}-1-000001.safetensors").write_bytes(b"half")
    (cache.path / f".writing-{machine()}-2-manifest.json").write_bytes(b"{")
    shards(cache.path)[1].unlink()
    report, _ = run(video_dataset, tmp_path / "caches", dtype="float32", cameras=(TOP,))
    assert (report.frames_kept, report.frames_encoded) == (10, 6)
    assert not strays(cache.path)
    assert digests(cache.path) == digests(whole.path)


def test_an_unfinished_cache_keeps_the_shard_size_it_was_begun_with(
    video_dataset: Path, whole: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(whole, tmp_path)
    (cache.path / "manifest.json").unlink()
    shards(cache.path)[0].unlink()
    report, said = run(video_dataset, tmp_path / "caches", dtype="float32", cameras=(TOP,), shard_mib=4)
    assert (report.frames_kept, report.frames_encoded) == (10, 6)
    assert "shards of 6 frames, not 27" in said
    assert digests(cache.path) == digests(whole.path) and not strays(cache.path)


def test_shards_that_are_not_of_this_cache_are_removed_from_it(
    video_dataset: Path, whole: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(whole, tmp_path)
    (cache.path / "manifest.json").unlink()
    (cache.path / TOP / "000009.safetensors").write_bytes(shards(cache.path)[0].read_bytes())
    run(video_dataset, tmp_path / "caches", dtype="float32", cameras=(TOP,))
    assert digests(cache.path) == digests(whole.path)


def test_progress_reaches_the_end_and_the_plan_comes_first(video_dataset: Path, tmp_path: Path) -> None:
    events: list[tuple] = []

    def on_plan(plan: Plan) -> None:
        events.append(("plan", plan.num_frames))

    precompute(
        settings(video_dataset, tmp_path, pool=7),
        on_plan=on_plan,
        progress=lambda done, new: events.append((done, new)),
    )
    assert events[0] == ("plan", 32) and events[1] == (0, 0)
    assert events[-1][0] == 32 and sum(new for _, new in events[1:]) == 32


class TestFullDisk:
    def test_is_refused_before_any_work(
        self, video_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
        with pytest.raises(CacheError, match=r"needs 2\.4\d+ MB more .* 2 MB are free.*dtype=int8.*pool=2"):
            run(video_dataset, tmp_path)
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_counts_only_what_is_missing(
        self, video_dataset: Path, whole: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy_of(whole, tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        report, _ = run(video_dataset, tmp_path / "caches", dtype="float32", cameras=(TOP,))
        assert report.up_to_date

    def test_in_the_middle_keeps_what_was_complete(
        self, video_dataset: Path, whole: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fsync = os.fsync

        def full(descriptor: int) -> None:
            place = os.readlink(f"/proc/self/fd/{descriptor}")
            if place.endswith("000001.safetensors"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(CacheError, match=r"000001\.safetensors: No space left.*resumes"):
                run(video_dataset, tmp_path, dtype="float32", cameras=(TOP,))
        path = tmp_path / whole.path.relative_to(whole.path.parents[1])
        assert not strays(path)
        complete = digests(path)
        assert f"{TOP}/000000.safetensors" in complete and f"{TOP}/000001.safetensors" not in complete
        assert complete.items() <= digests(whole.path).items()
        report, _ = run(video_dataset, tmp_path, dtype="float32", cameras=(TOP,))
        assert report.frames_kept >= 6
        assert digests(path) == digests(whole.path)


def test_an_unwritable_root_is_named_with_the_way_out(video_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=r"cannot write to .*cache_root=.*LEROBOT_THEIA_CACHE"):
        run(video_dataset, tmp_path / "file" / "caches")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_root_is_named_with_the_way_out(video_dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "caches"
    root.mkdir(mode=0o555)
    with pytest.raises(CacheError, match="cannot write to"):
        run(video_dataset, root)


def test_cameras_of_one_cache_do_not_mix(video_cache: FeatureCache) -> None:
    top, wrist = (video_cache.gather(camera, range(16)) for camera in (TOP, WRIST))
    assert not (top == wrist).all(-1).any()


class TestACacheInAnotherFolder:
    """`path`: the cache is where it is, whatever the settings would call it."""

    def test_is_mended_there(self, video_dataset: Path, whole: FeatureCache, tmp_path: Path) -> None:
        moved = copy_of(whole, tmp_path).path.rename(tmp_path / "mine")
        manifest = (moved / "manifest.json").read_bytes()
        shards(moved)[1].unlink()
        asked = settings(video_dataset, tmp_path / "unused", dtype="float32", cameras=(TOP,))
        report = precompute(asked, path=moved)
        assert (report.path, report.frames_kept, report.frames_encoded) == (moved, 10, 6)
        assert digests(moved) == digests(whole.path) and not strays(moved)
        assert (moved / "manifest.json").read_bytes() == manifest, (
            "the shard is the same, and so is the manifest"
        )
        assert not list((tmp_path / "unused").glob("*/*"))

    def test_made_from_something_else_is_refused_with_the_fields(
        self, video_dataset: Path, whole: FeatureCache, tmp_path: Path
    ) -> None:
        cache = copy_of(whole, tmp_path)
        before = digests(cache.path)
        asked = settings(video_dataset, tmp_path / "unused", dtype="float16", cameras=(TOP,), pool=2)
        with pytest.raises(
            CacheError, match=r"something else: tokens\.dtype: it has 'float32', this is 'float16'; "
        ):
            precompute(asked, path=cache.path)
        assert digests(cache.path) == before

    def test_that_is_no_cache_is_refused(self, video_dataset: Path, tmp_path: Path) -> None:
        with pytest.raises(CacheDamagedError, match="holds no manifest"):
            precompute(settings(video_dataset, tmp_path), path=tmp_path / "nothing")


def test_a_manifest_records_what_finds_dataset_and_encoder_again(
    video_dataset: Path, whole: FeatureCache
) -> None:
    recorded = whole.manifest.made_with["settings"]
    assert recorded["repo_id"] == "local/tiny" and recorded["encoder"] == "random-tiny"
    assert recorded["batch_size"] == 8 and "root" not in recorded and "cache_root" not in recorded
    assert str(video_dataset) not in str(whole.manifest.made_with), "a folder of the machine it was made on"


def test_an_encoder_that_is_a_folder_is_not_recorded_by_its_place(
    video_dataset: Path, tmp_path: Path
) -> None:
    from tests.faults.workshop import make_encoder

    encoder = make_encoder(tmp_path / "encoder")
    report, _ = run(video_dataset, tmp_path / "caches", encoder=str(encoder), cameras=(TOP,))
    manifest = FeatureCache.open(report.path).manifest
    assert "encoder" not in manifest.made_with["settings"]
    assert str(tmp_path) not in (report.path / "manifest.json").read_text()
