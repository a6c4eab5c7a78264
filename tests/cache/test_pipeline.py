"""The stages of a precompute: in order, a bounded number of items apart, and none outlives another's failure."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lerobot_theia.cache import CacheError, FeatureCache, FrameError
from lerobot_theia.cache.frames import CameraFrames
from lerobot_theia.cache.pipeline import Ahead, Behind
from lerobot_theia.cache.shard import ShardWriter
from lerobot_theia.encoder import TheiaEncoder
from tests.cache.helpers import TOP, WRIST, digests, run, strays


def left_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith(("ahead", "behind"))]


class TestAhead:
    @pytest.mark.parametrize("threads", [1, 4])
    def test_results_come_in_order(self, threads: int) -> None:
        with Ahead(lambda x: x * x, range(100), threads, items=5) as squares:
            assert list(squares) == [(x, x * x) for x in range(100)]

    @pytest.mark.parametrize("threads", [1, 3])
    def test_it_never_runs_further_ahead_than_it_may(self, threads: int) -> None:
        done = [0]

        def count(x: int) -> None:
            done.append(x)

        with Ahead(count, range(50), threads, items=4) as results:
            for x, _ in results:
                assert max(done) <= x + 4

    def test_an_error_comes_where_its_result_would_have(self) -> None:
        def reciprocal(x: int) -> float:
            return 1 / (x - 3)

        with Ahead(reciprocal, range(9), threads=2, items=4) as results:
            assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
            with pytest.raises(ZeroDivisionError):
                next(results)

    def test_leaving_it_early_ends_its_threads_and_what_waits(self) -> None:
        begun = []
        with Ahead(begun.append, range(1000), threads=1, items=3) as results:
            next(results)
        assert len(begun) <= 5 and not left_threads()

    def test_an_error_of_the_source_is_raised(self) -> None:
        def source():
            yield 1
            raise OSError("no more")

        with pytest.raises(OSError, match="no more"), Ahead(str, source(), threads=1, items=0) as results:
            assert list(results)


class TestBehind:
    def test_calls_are_made_one_after_the_other_and_all_before_the_end(self) -> None:
        made: list[int] = []
        with Behind(2) as writer:
            for x in range(100):
                writer.call(made.append, x)
        assert made == list(range(100))

    def test_at_most_so_many_wait(self) -> None:
        gate, made = threading.Semaphore(0), []

        def slowly(x: int) -> None:
            gate.acquire()
            made.append(x)

        asked = []
        with Behind(2) as writer:
            for x in range(2):
                writer.call(slowly, x)
            waits = threading.Thread(target=lambda: (writer.call(slowly, 2), asked.append(2)))
            waits.start()
            waits.join(0.2)
            assert not asked
            gate.release(3)
            waits.join()
            assert asked
        assert made == [0, 1, 2]

    @pytest.mark.parametrize("more", [0, 1, 20])
    def test_an_error_is_raised_and_nothing_is_made_after_it(self, more: int) -> None:
        made: list[int] = []

        def fail() -> None:
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"), Behind(3) as writer:
            writer.call(fail)
            for x in range(more):
                writer.call(made.append, x)
        assert made == []

    def test_what_was_asked_for_before_an_error_elsewhere_is_still_made(self) -> None:
        made: list[int] = []
        with pytest.raises(KeyboardInterrupt), Behind(3) as writer:
            writer.call(made.append, 1)
            writer.call(made.append, 2)
            raise KeyboardInterrupt
        assert made == [1, 2]

    def test_a_signal_while_it_waits_for_the_last_calls_waits_for_them_too(self) -> None:
        """Or what the caller does next, deleting a file that was begun, would meet them."""
        made: list[int] = []

        def slowly() -> None:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            time.sleep(0.3)
            made.append(1)

        before = signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(128 + number))
        try:
            with pytest.raises(SystemExit), Behind(1) as writer:
                writer.call(time.sleep, 0.3)  # until the block is left
                writer.call(slowly)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert made == [1] and not left_threads()


@pytest.mark.parametrize("stage", ["decode", "encode", "write"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_stage_that_dies_ends_the_run_with_its_error_and_whole_shards_remain(
    video_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, threads: int
) -> None:
    """Shards of 6, 6 and 4 frames per camera, a batch each; the fourth dies: the first of the second camera."""
    owner, name = {
        "decode": (CameraFrames, "read"),
        "encode": (TheiaEncoder, "encode_preprocessed"),
        "write": (ShardWriter, "append"),
    }[stage]
    real, calls, lock = getattr(owner, name), [], threading.Lock()

    def dying(self: object, *arguments: object) -> object:
        with lock:
            calls.append(arguments)
        if (stage == "decode" and self.camera == WRIST) or (stage != "decode" and len(calls) == 4):  # type: ignore[attr-defined]
            raise MemoryError(f"{stage} died")
        return real(self, *arguments)

    asked = {"dtype": "float32", "decode_threads": threads}
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, dying)
        with pytest.raises(MemoryError, match=f"{stage} died"):
            run(video_dataset, tmp_path, **asked)
    [cache] = tmp_path.glob("*/random-tiny-*")
    complete = digests(cache)
    assert list(complete) == [f"{TOP}/{shard:06d}.safetensors" for shard in range(3)]
    assert not strays(cache)
    assert not left_threads()

    report, _ = run(video_dataset, tmp_path, **asked)
    assert (report.frames_kept, report.frames_encoded) == (16, 16)
    assert complete.items() <= digests(cache).items()
    assert FeatureCache.open(cache).verify() == []


def test_a_bad_frame_far_ahead_does_not_cost_the_shards_before_it(
    video_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = CameraFrames.read

    def failing(self: CameraFrames, start: int, stop: int) -> Tensor:
        if self.camera == WRIST and stop == 16:
            raise FrameError("the last frame of all is bad")
        return read(self, start, stop)

    monkeypatch.setattr(CameraFrames, "read", failing)
    with pytest.raises(FrameError, match="the last frame of all is bad"):
        run(video_dataset, tmp_path, dtype="float32", decode_threads=8)
    [cache] = tmp_path.glob("*/random-tiny-*")
    assert len(digests(cache)) == 5


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_decoding_threads_changes_no_byte(
    video_dataset: Path, video_cache: FeatureCache, tmp_path: Path, threads: int
) -> None:
    report, _ = run(video_dataset, tmp_path, batch_size=64, decode_threads=threads)
    assert digests(report.path) == digests(video_cache.path)


def test_threads_of_a_run_take_no_cores_from_those_that_come_after_it(
    video_dataset: Path, tmp_path: Path
) -> None:
    """torch counts threads per thread, and gives new ones the last number it was told."""
    torch.set_num_threads(2)
    try:
        run(video_dataset, tmp_path, pool=7, cameras=(WRIST,))
        seen: list[int] = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("field", ["decode_threads", "batch_size", "shard_mib"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4"])
def test_numbers_that_are_none_are_refused(
    video_dataset: Path, tmp_path: Path, field: str, value: object
) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r} must be a whole number of at least 1"):
        run(video_dataset, tmp_path, **{field: value})


def test_a_shard_of_more_than_there_could_be_is_refused(video_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shard_mib=1048577 must be at most 1048576"):
        run(video_dataset, tmp_path, shard_mib=2**20 + 1)


def test_an_unknown_video_backend_is_refused(video_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="video_backend='vhs'; choose torchcodec or pyav"):
        run(video_dataset, tmp_path, video_backend="vhs")


class TestDevice:
    """With four GPUs, as far as torch says."""

    @pytest.fixture(autouse=True)
    def gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    def test_each_process_that_a_launcher_starts_takes_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from lerobot_theia.cache.precompute import choose_device

        assert choose_device(None) == torch.device("cuda")
        for rank, gpu in (("0", 0), ("3", 3), ("6", 2)):
            monkeypatch.setenv("LOCAL_RANK", rank)
            assert choose_device(None) == torch.device("cuda", gpu)
            assert choose_device("cpu") == torch.device("cpu")
            assert choose_device("cuda:1") == torch.device("cuda:1")

    def test_one_that_is_not_there_is_refused(self) -> None:
        from lerobot_theia.cache.precompute import choose_device

        with pytest.raises(CacheError, match="there are 4 CUDA devices here, cuda:0 to cuda:3"):
            choose_device("cuda:4")
