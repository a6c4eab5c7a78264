"""Tiny LeRobotDatasets (v3) made offline with LeRobot's own writer, for every room's tests.

    root = make_dataset(tmp_path / "demos")                       # three episodes, two cameras, videos
    dataset = open_dataset(root)                                  # LeRobotDataset, frames as uint8

Frames are textures that move and differ from frame to frame, so that a token taken from the wrong frame shows.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset

REPO_ID = "local/tiny"
CAMERAS = {"observation.images.top": (48, 64), "observation.images.wrist": (32, 32)}
"""Camera name to (height, width): two sizes, so that nothing depends on cameras being alike."""
TASKS = ("push the block", "lift the block")


@contextlib.contextmanager
def ordinary_scheduling() -> Iterator[None]:
    """For whatever encodes AV1: SVT-AV1 makes the thread that opens it a real-time one if it may, which root may, and leaves it so.
    Processes that such a thread starts inherit it, and a machine with as many of them as cores does little else."""
    if not hasattr(os, "sched_getscheduler"):  # macOS
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


@ordinary_scheduling()
def make_dataset(
    root: Path,
    *,
    episodes: Sequence[int] = (5, 7, 4),
    cameras: Mapping[str, tuple[int, ...]] = CAMERAS,
    use_videos: bool = True,
    fps: int = 10,
    state_dim: int = 3,
    action_dim: int = 2,
    seed: int = 0,
    repo_id: str = REPO_ID,
    extra_features: Mapping[str, dict[str, Any]] | None = None,
    episodes_per_file: int | None = None,
) -> Path:
    """Record a dataset at `root`, which must not exist yet, and return `root`.

    Args:
        root: where the dataset will stand.
        episodes: frames in each episode; tasks take turns. LeRobot cannot sum up a matrix column of an episode of
            one frame.
        cameras: camera name to (height, width) or (height, width, channels).
        use_videos: keep frames as videos; else as images inside the parquet files.
        fps: frames per second.
        state_dim: width of `observation.state`; 1 makes it a scalar, as LeRobot does.
        action_dim: width of `action`.
        seed: of states, actions, textures: two seeds are two datasets.
        repo_id: its name for LeRobot; nothing is uploaded.
        extra_features: more columns, as LeRobot describes features; int, float, bool and string are filled.
        episodes_per_file: None lets all episodes share one file; 1 gives each its own.
    """
    assert episodes_per_file in (None, 1), "LeRobot splits files by size: all in one, or each alone"
    rng = np.random.default_rng(seed)
    features = {
        "observation.state": column("float32", state_dim),
        "action": column("float32", action_dim),
        "next.reward": column("float32", 1),
        "next.done": column("bool", 1),
        **{name: camera(shape, use_videos) for name, shape in cameras.items()},
        **(extra_features or {}),
    }
    at_most_mb = None if episodes_per_file is None else 1e-9
    dataset = LeRobotDataset.create(
        repo_id,
        fps,
        features,
        root=root,
        use_videos=use_videos,
        rgb_encoder=RGBEncoderConfig(vcodec="libsvtav1", preset=12),  # the quickest
        encoder_threads=1,
        video_files_size_in_mb=at_most_mb,  # type: ignore[arg-type]
        data_files_size_in_mb=at_most_mb,  # type: ignore[arg-type]
    )
    for episode, length in enumerate(episodes):
        for frame in range(length):
            values = {
                name: random_value(rng, feature)
                for name, feature in features.items()
                if feature["dtype"] not in ("image", "video")
            }
            values["next.done"] = np.array([frame == length - 1])
            pictures = {name: texture(rng, features[name]["shape"], frame) for name in cameras}
            dataset.add_frame({**values, **pictures, "task": TASKS[episode % len(TASKS)]})
        dataset.save_episode()
    dataset.finalize()
    return root


def open_dataset(root: Path, repo_id: str = REPO_ID, **settings: Any) -> LeRobotDataset:
    """The dataset as `lerobot-train` opens it: video frames as uint8."""
    return LeRobotDataset(repo_id, root=root, return_uint8=True, **settings)


def column(dtype: str, *shape: int) -> dict[str, Any]:
    """LeRobot's description of a low-dimensional feature."""
    return {"dtype": dtype, "shape": shape, "names": None}


def camera(shape: tuple[int, ...], use_videos: bool = True) -> dict[str, Any]:
    """LeRobot's description of a camera of (height, width[, channels])."""
    height, width, channels = (*shape, 3)[:3]
    return {
        "dtype": "video" if use_videos else "image",
        "shape": (height, width, channels),
        "names": ["height", "width", "channels"],
    }


def random_value(rng: np.random.Generator, feature: dict[str, Any]) -> Any:
    dtype, shape = feature["dtype"], feature["shape"]
    if dtype == "string":
        return f"note {rng.integers(1000)}"
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith(("int", "uint")):
        return rng.integers(0, 100, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def texture(rng: np.random.Generator, shape: tuple[int, int, int], frame: int) -> np.ndarray:
    """(H, W, C) uint8: coloured blocks over waves that move with `frame`, so that video keeps them apart."""
    height, width, channels = shape
    blocks = rng.integers(0, 160, (4, 4, channels)).repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)
    rows, columns = np.mgrid[:height, :width]
    waves = 45 * (1 + np.sin((rows + 2 * columns) / 5 + frame))[..., None]
    return (blocks[:height, :width] + waves).astype(np.uint8)
