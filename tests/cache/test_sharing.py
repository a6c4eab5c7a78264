"""Several processes asked for the same cache share its shards, and whoever ends, however, the others finish it."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.claim import ABANDONED_AFTER_S, CLAIM_PREFIX, in_use, take
from lerobot_theia.cache.files import TEMPORARY_PREFIX
from lerobot_theia.cache.precompute import Report, precompute
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.scripts import cache as cache_command
from tests.faults.children import Child, Tell
from tests.faults.workshop import EPISODES, TOP, Job, Made, Whole, files_under, make_job

OTHER_MACHINE = '{"machine": "ffffffff", "host": "elsewhere", "pid": 1}'


def share(
    tell: Tell,
    job: Job,
    root: Path,
    pause_s: float = 0.0,
    free: int = 0,
    go: Path | None = None,
    fail: bool = False,
    changes: dict | None = None,
) -> Made:
    """For children: precompute, and tell all that is said. After `free` batches it rests before each one; it begins the
    first when `go` is there; it may `fail` after its rest."""
    encode, batches = TheiaEncoder.encode_preprocessed, itertools.count()

    def slowly(self: TheiaEncoder, pixels: Tensor) -> Tensor:
        if next(batches) >= free:
            time.sleep(pause_s)
        until(lambda: go is None or go.exists())
        if fail:
            raise RuntimeError("no encoder today")
        return encode(self, pixels)

    TheiaEncoder.encode_preprocessed = slowly  # type: ignore[method-assign]
    return Made(precompute(job.settings(root, **changes or {}), say=tell), [])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("sharing"))


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The cache that one process makes: three shards of at most six frames for each of two cameras."""
    return Whole(job, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Starts processes, and leaves none behind."""
    children: list[Child] = []

    def begin(*arguments: Any) -> Child:
        children.append(Child(share, *arguments))
        return children[-1]

    yield begin
    for child in children:
        if child.process.is_alive():
            child.kill()
            child.process.join()


def report_of(child: Child) -> Report:
    outcome = child.wait()
    assert isinstance(outcome.value, Made), outcome.details or f"it ended with {outcome.status}"
    return outcome.value.report


def until(condition: Callable[[], object]) -> None:
    patience = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < patience, "it never came to that"
        time.sleep(0.005)


def check_same_cache(whole: Whole, root: Path) -> None:
    """Byte for byte the one that a single process makes, and no file besides."""
    whole.check_resumed(root, Report(whole.at(root), frames_kept=whole.frames), whole.complete(whole.root))


def owners(root: Path) -> set[int]:
    """Processes that have a shard claimed."""
    found = set()
    for path in root.rglob(f"*/{CLAIM_PREFIX}0*"):
        with contextlib.suppress(OSError, ValueError):
            found.add(json.loads(path.read_text())["pid"])
    return found


def share_one_cache(start: Callable[..., Child], whole: Whole, root: Path, processes: int) -> None:
    go = root.with_suffix(".go")
    children = [start(whole.job, root, 0.05, 0, go) for _ in range(processes)]
    until(lambda: len(owners(root)) > 1)
    go.touch()
    reports = [report_of(child) for child in children]
    check_same_cache(whole, root)
    for report in reports:
        assert report.frames_encoded + report.frames_shared + report.frames_kept == whole.frames
    assert sum(report.frames_encoded for report in reports) == whole.frames, "a shard was made twice"
    assert sum(report.frames_encoded > 0 for report in reports) > 1, "one did all the work"


def test_three_processes_share_the_work(start: Callable[..., Child], whole: Whole, tmp_path: Path) -> None:
    share_one_cache(start, whole, tmp_path / "caches", 3)


@pytest.mark.slow
def test_eight_processes_share_the_work(
    start: Callable[..., Child], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job = make_job(tmp_path_factory.mktemp("larger"), episodes=(30, 30, 24))
    whole = Whole(job, tmp_path_factory.mktemp("larger-whole"))
    for trial in range(3):
        share_one_cache(start, whole, tmp_path / str(trial), 8)


@pytest.mark.slow
@pytest.mark.faults
def test_processes_that_come_and_are_killed_at_random_make_the_same_cache(
    start: Callable[..., Child], whole: Whole, tmp_path: Path
) -> None:
    draw = random.Random(0)
    for trial in range(8):
        root = tmp_path / str(trial)
        children = [start(whole.job, root, 0.1) for _ in range(4)]
        for child in children[1:]:
            time.sleep(draw.uniform(0, 0.5))
            if child.process.is_alive():
                child.kill()
        last = start(whole.job, root, 0.0)
        for report in (report_of(children[0]), report_of(last)):
            assert report.frames_encoded + report.frames_shared + report.frames_kept == whole.frames
        check_same_cache(whole, root)


def test_processes_with_other_shard_sizes_join_in_the_one_it_was_begun_with(
    start: Callable[..., Child], job: Job, tmp_path: Path
) -> None:
    children = [start(job, tmp_path, 0.1, 0, None, False, {"shard_mib": size}) for size in (1, 2, 3)]
    reports = [report_of(child) for child in children]
    cache = FeatureCache.open(reports[0].path)
    assert cache.verify() == []
    assert sum(report.frames_encoded for report in reports) == 2 * sum(EPISODES)
    assert not [path for path in cache.path.rglob(".*") if path.is_file()]


def test_a_killed_process_is_succeeded_by_one_that_waits(
    start: Callable[..., Child], whole: Whole, tmp_path: Path
) -> None:
    first = start(whole.job, tmp_path, 600.0, 1)
    until(lambda: list(tmp_path.rglob(f"{TOP}/{TEMPORARY_PREFIX}*")))  # it is amid its first shard
    second = start(whole.job, tmp_path, 0.0)
    until(lambda: "are with other processes" in (second.hear() or pytest.fail("it did not wait")))
    before = whole.complete(whole.root).keys() - whole.complete(tmp_path).keys()
    first.kill()
    assert first.wait().killed
    report = report_of(second)
    assert before and report.frames_encoded > 0
    assert report.frames_encoded + report.frames_shared + report.frames_kept == whole.frames
    check_same_cache(whole, tmp_path)


def test_a_process_that_fails_leaves_its_work_to_the_others(
    start: Callable[..., Child], whole: Whole, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    failing = start(whole.job, tmp_path / "caches", 0.0, 0, go, True)
    until(lambda: owners(tmp_path))
    other = start(whole.job, tmp_path / "caches")
    until(lambda: "are with other processes" in (other.hear() or pytest.fail("it did not wait")))
    go.touch()
    failed = failing.wait()
    assert failed.status == 1 and failed.error == "RuntimeError: no encoder today"
    assert report_of(other).frames_encoded == whole.frames
    check_same_cache(whole, tmp_path / "caches")


def test_what_a_live_process_writes_is_never_taken_for_a_leftover(
    start: Callable[..., Child], whole: Whole, tmp_path: Path
) -> None:
    slow = start(whole.job, tmp_path, 0.4)
    until(lambda: list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*")))
    while (said := slow.hear()) is not None:
        assert "mending" not in said
        report_of(start(whole.job, tmp_path, 0.0))  # each one sweeps when it begins and when it ends
        if whole.complete(tmp_path).keys() == whole.complete(whole.root).keys():
            break
    assert report_of(slow).frames_encoded > 0
    check_same_cache(whole, tmp_path)


class TestClaims:
    """`take`, seen by two processes of one machine: a lock belongs to an open file, so one process will do."""

    def test_a_claim_excludes_others_until_it_is_released(self, tmp_path: Path) -> None:
        claim = take(tmp_path / "claim")
        assert claim is not None and take(tmp_path / "claim") is None
        claim.release()
        assert not (tmp_path / "claim").exists()
        again = take(tmp_path / "claim")
        assert again is not None
        claim.release()  # a second time: not the claim of the new owner
        assert (tmp_path / "claim").exists()
        again.release()

    def test_that_of_another_machine_counts_while_it_is_touched(self, tmp_path: Path) -> None:
        path = tmp_path / "claim"
        path.write_text(OTHER_MACHINE)
        assert take(path) is None
        age(path, ABANDONED_AFTER_S - 60)
        assert take(path) is None
        age(path, ABANDONED_AFTER_S + 60)
        claim = take(path)
        assert claim is not None and "elsewhere" not in path.read_text()
        claim.release()

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"machine": ', "[" * 4096])
    def test_one_whose_process_ended_before_it_could_write_counts_for_two_seconds(
        self, tmp_path: Path, content: str
    ) -> None:
        path = tmp_path / "claim"
        path.write_text(content)
        assert take(path) is None
        age(path, 3)
        claim = take(path)
        assert claim is not None
        claim.release()

    def test_a_full_disk_leaves_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from lerobot_theia.cache import CacheError, claim

        def full(_: object) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(claim.json, "dumps", full)
        with pytest.raises(CacheError, match=r"cannot write .*: No space left on device"):
            take(tmp_path / "claim")
        assert not list(tmp_path.iterdir())


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_claim_that_was_never_written_is_gone_after_the_next_run(whole: Whole, tmp_path: Path) -> None:
    """Its process was killed between creating and writing it, a moment ago; the cache is finished already."""
    root = tmp_path / "root"
    shutil.copytree(whole.root, root)
    (whole.at(root) / f"{CLAIM_PREFIX}manifest").touch()
    assert precompute(whole.job.settings(root)).up_to_date
    assert files_under(root) == whole.files


def test_leftovers_of_another_machine_are_removed_when_they_are_old(whole: Whole, tmp_path: Path) -> None:
    folder = whole.at(tmp_path) / TOP
    folder.mkdir(parents=True)
    old, young = ((folder / f"{TEMPORARY_PREFIX}ffffffff-{name}-000000.safetensors") for name in "ab")
    for path in (old, young, folder / f"{CLAIM_PREFIX}000001"):
        path.write_text(OTHER_MACHINE)
    for path in (old, folder / f"{CLAIM_PREFIX}000001"):
        age(path, ABANDONED_AFTER_S + 60)
    precompute(whole.job.settings(tmp_path))
    assert [path.name for path in folder.glob(".*")] == [young.name]
    young.unlink()
    check_same_cache(whole, tmp_path)


class TestDeleting:
    def remove(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
        monkeypatch.setattr("sys.argv", ["lerobot-theia-cache", "rm", "--yes", str(path)])
        with pytest.raises(SystemExit) as exit_:
            cache_command.main()
        return exit_.value.code

    def test_is_refused_while_a_process_builds_the_cache(
        self, start: Callable[..., Child], whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child = start(whole.job, tmp_path, 0.3)
        until(lambda: list(tmp_path.rglob("0*.safetensors")))
        assert "is being built by another process" in str(self.remove(whole.at(tmp_path), monkeypatch))
        assert report_of(child).frames_encoded == whole.frames
        check_same_cache(whole, tmp_path)
        assert self.remove(whole.at(tmp_path), monkeypatch) == 0
        assert not whole.at(tmp_path).exists()

    def test_is_refused_by_whatever_name_the_folder_is_reached(
        self, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = shutil.copytree(whole.path, tmp_path / "caches" / "cache")
        (tmp_path / "link").symlink_to(path)
        monkeypatch.chdir(path)
        for name in (path, tmp_path / "link"):
            with in_use(name):
                assert "is being built by another process" in str(self.remove(Path("."), monkeypatch))
        assert FeatureCache.open(path).verify() == []

    def test_is_refused_while_another_machine_does(
        self, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = precompute(whole.job.settings(tmp_path)).path
        claim = path / TOP / f"{CLAIM_PREFIX}000000"
        claim.write_text(OTHER_MACHINE)
        assert "is being built by process 1 on 'elsewhere'" in str(self.remove(path, monkeypatch))
        assert FeatureCache.open(path).verify() == []
        age(claim, ABANDONED_AFTER_S + 60)
        assert self.remove(path, monkeypatch) == 0

    def test_takes_what_a_process_left_that_was_killed_in_its_first_shard(
        self, start: Callable[..., Child], whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child = start(whole.job, tmp_path, 600.0, 1)
        until(lambda: list(tmp_path.rglob(f"{TOP}/{TEMPORARY_PREFIX}*")))
        child.kill(signal.SIGKILL)
        child.wait()
        assert self.remove(whole.at(tmp_path), monkeypatch) == 0
        assert not whole.at(tmp_path).exists()

    def test_takes_what_a_process_left_that_was_killed_before_its_first_shard(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / ".shard-frames").write_text("13")
        assert self.remove(tmp_path / "cache", monkeypatch) == 0
        assert not (tmp_path / "cache").exists()

    def test_takes_no_claim_behind_a_link(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / f"{CLAIM_PREFIX}000000").write_text(OTHER_MACHINE)
        age(tmp_path / "real" / f"{CLAIM_PREFIX}000000", ABANDONED_AFTER_S + 60)
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "camera").symlink_to(tmp_path / "real")
        assert "is no feature cache" in str(self.remove(tmp_path / "theirs", monkeypatch))
        (tmp_path / "theirs" / ".shard-frames").write_text("13")
        assert self.remove(tmp_path / "theirs", monkeypatch) == 0
        assert [path.name for path in (tmp_path / "real").iterdir()] == [f"{CLAIM_PREFIX}000000"]

    def test_takes_what_a_killed_process_left(
        self, start: Callable[..., Child], whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child = start(whole.job, tmp_path, 0.3)
        until(lambda: list(tmp_path.rglob("0*.safetensors")))
        child.kill(signal.SIGKILL)
        child.wait()
        assert self.remove(whole.at(tmp_path), monkeypatch) == 0
        assert not whole.at(tmp_path).exists()
