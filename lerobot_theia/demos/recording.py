"""Turn episodes into a LeRobotDataset v3 that is either whole and in its place, or not there.

Recording happens in a hidden folder beside the target; the finished dataset is counted and then renamed into
place. Whatever goes wrong before, the target is as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Features = dict[str, dict[str, Any]]

ORIGIN = "meta/recorded_from.json"
"""In each recorded dataset: which demonstrations these are; see `Plan.origin`."""
RANDOMIZATION = "meta/randomization.json"
"""In a dataset of randomised scenes: what was randomised, and for each episode its seed and what was drawn."""


class RecordingError(RuntimeError):
    """A dataset could not be recorded; the message says why and what to do."""


def missing_extra(extra: str, error: ImportError) -> RecordingError:
    """The error for an optional simulator that is not installed."""
    return RecordingError(f"{error}. Install it with: pip install 'lerobot_policy_theia[{extra}]'")


@dataclass(frozen=True)
class Episode:
    """One demonstration of T frames; frame t holds the observation before action t, and what came of it.

    Args:
        columns: feature name to array (T, *feature shape); cameras are uint8 (T, H, W, 3).
        task: the instruction, in words.
        drawn: for JSON: its seed, and how its scene was changed; for plans that `randomize`.
    """

    columns: dict[str, np.ndarray]
    task: str
    drawn: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.columns["action"])


# Closing the generator ends the worker processes below it.
Episodes = Generator[Episode, None, None]


@dataclass(frozen=True)
class Plan:
    """What is to be recorded, and what a complete dataset will be checked against.

    Args:
        root: where the dataset will stand.
        repo_id: its name for LeRobot; nothing is uploaded.
        fps: frames per second of the simulation.
        features: LeRobot's feature specification, without the bookkeeping columns.
        task: the instruction, the same for all episodes.
        num_episodes: episodes in the finished dataset.
        num_frames: frames in the finished dataset; None if only the recording will tell.
        max_episode_frames: no episode is longer; sizes the queue of the video encoder.
        origin: for JSON: what tells these demonstrations from others of the same shape, such as their first seed.
        randomize: what of the scene each episode changes; what it was changed to is kept in RANDOMIZATION.
    """

    root: Path
    repo_id: str
    fps: int
    features: Features
    task: str
    num_episodes: int
    num_frames: int | None
    max_episode_frames: int
    origin: dict[str, Any]
    randomize: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recording:
    """What stands at `root` now.

    Args:
        root: the dataset.
        num_episodes: episodes in it.
        num_frames: frames in it.
        seconds: wall time of the recording; 0 if a complete dataset was there already.
        num_failed: expert episodes that did not succeed and were left out.
    """

    root: Path
    num_episodes: int
    num_frames: int
    seconds: float
    num_failed: int = 0

    def __str__(self) -> str:
        if self.seconds == 0:
            return f"{self.root}: {self.num_episodes} episodes, {self.num_frames} frames, there already"
        failed = f"; {self.num_failed} failed expert episodes left out" if self.num_failed else ""
        return (
            f"{self.root}: {self.num_episodes} episodes, {self.num_frames} frames in {self.seconds:.1f} s "
            f"({self.num_frames / self.seconds:.0f} frames/s){failed}"
        )


def camera(height: int, width: int, *, use_videos: bool) -> dict[str, Any]:
    """Feature of an RGB camera (H, W, 3), kept as video or as PNG."""
    names = ["height", "width", "channel"]
    return {"dtype": "video" if use_videos else "image", "shape": (height, width, 3), "names": names}


def outcome_features() -> Features:
    """What came of an action: reward, end of the episode, success; each of shape (1,)."""
    return {
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }


def already_there(plan: Plan, *, overwrite: bool, if_missing: bool) -> Recording | None:
    """Look at the target before any work is done.

    Returns:
        The dataset that stands there, if `if_missing` allows it and it is the planned one; None if there is
        something to record.

    Raises:
        RecordingError: if something else is in the way.
    """
    if overwrite and if_missing:
        raise RecordingError("overwrite and if_missing exclude each other: choose one")
    root = plan.root
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    if not (root / "meta" / "info.json").is_file():
        # Not even `overwrite` deletes a folder that some other program made.
        raise RecordingError(f"{root} exists and is not a LeRobot dataset: choose another root, or remove it")
    if if_missing:
        try:
            return Recording(root, plan.num_episodes, check_dataset(root, plan), seconds=0)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RecordingError(
                f"{root} is damaged ({type(error).__name__}: {error}): record it again with overwrite=True (--overwrite), or "
                "choose another root"
            ) from error
    if not overwrite:
        raise RecordingError(
            f"{root} already holds a dataset: choose another root, replace it with overwrite=True "
            "(--overwrite), or keep it with if_missing=True (--if-missing)"
        )
    return None


def write_dataset(plan: Plan, episodes: Episodes, *, progress: bool = True) -> Recording:
    """Record `plan.num_episodes` episodes and put the dataset into place, replacing what stands there.

    Call `already_there` first: it guards what must not be replaced.
    """
    import lerobot.datasets  # noqa: F401  (takes seconds, and they are not recording time)

    start = time.perf_counter()
    plan.root.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{plan.root.name}.recording-", dir=plan.root.parent))
    try:
        with _quiet_libraries():
            _record(staging / "new", plan, episodes, progress)
        num_frames = check_dataset(staging / "new", plan)
        _put_into_place(staging / "new", plan.root, staging / "old")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Recording(plan.root, plan.num_episodes, num_frames, time.perf_counter() - start)


def _record(root: Path, plan: Plan, episodes: Episodes, progress: bool) -> None:
    """Write the episodes to `root` with LeRobot's own writer."""
    from lerobot.datasets import LeRobotDataset, VideoEncodingManager
    from tqdm import tqdm

    dataset = LeRobotDataset.create(
        plan.repo_id,
        fps=plan.fps,
        features=plan.features,
        root=root,
        # Straight into the encoder, no PNG in between. LeRobot drops frames when the queue is full, as it
        # must on a robot; a queue that holds a whole episode and the end mark can never be full.
        streaming_encoding=True,
        encoder_queue_maxsize=plan.max_episode_frames + 1,
        video_backend="pyav",  # nothing is decoded here, so LeRobot need not look (loudly) for torchcodec
    )
    drawn = []
    bar = tqdm(total=plan.num_frames, unit="frame", desc=plan.repo_id, disable=not progress)
    # The manager finalizes, and after an error it stops the encoder's thread first: that would otherwise write
    # on into a folder that is being deleted.
    with bar, contextlib.closing(episodes), VideoEncodingManager(dataset):
        for number, episode in enumerate(episodes, start=1):
            for t in range(len(episode)):
                frame = {name: column[t] for name, column in episode.columns.items()}
                dataset.add_frame({**frame, "task": episode.task})
            dataset.save_episode()
            drawn.append({"episode_index": number - 1, **(episode.drawn or {})})
            bar.set_postfix_str(f"episode {number}/{plan.num_episodes}", refresh=False)
            bar.update(len(episode))
    (root / ORIGIN).write_text(json.dumps(plan.origin, indent=1) + "\n")
    if plan.randomize:
        told = {"randomize": plan.randomize, "episodes": drawn}
        (root / RANDOMIZATION).write_text(json.dumps(told, indent=1) + "\n")


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """One progress bar, not one per episode from `datasets` and a paragraph per video from the encoder."""
    import av
    import datasets

    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 reads it each time an encoder opens; 1 = errors only
    bars = datasets.are_progress_bars_disabled()
    av.logging.set_libav_level(av.logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        av.logging.set_libav_level(av.logging.INFO)  # FFmpeg's default
        if not bars:
            datasets.enable_progress_bars()


def _put_into_place(new: Path, root: Path, old: Path) -> None:
    """Rename `new` to `root`; what stood there goes to `old`, and comes back if that fails or a signal comes between."""
    try:
        if root.exists():
            root.rename(old)
        new.rename(root)
    except BaseException:
        if old.exists() and not root.exists():
            old.rename(root)
        raise


def check_dataset(root: Path, plan: Plan) -> int:
    """Count episodes, rows and video frames of the dataset at `root`, and compare them and their origin with the plan.

    Reads only metadata and file headers: milliseconds.

    Returns:
        The number of frames.

    Raises:
        RecordingError: naming everything that differs.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    info = json.loads((root / "meta" / "info.json").read_text())
    frames = info["total_frames"]
    expected: dict[str, tuple[Any, Any]] = {
        "fps": (info["fps"], plan.fps),
        "episodes": (info["total_episodes"], plan.num_episodes),
        "frames": (frames, frames if plan.num_frames is None else plan.num_frames),
        "rows in data/": (sum(pq.read_metadata(f).num_rows for f in root.glob("data/*/*.parquet")), frames),
        "tasks": (list(pd.read_parquet(root / "meta" / "tasks.parquet").index), [plan.task]),
    }
    expected["episodes in meta/"] = (
        sum(pq.read_metadata(f).num_rows for f in root.glob("meta/episodes/*/*.parquet")),
        plan.num_episodes,
    )
    expected["meta/stats.json"] = ((root / "meta" / "stats.json").is_file(), True)
    expected[ORIGIN] = (_told(root / ORIGIN), plan.origin)
    told = _told(root / RANDOMIZATION) or {}
    expected["randomized"] = (told.get("randomize", []), list(plan.randomize))
    expected["randomized episodes"] = (
        len(told.get("episodes", [])),
        plan.num_episodes if plan.randomize else 0,
    )
    bookkeeping = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
    names = sorted(plan.features.keys() | bookkeeping)
    expected["features"] = (sorted(info["features"]), names)
    for name, feature in plan.features.items():
        if name not in info["features"]:
            continue
        found = info["features"][name]
        expected[f"{name} dtype"] = (found["dtype"], feature["dtype"])
        expected[f"{name} shape"] = (list(found["shape"]), list(feature["shape"]))
        if found["dtype"] == "video":
            files = root.glob(f"videos/{name}/*/*.mp4")
            expected[f"{name} video frames"] = (sum(map(_count_video_frames, files)), frames)
    wrong = [
        f"{what}: {found} (expected {want})" for what, (found, want) in expected.items() if found != want
    ]
    if wrong:
        raise RecordingError(
            f"{root} is not the complete dataset that was asked for: {'; '.join(wrong)}. Record it again with "
            "overwrite=True (--overwrite), or choose another root."
        )
    return int(frames)


def _told(path: Path) -> Any:
    """What a JSON file says; None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def _count_video_frames(path: Path) -> int:
    """Frames in an MP4 file, from its index; nothing is decoded."""
    import av

    with av.open(str(path)) as container:
        frames = container.streams.video[0].frames
    return int(frames)


def dataset_root(root: str | Path | None, repo_id: str) -> Path:
    """`root`, or where LeRobot looks for `repo_id` when it is given no root."""
    if root is None:
        from lerobot.utils.constants import HF_LEROBOT_HOME

        root = HF_LEROBOT_HOME / repo_id
    return Path(root).expanduser().resolve()


def add_arguments(parser: argparse.ArgumentParser, *, episodes: int | None, workers: int) -> None:
    """Options that all recording commands share."""
    parser.add_argument(
        "--root",
        type=Path,
        default=None,
        help="folder of the new dataset (default: its place in LeRobot's home)",
    )
    parser.add_argument(
        "--repo-id", default=None, help="name of the dataset for LeRobot (nothing is uploaded)"
    )
    parser.add_argument(
        "--episodes", type=int, default=episodes, help=f"how many to record (default: {episodes or 'all'})"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=workers,
        help="simulating processes; 0: none beside this (default: %(default)s)",
    )
    parser.add_argument("--images", action="store_true", help="keep frames as PNG instead of video")
    parser.add_argument(
        "--environment-state", action="store_true", help="record the simulator's state, too, as a column"
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--overwrite", action="store_true", help="replace a dataset at root")
    target.add_argument(
        "--if-missing", action="store_true", help="do nothing if the dataset is there already"
    )
