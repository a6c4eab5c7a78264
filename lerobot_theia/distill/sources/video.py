"""Video files, so many frames of each second."""

import functools
import itertools
import math
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import Frame, Item, split_by_group
from lerobot_theia.distill.licenses import required
from lerobot_theia.distill.sources.interface import Column, reason_of, stamp_of_files

EXTENSIONS = frozenset(
    [".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"]
)  # fmt: skip
"""What ends in one of these is a video; other files are not looked at."""
EARLY_S = 1e-3
"""Time stamps are rounded: what comes so much later than a sample's time still counts as shown at that time."""

BACK_S = (1.0, 5.0, 30.0)
"""How much earlier to begin decoding, should the first frame come too late."""


@dataclass(frozen=True, kw_only=True)
class VideoSource:
    """Videos of a folder and the folders in it.

    Args:
        path: the folder, or one video.
        fps: frames taken of each second of video, at most as many as it has; sample k is the frame that is shown at
            k / fps seconds.
        validation: share of the videos held out.
        license: of the videos.
    """

    name: str
    path: Path
    fps: float = 1.0
    validation: float = 0.02
    license: str = ""

    shape: ClassVar[None] = None
    columns: ClassVar[Mapping[str, Column]] = {}

    def __post_init__(self) -> None:
        required(f"source {self.name!r}", self.license)
        if not self.fps > 0:
            raise DistillError(f"source {self.name!r}: fps is {self.fps}, must be above 0")
        if not self.path.exists():
            raise DistillError(f"source {self.name!r}: {self.path} does not exist")

    @property
    def origin(self) -> Mapping[str, Any]:
        return {
            "kind": "videos",
            "folder": self.path.name,
            "videos": len({video for video, _ in self._samples}),
            "fps": self.fps,
            "packages": ["av"],
        }

    def identity(self) -> Mapping[str, Any]:
        return {"type": "video", "version": 3, "fps": self.fps}

    def items(self) -> Sequence[Item]:
        videos = [self._id(video) for video, _ in self._samples]
        splits = split_by_group(videos, self.validation, f"source {self.name!r}")
        return [
            Item(f"{video}@{k:06d}", splits[video])
            for video, (_, k) in zip(videos, self._samples, strict=True)
        ]

    def stamp(self, start: int, stop: int) -> str:
        return stamp_of_files([video for video, _ in self._samples[start:stop]])

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        for video, samples in itertools.groupby(self._samples[start:stop], key=lambda sample: sample[0]):
            yield from frames_at(video, [k / self.fps for _, k in samples])

    def _id(self, video: Path) -> str:
        return video.name if self.path.is_file() else video.relative_to(self.path).as_posix()

    @functools.cached_property
    def _samples(self) -> list[tuple[Path, int]]:
        if self.path.is_file():
            videos = [self.path]
        else:
            found = sorted(self.path.rglob("*"))
            if links := [each for each in found if each.is_symlink() and each.is_dir()]:
                raise DistillError(
                    f"source {self.name!r}: {links[0]} is a link to a folder, which is not followed: make that a source of its "
                    "own, or move it elsewhere"
                )
            videos = [each for each in found if each.suffix.lower() in EXTENSIONS and each.is_file()]
        return [
            (video, k)
            for video in videos
            for k in range(math.ceil((duration(video, self.fps, self.name) - EARLY_S) * self.fps))
        ]


def duration(video: Path, fps: float, source: str) -> float:
    """Seconds of the pictures, as the file's headers say; nothing is decoded.

    Raises:
        DistillError: if it is no video, or has fewer than `fps` frames per second.
    """
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            rate, seconds = stream.average_rate, shown_for(container, stream)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DistillError(
            f"source {source!r}: {video} is no readable video ({error}); mend or remove it"
        ) from error
    if rate is not None and fps > 1.0001 * rate:
        raise DistillError(
            f"source {source!r}: fps is {fps:g}, but {video} has {float(rate):g} frames per second, which would be taken "
            "twice; lower fps"
        )
    return seconds


def shown_for(container: InputContainer, stream: VideoStream) -> float:
    """Seconds from the first frame to the end of the last, as a header says it: a file that breaks off is as long as it was."""
    assert stream.time_base is not None
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska's
        hours, minutes, seconds = map(float, tag.groups())
        return 3600 * hours + 60 * minutes + seconds
    if container.duration is not None and len(container.streams) == 1:  # else it may be that of the sound
        return container.duration / av.time_base
    ends = [each.pts + (each.duration or 0) for each in container.demux(stream) if each.pts is not None]
    return float((max(ends, default=0) - (stream.start_time or 0)) * stream.time_base)


def frames_at(video: Path, times: Sequence[float]) -> Iterator[Frame | UnreadableError]:
    """The frame that is shown at each of the ascending times, decoding forward from the key frame before.

    Where decoding fails it begins anew for the next time, as if that were read alone.
    """
    waiting = list(times)
    while waiting:
        problem = yield from frames_until_a_problem(video, waiting)
        if problem is None:  # the end of the video
            yield from (
                UnreadableError(f"{at:.2f} s of {video.name}: the video ends before it") for at in waiting
            )
            return
        yield UnreadableError(f"{waiting.pop(0):.2f} s of {video.name}: {problem}")


def frames_until_a_problem(video: Path, waiting: list[float]) -> Generator[Frame, None, str | None]:
    """Frames for as many of the times as can be had, which are taken off the list; returns what went wrong with the next."""
    problem: str | None = None
    shown: av.VideoFrame | None = None
    begin, tick, rate = 0, 0.0, 1.0

    def due(ends: float) -> Iterator[Frame]:
        """What is shown until `ends`, once for each time that waits for it."""
        assert shown is not None
        while waiting and waiting[0] < ends:
            waiting.pop(0)
            yield Frame(shown.to_ndarray(format="rgb24"))

    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            assert stream.time_base is not None
            begin, tick = stream.start_time or 0, float(stream.time_base)
            rate = float(stream.average_rate or rate)
            for frame in decoded_from(container, stream, waiting[0], begin, tick):
                assert frame.pts is not None
                if shown is not None:
                    yield from due((frame.pts - begin) * tick - EARLY_S)
                if not waiting:
                    return None
                shown = frame
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        problem = reason_of(error)
    if shown is not None and shown.pts is not None:
        lasts = shown.duration * tick if shown.duration else 1 / rate
        yield from due((shown.pts - begin) * tick + lasts + EARLY_S)
    return problem if waiting else None


def decoded_from(
    container: InputContainer, stream: VideoStream, at: float, begin: int, tick: float
) -> Iterator[av.VideoFrame]:
    """Frames in the order in which they are shown, from one on that is shown at `at` seconds or before.

    Seeking goes by the time of decoding, and what follows a key frame may be shown before it (an open GOP): then the first
    frame that decodes is too late, and one has to begin earlier.
    """
    for back in (0.0, *BACK_S, math.inf):
        start = max(at - back, 0.0)
        container.seek(int((start + EARLY_S) / tick) + begin, stream=stream, backward=True)
        frames = (frame for frame in container.decode(stream) if frame.pts is not None)
        first = next(frames, None)
        if start == 0 or (first is not None and (first.pts - begin) * tick <= at + EARLY_S):
            break
    return itertools.chain([] if first is None else [first], frames)
