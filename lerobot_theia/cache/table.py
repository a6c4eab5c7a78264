"""Which frame of which file each frame of a dataset is.

Frames of a video are asked for by time: where their episode starts in the file, and the `timestamp` of their row in
the data files. LeRobot writes i / fps for frame i of an episode; where timestamps are otherwise, they are part of
the table, since other timestamps show other frames.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lerobot_theia.cache.errors import CacheError
from lerobot_theia.cache.files import stamp
from lerobot_theia.cache.identity import sha256_of_json

if TYPE_CHECKING:  # seconds, which `lerobot-theia-cache ls` need not wait, as with pyarrow below
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata


def check_frame_index(meta: "LeRobotDatasetMetadata") -> None:
    """Caches are indexed by the absolute frame index, so episodes must tile 0 .. total_frames."""
    expected = 0
    for episode, (start, stop) in enumerate(
        zip(meta.episodes["dataset_from_index"], meta.episodes["dataset_to_index"], strict=True)
    ):
        if start != expected or stop <= start:
            raise CacheError(
                f"episode {episode} of dataset {meta.repo_id!r} covers frames {start}..{stop}, expected it to start "
                f"at {expected}: meta/episodes is damaged or was written by something else than LeRobot"
            )
        expected = stop
    if expected != meta.total_frames:
        raise CacheError(
            f"dataset {meta.repo_id!r} declares {meta.total_frames} frames in meta/info.json, its episodes hold {expected}"
        )


def frame_table(meta: "LeRobotDatasetMetadata", camera: str) -> list[dict]:
    """One row per episode: its frames, the file that holds them, and where in it they start (seconds)."""
    if camera not in meta.video_keys:
        return data_table(meta)
    if meta.video_path is None:
        raise CacheError(f"dataset {meta.repo_id!r} has video features but no `video_path` in meta/info.json")
    prefix = f"videos/{camera}"
    return rows(meta, prefix, meta.video_path, meta.episodes[f"{prefix}/from_timestamp"], video_key=camera)


def data_table(meta: "LeRobotDatasetMetadata") -> list[dict]:
    """The same for the parquet files, which hold timestamps, and the frames of image datasets."""
    return rows(meta, "data", meta.data_path, [0.0] * len(meta.episodes))


def rows(
    meta: "LeRobotDatasetMetadata", prefix: str, template: str, starts: Iterable[float], **names: str
) -> list[dict]:
    episodes = meta.episodes
    return [
        {
            "from": int(start),
            "to": int(stop),
            "file": template.format(chunk_index=int(chunk), file_index=int(file), **names),
            "at": float(at),
        }
        for start, stop, chunk, file, at in zip(
            episodes["dataset_from_index"],
            episodes["dataset_to_index"],
            episodes[f"{prefix}/chunk_index"],
            episodes[f"{prefix}/file_index"],
            starts,
            strict=True,
        )
    ]


def timed_table(meta: "LeRobotDatasetMetadata", camera: str) -> list[dict]:
    """`frame_table`, for a video camera with `times` in the rows of episodes that have any: see `irregular_times`."""
    table = frame_table(meta, camera)
    if camera not in meta.video_keys:
        return table
    return [
        row if times is None else row | {"times": times}
        for row, times in zip(table, irregular_times(meta), strict=True)
    ]


def irregular_times(meta: "LeRobotDatasetMetadata") -> list[str | None]:
    """Per episode, the SHA-256 of its timestamps; None where they are i / fps.

    None, too, where the data file is not on this machine. Raises CacheError for one that cannot be read.
    """
    found: list[str | None] = []
    for file, episodes in itertools.groupby(data_table(meta), key=lambda row: row["file"]):
        lengths = tuple(row["to"] - row["from"] for row in episodes)
        path = meta.root / file
        status = stamp(path)
        found += [None] * len(lengths) if status is None else times_in(path, status, lengths, meta.fps)
    return found


@functools.cache  # small, and asked for each cache that training looks at
def times_in(path: Path, status: tuple, lengths: tuple[int, ...], fps: float) -> tuple:
    """`irregular_times` of one data file, with episodes of `lengths` frames, as long as its `stamp` is `status`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            times = file.read(columns=["timestamp"]).column("timestamp").to_numpy().astype("<f4")
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise CacheError(
            f"the timestamps in {path} cannot be read ({type(error).__name__}: {error}); mend or re-download that file"
        ) from error
    if len(times) < sum(lengths):
        raise CacheError(
            f"{path} holds {len(times)} rows, and meta/episodes says {sum(lengths)}: mend or re-download the dataset"
        )
    episodes = np.split(times, np.cumsum(lengths))[: len(lengths)]
    return tuple(None if np.array_equal(own, regular(len(own), fps)) else sha256(own) for own in episodes)


def regular(length: int, fps: float) -> np.ndarray:
    """The timestamps that LeRobot writes, float32 (length,)."""
    return (np.arange(length) / fps).astype("<f4")


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def frames_digest(fps: float, table: list[dict]) -> str:
    return sha256_of_json({"fps": fps, "episodes": table})
