"""A frame that cannot be turned into tokens is named by camera, episode and frame; nothing half is kept."""

import shutil
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor

from lerobot_theia.cache import CacheDamagedError, CacheError, FeatureCache, FrameError
from lerobot_theia.cache.repair import settings_of
from lerobot_theia.encoder import TheiaEncoder
from tests.cache.helpers import TOP, WRIST, digests, run, strays
from tests.datasets import REPO_ID, make_dataset


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, value: float) -> None:
    """Let the encoder's output of the `at`-th frame of a run hold `value`."""
    encode, seen = TheiaEncoder.encode_preprocessed, 0

    def spoiled(self: TheiaEncoder, pixels: Tensor) -> Tensor:
        nonlocal seen
        tokens = encode(self, pixels)
        if seen <= at < seen + len(pixels):
            tokens[at - seen, 100, 7] = value
        seen += len(pixels)
        return tokens

    monkeypatch.setattr(TheiaEncoder, "encode_preprocessed", spoiled)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_nan_tokens_name_the_frame(
    video_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    spoil(monkeypatch, at=7, value=torch.nan)  # episode 1 begins at frame 5
    message = rf"camera '{TOP}', episode 1, frame 2 \(index 7\): its tokens hold NaN or infinity"
    with pytest.raises(FrameError, match=message):
        run(video_dataset, tmp_path, dtype=dtype)


def test_tokens_beyond_float16_name_the_frame_and_the_way_out(
    video_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, at=12, value=7e4)
    with pytest.raises(FrameError, match=r"episode 2, frame 0 .*beyond float16.*dtype=bfloat16 or float32"):
        run(video_dataset, tmp_path)


def test_tokens_beyond_float16_fit_bfloat16(
    video_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, at=12, value=7e4)
    cache = FeatureCache.open(run(video_dataset, tmp_path, dtype="bfloat16", cameras=(TOP,))[0].path)
    assert cache.gather(TOP, [12]).max().item() == pytest.approx(7e4, rel=2**-8)


@pytest.fixture
def three_files(tmp_path: Path) -> Path:
    """Three episodes of 6 frames, each in a video file of its own: with float32, a shard each."""
    return make_dataset(
        tmp_path / "dataset", episodes=(6, 6, 6), cameras={TOP: (32, 32)}, episodes_per_file=1
    )


def video(dataset: Path, file: int) -> Path:
    return dataset / "videos" / TOP / "chunk-000" / f"file-{file:03d}.mp4"


def test_a_truncated_video_is_named_and_what_came_before_is_kept(three_files: Path, tmp_path: Path) -> None:
    path = video(three_files, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FrameError, match=rf"camera '{TOP}', episode 1, frame \d .*file-001\.mp4.*resumes"):
        run(three_files, tmp_path / "caches", dtype="float32")
    [cache] = (tmp_path / "caches").glob("*/random-tiny-*")
    assert list(digests(cache)) == [f"{TOP}/000000.safetensors"]
    assert not strays(cache)
    with pytest.raises(CacheDamagedError, match="not finished"):
        FeatureCache.open(cache)


def packets(path: Path) -> list[tuple[int, int]]:
    """(position, size) of each frame in a video file."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def test_a_damaged_frame_inside_a_video_is_named(three_files: Path, tmp_path: Path) -> None:
    path = video(three_files, 2)
    position, size = packets(path)[3]
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    # A decoder that works some frames ahead may stumble a little before the frame itself.
    with pytest.raises(
        FrameError, match=rf"camera '{TOP}', episode 2, frame [0-3] \(index 1[2-5]\) does not"
    ):
        run(three_files, tmp_path / "caches", dtype="float32")


def test_a_missing_video_is_named_before_any_work(three_files: Path, tmp_path: Path) -> None:
    video(three_files, 1).unlink()
    with pytest.raises(CacheError, match=r"dataset 'local/tiny' is not whole: .*file-001\.mp4 is missing"):
        run(three_files, tmp_path / "caches")
    assert not (tmp_path / "caches").exists()


def test_a_damaged_parquet_file_is_named(image_dataset: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(image_dataset, tmp_path / "dataset")
    [path, *_] = sorted(dataset.glob("data/*/*.parquet"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CacheError, match="cannot open dataset 'local/tiny'"):
        run(dataset, tmp_path / "caches")


class TestTimestampsThatVideosDoNotHave:
    @pytest.fixture
    def late(self, video_dataset: Path, tmp_path: Path) -> Path:
        """Half a millisecond, which `lerobot-train --tolerance_s=0.001` takes."""
        dataset = shutil.copytree(video_dataset, tmp_path / "dataset")
        [path] = dataset.glob("data/*/*.parquet")
        table = pq.read_table(path)
        place, field = table.schema.get_field_index("timestamp"), table.schema.field("timestamp")
        times = pa.array(table.column("timestamp").to_numpy() + np.float32(5e-4))
        pq.write_table(table.set_column(place, field, times), path)
        return dataset

    def test_are_told_from_damage_and_the_setting_named(self, late: Path, tmp_path: Path) -> None:
        message = (
            rf"camera '{TOP}', episode 0, frame 0 \(index 0\) has no picture within tolerance_s=0\.0001 of its "
            r"timestamp .*file-000\.mp4.*larger tolerance_s=\.\.\. to lerobot-theia-precompute, and --tolerance_s=\.\.\. to lerobot-train"
        )
        with pytest.raises(FrameError, match=message):
            run(late, tmp_path / "caches", video_backend="pyav")

    def test_are_taken_with_a_larger_tolerance_and_give_the_nearest_frames(
        self, late: Path, tmp_path: Path, video_cache: FeatureCache
    ) -> None:
        report, _ = run(late, tmp_path / "caches", video_backend="pyav", tolerance_s=1e-3, cameras=(WRIST,))
        cache = FeatureCache.open(report.path)
        assert torch.equal(cache.gather(WRIST, range(16)), video_cache.gather(WRIST, range(16)))
        assert settings_of(cache.manifest).tolerance_s == 1e-3

    @pytest.mark.parametrize("value", [0, -1e-4, float("nan"), float("inf"), True, "1e-3", None])
    def test_a_tolerance_that_is_none_is_refused(self, late: Path, tmp_path: Path, value: object) -> None:
        with pytest.raises(ValueError, match=r"tolerance_s=.* must be a number of seconds above 0"):
            run(late, tmp_path / "caches", tolerance_s=value)


def test_a_video_backend_that_does_not_load_is_no_fault_of_the_videos(
    video_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(CacheError, match=r"video_backend=torchcodec does not load here .*video_backend=pyav"):
        run(video_dataset, tmp_path, video_backend="torchcodec")


def test_a_parquet_file_with_too_few_rows_is_an_error_before_any_work(
    image_dataset: Path, tmp_path: Path
) -> None:
    """A download that was cut short, say: meta/ knows of more frames."""
    dataset = shutil.copytree(image_dataset, tmp_path / "dataset")
    path = sorted(dataset.glob("data/*/*.parquet"))[-1]
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    with pytest.raises(
        CacheError, match=r"hold 14 rows, and meta/info.json declares 16 frames: download or record"
    ):
        run(dataset, tmp_path / "caches")
    assert not list(tmp_path.glob("caches/*/*/*/*"))


def test_a_dataset_without_an_episode_is_named(tmp_path: Path) -> None:
    """A recording that has just begun."""
    image = {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channel"]}
    LeRobotDataset.create(REPO_ID, fps=10, features={TOP: image}, root=tmp_path / "dataset")
    with pytest.raises(CacheError, match="has no episode yet: record one, and close the recording"):
        run(tmp_path / "dataset", tmp_path / "caches")


class TestDatasetsWithoutUsableCameras:
    def test_no_camera(self, tmp_path: Path) -> None:
        dataset = make_dataset(tmp_path / "dataset", episodes=(3,), cameras={})
        with pytest.raises(CacheError, match=r"'local/tiny' has no camera: none of its features .*'action'"):
            run(dataset, tmp_path / "caches")

    def test_an_unknown_camera_is_refused_with_those_there_are(
        self, video_dataset: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(CacheError, match=rf"no camera \['nose'\]; it has \['{TOP}', '{WRIST}'\]"):
            run(video_dataset, tmp_path, cameras=(TOP, "nose"))

    @pytest.mark.parametrize(
        ("info", "shape", "kind"),
        [
            (None, (32, 32, 1), r"an image of 1 channel\(s\)"),
            ({"is_depth_map": True}, (32, 32, 1), "a depth map"),
        ],
    )
    def test_grayscale_and_depth_are_refused_and_can_be_left_out(
        self, tmp_path: Path, info: dict | None, shape: tuple[int, ...], kind: str
    ) -> None:
        """The setting that it names is one that Hydra reads, and names only cameras that will do."""
        dataset = make_dataset(tmp_path / "dataset", episodes=(3,), use_videos=False)
        describe(dataset, "observation.images.depth", shape, info)
        describe(dataset, "observation.images.infrared", (32, 32, 1), None)
        describe(dataset, "observation.images.flat", (32, 32), None)
        with pytest.raises(
            CacheError, match=rf"'observation\.images\.depth' is {kind}.*`cameras=\[{TOP},{WRIST}\]`"
        ):
            run(dataset, tmp_path / "caches")

    def test_a_dataset_of_depth_alone_is_told_so(self, tmp_path: Path) -> None:
        dataset = make_dataset(tmp_path / "dataset", episodes=(3,), cameras={})
        describe(dataset, "observation.images.depth", (32, 32, 1), None)
        with pytest.raises(CacheError, match=r"The dataset has no RGB camera; train LeRobot's own policies"):
            run(dataset, tmp_path / "caches")


def describe(dataset: Path, camera: str, shape: tuple[int, ...], info: dict | None) -> None:
    """Declare one more image in meta/info.json, as recorders of grayscale and depth cameras do."""
    import json

    path = dataset / "meta" / "info.json"
    content = json.loads(path.read_text())
    content["features"][camera] = {
        "dtype": "image", "shape": list(shape), "names": ["height", "width", "channels"], "info": info,
    }  # fmt: skip
    path.write_text(json.dumps(content))


def test_frames_of_another_size_than_declared_are_refused(image_dataset: Path, tmp_path: Path) -> None:
    import json

    dataset = shutil.copytree(image_dataset, tmp_path / "dataset")
    path = dataset / "meta" / "info.json"
    content = json.loads(path.read_text())
    content["features"][TOP]["shape"] = [64, 64, 3]
    path.write_text(json.dumps(content))
    with pytest.raises(
        FrameError, match=r"decodes to torch\.uint8 \(3, 48, 64\).*declares uint8 \(3, 64, 64\)"
    ):
        run(dataset, tmp_path / "caches")


def test_bytes_of_stored_images_are_recovered_exactly(image_dataset: Path) -> None:
    from lerobot_theia.cache.frames import CameraFrames
    from tests.datasets import open_dataset

    dataset = open_dataset(image_dataset)
    frames = CameraFrames(dataset, TOP).read(3, 9)  # across the border of episodes 0 and 1
    for i in range(6):
        stored = dataset.hf_dataset.with_format(None)[3 + i][TOP]
        np.testing.assert_array_equal(frames[i].permute(1, 2, 0).numpy(), np.asarray(stored))


def test_a_dataset_in_an_older_format_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "dataset", episodes=(2,), cameras={TOP: (32, 32)})
    info = dataset / "meta" / "info.json"
    info.write_text(info.read_text().replace('"v3.0"', '"v2.1"'))
    with pytest.raises(CacheError, match=r"not a LeRobotDataset v3\.0.*convert"):
        run(dataset, tmp_path / "caches")


def test_a_device_that_is_none_is_refused(video_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="device='gpu' is no device"):
        run(video_dataset, tmp_path, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(CacheError, match="no CUDA device is available"):
            run(video_dataset, tmp_path, device="cuda")
