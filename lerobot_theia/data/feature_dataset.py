"""A LeRobotDataset whose cameras are tokens from a cache.

Items are those of the LeRobotDataset it is made from, except that a camera's frames are replaced by its tokens,
under `tokens_key(camera)`: (N, D), or (S, N, D) with delta timestamps; or, where the policy has the tokens on its
device, by their rows there under `frame_key(camera)`. Nothing is decoded, and nothing is read
from parquet after construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.reader import Empty, new_tensor
from lerobot_theia.data.batch import Batch, empty
from lerobot_theia.data.columns import tensor_columns
from lerobot_theia.data.keys import frame_key, scale_key, tokens_key
from lerobot_theia.data.windows import EpisodeRows

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_theia.data.residency import FrameRuns, LoadedTokens

_MAIN_PROCESS_ONLY = ("meta", "hf_dataset", "absolute_to_relative_idx")
"""Loader workers need neither metadata nor parquet; leaving them out makes a worker start in seconds."""


class FeatureDataset(Dataset):
    """Serves what `lerobot-train` asks of a dataset.

    Args:
        dataset: The LeRobotDataset to stand in for; episode selection and delta timestamps are taken from it.
        cache: Tokens of that dataset.
        cameras: Cameras to serve, by their name in the dataset, with the name the policy knows them by
            (they differ under `--rename_map`).
        tokens: Where to gather from: the cache itself (None) or what was loaded from it.
        on_device: The policy has the tokens of these frames on its device; serve their rows instead.
        views: Views of each frame to draw from, per sample and camera; 1 serves the plain frames.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        cache: FeatureCache,
        cameras: dict[str, str],
        *,
        tokens: LoadedTokens | None = None,
        on_device: FrameRuns | None = None,
        views: int = 1,
    ) -> None:
        self.meta = dataset.meta
        self.hf_dataset = dataset.hf_dataset
        self.absolute_to_relative_idx = dataset.absolute_to_relative_idx
        self.repo_id, self.fps = dataset.repo_id, dataset.meta.fps
        self.episodes, self.num_episodes = dataset.episodes, dataset.num_episodes
        self.cache, self.cameras, self.on_device, self.views = cache, cameras, on_device, views
        self._source: FeatureCache | LoadedTokens = cache if tokens is None else tokens
        if len(cache) != self.meta.total_frames:
            raise ValueError(
                f"cache {cache.path} holds {len(cache)} frames, {self.repo_id} has {self.meta.total_frames}"
            )

        self._columns, other_columns = tensor_columns(self.hf_dataset, skip=set(self.meta.camera_keys))
        self._other_columns = self.hf_dataset.select_columns(other_columns) if other_columns else None
        self._tasks = list(self.meta.tasks.index)
        # A copy: sending the columns to a worker moves them to shared memory and frees what a view would point at.
        self._absolute = self._columns["index"].numpy().copy()
        self._episode_rows = EpisodeRows.from_columns(
            self._columns["episode_index"].numpy(),
            np.asarray(self.meta.episodes["dataset_from_index"]),
            np.asarray(self.meta.episodes["dataset_to_index"]),
        )
        self._deltas = {
            key: np.asarray(deltas) for key, deltas in (dataset.reader.delta_indices or {}).items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name in _MAIN_PROCESS_ONLY else value for name, value in self.__dict__.items()}

    @property
    def num_frames(self) -> int:
        """Frames of the selected episodes."""
        return len(self._absolute)

    @property
    def features(self) -> dict[str, dict]:
        return self.meta.features

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.gather([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """A batch at once; PyTorch's loader asks for it and hands the result to its collate function."""
        if self._other_columns is None:
            return [Batch(self.gather(indices, empty))]
        batch = self.gather(indices)
        # Language columns have a collate function of LeRobot's own, which wants samples.
        return [{key: value[i] for key, value in batch.items()} for i in range(len(indices))]

    def gather(self, indices: list[int], allocate: Empty = new_tensor) -> dict[str, Any]:
        """The collated batch of samples `indices` (rows of the selected episodes): tensors (B, ...), lists of text.

        Tokens lie in what `allocate` gives. Only a `Batch` may be given `batch.empty`, whose memory comes free when the
        batch has reached its receiver.
        """
        rows = np.asarray(indices, dtype=np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"samples {rows.min()}..{rows.max()} asked of {len(self)}")
        windows = {
            key: self._episode_rows.window(rows, self._absolute[rows], deltas)
            for key, deltas in self._deltas.items()
        }
        batch: dict[str, Any] = {}
        for key, column in self._columns.items():
            batch[key] = take(column, windows[key][0] if key in windows else rows)
        for key, (_, outside) in windows.items():
            batch[f"{key}_is_pad"] = torch.from_numpy(outside)
        views = draw_views(rows, len(self.cameras), self.views)
        for (camera, name), drawn in zip(self.cameras.items(), views, strict=True):
            of_camera = windows[camera][0] if camera in windows else rows
            batch |= self._tokens(camera, name, of_camera, drawn, allocate)
        if self._other_columns is not None:
            batch |= {key: list(values) for key, values in self._other_columns[rows].items()}
        batch["task"] = [self._tasks[task] for task in self._columns["task_index"][rows].tolist()]
        return batch

    def _tokens(
        self, camera: str, name: str, rows: np.ndarray, drawn: np.ndarray | None, allocate: Empty
    ) -> dict[str, Tensor]:
        """Of `rows` (B,) or windows (B, S), in the views `drawn` (B,)."""
        frames, views = self._absolute[rows], None
        if drawn is not None:
            views = np.broadcast_to(drawn.reshape(-1, *[1] * (rows.ndim - 1)), rows.shape)
        if self.on_device is not None:
            return {frame_key(name): torch.from_numpy(self.on_device.rows(frames, views))}
        flat = None if views is None else views.reshape(-1)
        stored = self._source.gather_stored(camera, frames.reshape(-1), allocate, flat)
        tokens = {tokens_key(name): stored.tokens.view(*rows.shape, *stored.tokens.shape[1:])}
        if stored.scale is not None:
            tokens[scale_key(name)] = stored.scale.view(*rows.shape, *stored.scale.shape[1:])
        return tokens


def draw_views(rows: np.ndarray, cameras: int, views: int) -> np.ndarray | list[None]:
    """A view for each camera and each sample of a batch, (cameras, B); Nones where there is nothing to draw.

    A function of which samples come together, and of nothing else: so it is the same for any number of workers, any
    residency and after a resume, and another one in the next epoch, which shuffles anew.
    """
    if views == 1:
        return [None] * cameras
    return np.random.default_rng(rows).integers(views, size=(cameras, len(rows)))


def take(column: Tensor, rows: np.ndarray) -> Tensor:
    """`column[rows]` for rows of any shape."""
    return column[torch.from_numpy(rows)]
