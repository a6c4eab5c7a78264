"""A video file read front to back, to the very frames that LeRobot's `pyav` backend hands out.

LeRobot opens the file, seeks, and stacks each frame three times for each request, which for a 480x640 frame costs as much
again as decoding it (AV1) or twice that (H.264). Here the file stays open and each frame is copied once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from lerobot.datasets.video_utils import FrameTimestampError
from torch import Tensor

SKIP_AT_MOST = 8
"""Frames that are decoded and dropped rather than jumped over: a jump lands on a key frame, and LeRobot puts one at every
second frame."""


class VideoReader:
    """Frames of one file by their time. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self._container = av.open(str(path))
        try:
            self._stream = self._container.streams.video[0]
        except BaseException:
            self.close()
            raise
        # Batches are decoded side by side; codecs that split a frame among threads on top only get in each other's way.
        self._stream.codec_context.thread_count = 1
        self._to_rgb = VideoReformatter()
        self._frames: Iterator[VideoFrame] = self._container.decode(self._stream)
        self._before: VideoFrame | None = None
        self._latest: VideoFrame | None = None
        assert self._stream.time_base is not None, "libav gives every stream one"
        self._time_base = self._stream.time_base
        rate = self._stream.average_rate
        self._skip_s = SKIP_AT_MOST / float(rate) if rate else 1.0

    def close(self) -> None:
        self._container.close()

    def read(self, times: Sequence[float], tolerance_s: float) -> Tensor:
        """The frames shown at `times`, in seconds, as (n, 3, H, W) uint8, the channel innermost in memory.

        Raises FrameTimestampError when the nearest frame is `tolerance_s` or more away, and what PyAV raises for a damaged file.
        """
        out: np.ndarray | None = None
        for i, at in enumerate(times):
            rgb = self._to_rgb.reformat(self._nearest(at, tolerance_s), format="rgb24")
            plane = rgb.planes[0]
            rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)  # padded on the right
            if out is None:
                out = np.empty((len(times), rgb.height, rgb.width, 3), np.uint8)
            out[i] = rows[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
        assert out is not None, "no times were asked for"
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _nearest(self, at: float, tolerance_s: float) -> VideoFrame:
        if self._latest is None or not self._time(self._before or self._latest) <= at <= self._time(
            self._latest
        ):
            self._go_to(at)
        candidates = [frame for frame in (self._before, self._latest) if frame is not None]
        if not candidates:
            raise ValueError(f"no frame could be decoded at {at:.4f} s")
        # LeRobot compares in float32, which after 17 minutes of video cannot tell times 0.1 ms apart.
        nearest = min(candidates, key=lambda frame: abs(self._time(frame) - at))
        if abs(self._time(nearest) - at) >= tolerance_s:
            raise FrameTimestampError(
                f"the frame nearest to {at:.4f} s is that of {self._time(nearest):.4f} s, beyond the tolerance of "
                f"{tolerance_s} s"
            )
        return nearest

    def _go_to(self, at: float) -> None:
        """Decode until the latest frame is at `at` or later, or the file ends."""
        ahead = None if self._latest is None else at - self._time(self._latest)
        first_frames = self._latest is None and at <= self._skip_s
        if not first_frames and (ahead is None or not 0 <= ahead <= self._skip_s):
            offset = round(at / self._time_base) - 1
            self._container.seek(offset, stream=self._stream, backward=True, any_frame=False)
            self._frames = self._container.decode(self._stream)
            self._before = self._latest = None
        for frame in self._frames:
            if frame.pts is not None:
                self._before, self._latest = self._latest, frame
                if self._time(frame) >= at:
                    return

    def _time(self, frame: VideoFrame) -> float:
        """As LeRobot counts it."""
        assert frame.pts is not None
        return float(frame.pts * self._time_base)
