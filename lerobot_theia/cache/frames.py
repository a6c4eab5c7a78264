"""Frames of one camera, decoded in order, bit for bit those that LeRobotDataset hands out."""

import importlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import (
    FrameTimestampError,
    VideoDecoderCache,
    decode_video_frames_torchcodec,
)
from torch import Tensor

from lerobot_theia.cache.errors import CacheError, FrameError
from lerobot_theia.cache.source import image_shape
from lerobot_theia.cache.table import frame_table
from lerobot_theia.cache.video import VideoReader


@dataclass(frozen=True)
class Span:
    """Consecutive dataset frames that lie in one file."""

    start: int
    stop: int
    episode: int
    file: str
    offset_s: float
    """Where the episode starts in its video file, in seconds."""


class CameraFrames:
    """Reads ranges of one camera's frames.

    `read(start, stop)` returns (stop - start, 3, H, W) uint8 for absolute frame indices, from any thread; ranges that
    a thread reads in ascending order are decoded once, front to back. Raises CacheError where the dataset's video
    backend is one that does not load.
    """

    def __init__(self, dataset: LeRobotDataset, camera: str) -> None:
        meta = dataset.meta
        self.camera = camera
        self.root = meta.root
        self.is_video = camera in meta.video_keys
        self.height, self.width, _ = image_shape(meta, camera)
        self._table = frame_table(meta, camera)
        self._starts = np.array([row["from"] for row in self._table])
        # Under an episode filter the loaded rows are not the absolute frame indices.
        self._rows = dataset.absolute_to_relative_idx
        self._tolerance_s = dataset.tolerance_s
        self._decoders = Decoders(torchcodec=dataset._video_backend == "torchcodec")
        if self.is_video:
            if dataset._video_backend == "torchcodec":
                check_torchcodec()
            # Timestamps, not frame counts, are what LeRobot asks a video for.
            self._timestamps = dataset.hf_dataset.data.column("timestamp").to_numpy()
        else:
            # Without LeRobot's transform to float32 images come as they are stored.
            self._images = dataset.hf_dataset.select_columns([camera]).with_format(None)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Cut start..stop where episodes end."""
        episode = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            row = self._table[episode]
            end = min(stop, row["to"])
            yield Span(start, end, episode, row["file"], row["at"])
            start, episode = end, episode + 1

    def read(self, start: int, stop: int) -> Tensor:
        """Frames start..stop as (n, 3, H, W) uint8. Raises FrameError naming the frame that fails."""
        return torch.cat([self._read_span(span) for span in self.spans(start, stop)])

    def _read_span(self, span: Span) -> Tensor:
        try:
            frames = self._decode(span)
        except Exception as error:
            bad, reason = self._first_failure(span, error)
            raise FrameError(f"{self._where(bad, span)} {self._explained(reason, span)}") from error
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != (3, self.height, self.width):
            raise FrameError(
                f"{self._where(span.start, span)} decodes to {frames.dtype} {tuple(frames.shape[1:])}, but "
                f"meta/info.json declares uint8 (3, {self.height}, {self.width})"
            )
        return frames

    def _decode(self, span: Span) -> Tensor:
        row = span.start if self._rows is None else self._rows[span.start]
        rows = slice(row, row + span.stop - span.start)
        if self.is_video:
            times = [span.offset_s + float(at) for at in self._timestamps[rows]]
            return self._decoders.read(self.root / span.file, times, self._tolerance_s)
        images = np.stack([np.asarray(image) for image in self._images[rows][self.camera]])
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def _first_failure(self, span: Span, error: Exception) -> tuple[int, Exception]:
        """Narrow a failed span down to its first bad frame."""
        for frame in range(span.start, span.stop):
            try:
                self._decode(Span(frame, frame + 1, span.episode, span.file, span.offset_s))
            except Exception as narrow:
                return frame, narrow
        return span.start, error

    def _explained(self, reason: Exception, span: Span) -> str:
        path = self.root / span.file
        if isinstance(reason, FrameTimestampError):
            return (
                f"has no picture within tolerance_s={self._tolerance_s} of its timestamp in {path}: {reason}. If the "
                "dataset's timestamps are off by so much and meant to be, give a larger tolerance_s=... to "
                "lerobot-theia-precompute, and --tolerance_s=... to lerobot-train; if the file is cut short, mend or re-download it."
            )
        return f"does not decode from {path}: {reason}. Mend or re-download that file."

    def _where(self, frame: int, span: Span) -> str:
        return describe_frame(self.camera, span.episode, frame - int(self._starts[span.episode]), frame)

    def where(self, frame: int) -> str:
        """`camera ..., episode ..., frame ...` for messages."""
        return self._where(frame, next(self.spans(frame, frame + 1)))


class Decoders(threading.local):
    """The decoder of the video file that a thread is at: each thread has its own."""

    def __init__(self, torchcodec: bool) -> None:
        self._open: tuple[Path, VideoReader] | None = None
        self._torchcodec = VideoDecoderCache(max_size=1) if torchcodec else None

    def read(self, path: Path, times: list[float], tolerance_s: float) -> Tensor:
        if self._torchcodec is not None:
            return decode_video_frames_torchcodec(
                path, times, tolerance_s, decoder_cache=self._torchcodec, return_uint8=True
            )
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = (path, VideoReader(path))
        try:
            return self._open[1].read(times, tolerance_s)
        except BaseException:
            self.close()  # whatever state it is in
            raise

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def check_torchcodec() -> None:
    """Raises CacheError where torchcodec, or the FFmpeg that it needs, is not here: no fault of a video."""
    try:
        importlib.import_module("torchcodec.decoders")
    except Exception as error:  # ImportError, or RuntimeError for libraries that it does not find
        reason = str(error).strip().partition("\n")[0]
        raise CacheError(
            f"video_backend=torchcodec does not load here ({type(error).__name__}: {reason}); install torchcodec and "
            "FFmpeg's libraries, or take video_backend=pyav (for training --dataset.video_backend=pyav)"
        ) from error


def describe_frame(camera: str, episode: int, frame_in_episode: int, frame: int) -> str:
    return f"camera {camera!r}, episode {episode}, frame {frame_in_episode} (index {frame})"
