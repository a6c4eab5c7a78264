"""Frames read front to back are, bit for bit, those that LeRobot's own decoder hands out for the same times."""

import random
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from lerobot.datasets.video_utils import FrameTimestampError, decode_video_frames
from torch import Tensor

from lerobot_theia.cache.frames import CameraFrames
from lerobot_theia.cache.video import VideoReader
from tests.cache.helpers import TOP, WRIST
from tests.datasets import make_dataset, open_dataset, ordinary_scheduling, texture

FPS, FRAMES = 10, 40
TOLERANCE_S = 1e-4


@ordinary_scheduling()
def make_video(path: Path, codec: str, group: int, pixels: str = "yuv420p") -> Path:
    """40 textures of 70 x 50 pixels: widths that fill no whole block, so that rows are padded."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"g": str(group)})
        stream.width, stream.height, stream.pix_fmt = 70, 50, pixels
        for frame in range(FRAMES):
            picture = av.VideoFrame.from_ndarray(texture(rng, (50, 70, 3), frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.fixture(
    scope="module",
    params=[("libsvtav1", 2), ("libsvtav1", 100), ("h264", 2), ("h264", 100), ("hevc", 2)],
    ids=lambda each: "-".join(map(str, each)),
)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As LeRobot encodes, a key frame at every second frame, and with one for all; H.264 has B frames."""
    codec, group = request.param
    return make_video(tmp_path_factory.mktemp("videos") / "video.mp4", codec, group)


def lerobots(path: Path, times: list[float]) -> Tensor:
    return decode_video_frames(path, times, TOLERANCE_S, "pyav", return_uint8=True)


def at(frames: list[int]) -> list[float]:
    return [frame / FPS for frame in frames]


def check(path: Path, requests: list[list[int]]) -> None:
    reader = VideoReader(path)
    for frames in requests:
        found, wanted = reader.read(at(frames), TOLERANCE_S), lerobots(path, at(frames))
        assert found.dtype == torch.uint8 and found.shape == wanted.shape
        assert torch.equal(found, wanted), f"frames {frames}"
    reader.close()


@pytest.mark.parametrize("step", [1, 7, FRAMES])
def test_front_to_back(video: Path, step: int) -> None:
    check(video, [list(range(start, min(start + step, FRAMES))) for start in range(0, FRAMES, step)])


def test_in_any_order(video: Path) -> None:
    draw = random.Random(0)
    starts = [draw.randrange(FRAMES) for _ in range(12)]
    check(video, [list(range(start, min(start + draw.randrange(1, 9), FRAMES))) for start in starts])


def test_again_after_the_end(video: Path) -> None:
    check(video, [[38, 39], [38, 39], [39], [0], [39], [10, 11]])


def test_a_time_between_two_frames_takes_the_nearer(video: Path) -> None:
    reader = VideoReader(video)
    for time in (0.0, 0.04, 0.06, 1.249, 1.251, 3.94, 3.9, 0.26):
        assert torch.equal(
            reader.read([time], 0.051), decode_video_frames(video, [time], 0.051, "pyav", return_uint8=True)
        )


@pytest.mark.parametrize("time", [0.05, 1.234, 4.0, 100.0])
def test_a_time_without_a_frame_is_an_error_that_names_both(video: Path, time: float) -> None:
    reader = VideoReader(video)
    with pytest.raises(
        FrameTimestampError, match=rf"nearest to {time:.4f} s is that of \d\.\d+ s, beyond the tolerance"
    ):
        reader.read([time], TOLERANCE_S)
    assert torch.equal(reader.read(at([3]), TOLERANCE_S), lerobots(video, at([3])))


def test_ten_bits_and_full_chroma(tmp_path: Path) -> None:
    check(make_video(tmp_path / "ten.mp4", "libsvtav1", 2, "yuv420p10le"), [list(range(9)), [30, 31]])
    check(make_video(tmp_path / "full.mp4", "h264", 5, "yuv444p"), [list(range(9)), [30, 31]])


def test_an_hour_into_a_video_frames_are_still_told_apart(tmp_path: Path) -> None:
    """In float32, as LeRobot compares, times have steps of a quarter of a millisecond there."""
    path, rng = tmp_path / "long.mp4", np.random.default_rng(0)
    pictures = [texture(rng, (48, 64, 3), frame) for frame in range(8)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = 3600 * 30 + number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reader = VideoReader(path)
    for number, picture in enumerate(pictures):
        found = reader.read([3600 + number / 30 + 1e-7], TOLERANCE_S)[0].permute(1, 2, 0).numpy()
        assert np.abs(found.astype(int) - picture).mean() < 12


@pytest.fixture(scope="module")
def several_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(
        tmp_path_factory.mktemp("datasets") / "files", episodes=(5, 7, 4), episodes_per_file=1
    )


@pytest.mark.parametrize("kind", ["one file", "three files", "images"])
def test_a_cameras_frames_are_the_items_of_its_dataset(
    kind: str, video_dataset: Path, several_files: Path, image_dataset: Path
) -> None:
    root = {"one file": video_dataset, "three files": several_files, "images": image_dataset}[kind]
    dataset = open_dataset(root, video_backend="pyav")
    for camera in (TOP, WRIST):
        items = torch.stack([dataset[i][camera] for i in range(16)])
        if items.dtype != torch.uint8:
            items = (items * 255).round().to(torch.uint8)
        source = CameraFrames(dataset, camera)
        assert torch.equal(source.read(0, 16), items)
        for start, stop in ((0, 3), (3, 9), (9, 16), (4, 6), (15, 16)):
            assert torch.equal(source.read(start, stop), items[start:stop])


def test_each_thread_has_a_decoder_of_its_own(video_dataset: Path) -> None:
    source = CameraFrames(open_dataset(video_dataset, video_backend="pyav"), TOP)
    wanted, found = source.read(0, 16), {}

    def read(part: int) -> None:
        for _ in range(20):
            found[part] = torch.cat([source.read(at, at + 1) for at in range(part, 16, 4)])

    threads = [threading.Thread(target=read, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[part], wanted[part::4]) for part in range(4))
