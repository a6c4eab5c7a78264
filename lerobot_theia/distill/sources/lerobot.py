"""Cameras of a LeRobotDataset, every n-th frame, through LeRobot's own reader."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lerobot_theia.cache.source import image_shape, select_cameras
from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import Frame, Item, split_by_group
from lerobot_theia.distill.licenses import required
from lerobot_theia.distill.sources.interface import Column, reason_of, stamp_of_files
from lerobot_theia.encoder.preprocess import to_uint8


@dataclass(frozen=True, kw_only=True)
class LeRobotSource:
    """RGB cameras of a LeRobotDataset v3.

    Args:
        repo_id, root, revision: as LeRobot names a dataset.
        cameras: None takes all RGB cameras.
        every: take every n-th frame of an episode.
        validation: share of the episodes held out.
        license: of the dataset.
    """

    name: str
    repo_id: str
    root: Path | None = None
    revision: str | None = None
    cameras: tuple[str, ...] | None = None
    every: int = 10
    validation: float = 0.02
    license: str = ""

    columns: ClassVar[Mapping[str, Column]] = {}

    def __post_init__(self) -> None:
        required(f"source {self.name!r}", self.license)
        if self.every < 1:
            raise DistillError(f"source {self.name!r}: every is {self.every}, must be at least 1")

    @property
    def shape(self) -> tuple[int, int] | None:
        shapes = {image_shape(self._dataset.meta, camera)[:2] for camera in self._cameras}
        return shapes.pop() if len(shapes) == 1 else None

    @property
    def origin(self) -> Mapping[str, Any]:
        return {
            "kind": "LeRobotDataset",
            "repo_id": self.repo_id,
            "revision": str(self._dataset.meta.revision),
            "cameras": list(self._cameras),
            "every": self.every,
            "packages": ["lerobot"],
        }

    def identity(self) -> Mapping[str, Any]:
        return {
            "type": "lerobot",
            "version": 1,
            "repo_id": self.repo_id,
            "revision": str(self._dataset.meta.revision),
        }

    def items(self) -> Sequence[Item]:
        episodes = [f"{episode:06d}" for episode, _, _, _ in self._samples]
        splits = split_by_group(episodes, self.validation, f"source {self.name!r}")
        return [
            Item(f"{camera}/{episode:06d}/{frame:06d}", splits[f"{episode:06d}"])
            for episode, frame, _, camera in self._samples
        ]

    def stamp(self, start: int, stop: int) -> str:
        root = self._dataset.meta.root
        return stamp_of_files(sorted(f for f in root.rglob("*") if f.suffix in (".mp4", ".parquet")))

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        for index, samples in itertools.groupby(self._samples[start:stop], key=lambda sample: sample[2]):
            cameras = [sample[3] for sample in samples]
            try:
                row = self._dataset[index]
                frames = [to_uint8(row[camera][None])[0].permute(1, 2, 0).numpy() for camera in cameras]
            except (ImportError, MemoryError) as error:
                raise DistillError(
                    f"source {self.name!r}: frame {index} of {self.repo_id} cannot be decoded on this machine: {reason_of(error)}. "
                    "Mend that; what is packed is kept"
                ) from error
            except Exception as error:  # decoders raise whatever they like
                problem = f"frame {index} does not decode: {reason_of(error)}"
                yield from (UnreadableError(problem) for _ in cameras)
                continue
            yield from (Frame(np.ascontiguousarray(frame)) for frame in frames)

    @functools.cached_property
    def _dataset(self) -> Any:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        root = self.root
        if (
            root is not None
            and root.is_dir()
            and any(root.iterdir())
            and not (root / "meta/info.json").is_file()
        ):
            raise DistillError(f"source {self.name!r}: {root} is no LeRobotDataset: it has no meta/info.json")
        try:
            return LeRobotDataset(self.repo_id, root=self.root, revision=self.revision, return_uint8=True)
        except Exception as error:  # of files, versions, network
            where = self.repo_id if self.root is None else f"{self.repo_id} in {self.root}"
            raise DistillError(
                f"source {self.name!r}: LeRobot cannot open {where} ({reason_of(error)}). Where files are missing, LeRobot "
                "asks the Hugging Face Hub for them; a dataset of version 2 has to be converted to v3.0 first"
            ) from error

    @functools.cached_property
    def _cameras(self) -> tuple[str, ...]:
        return tuple(select_cameras(self._dataset.meta, self.cameras))

    @functools.cached_property
    def _samples(self) -> list[tuple[int, int, int, str]]:
        """(episode, frame in it, index, camera)."""
        episodes = self._dataset.meta.episodes
        spans = zip(episodes["dataset_from_index"], episodes["dataset_to_index"], strict=True)
        return [
            (episode, index - start, index, camera)
            for episode, (start, stop) in enumerate(spans)
            for index in range(int(start), int(stop), self.every)
            for camera in self._cameras
        ]
