"""Simulators of several scenes: some starts of each, some pictures of each start."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lerobot_theia.demos.workers import ordered_map
from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import Frame, Item, split_by_group
from lerobot_theia.distill.seeds import corpus_seeds
from lerobot_theia.distill.sources.interface import Column
from lerobot_theia.distill.sources.mujoco import COLUMNS


@dataclass(frozen=True)
class Episode:
    """Pictures of one start; `wanted` says which."""

    scene: str
    seed: int
    wanted: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ScenesSource(ABC):
    """A source whose images are rendered when they are read.

    Args:
        episodes: starts per scene.
        frames_per_episode: pictures per start.
        seed: of the first start of each scene; the others follow. Below 100000.
        validation: share of the episodes held out.
        workers: rendering processes; 0 renders in this one.
    """

    name: str
    license: str
    episodes: int
    frames_per_episode: int = 8
    seed: int = 0
    validation: float = 0.05
    workers: int = 0

    columns: ClassVar[Mapping[str, Column]] = COLUMNS

    def __post_init__(self) -> None:
        corpus_seeds(f"source {self.name!r}", self.seed, self.episodes)
        for field, least in (("episodes", 1), ("frames_per_episode", 1), ("workers", 0)):
            if getattr(self, field) < least:
                raise DistillError(
                    f"source {self.name!r}: {field} is {getattr(self, field)}, must be at least {least}"
                )

    @property
    @abstractmethod
    def scene_names(self) -> Sequence[str]: ...

    @staticmethod
    @abstractmethod
    def play(episode: Episode) -> list[Frame]:
        """Take the pictures of an episode that are wanted. Runs in workers."""

    @staticmethod
    @abstractmethod
    def close() -> None:
        """Let go of the scene that `play` left open in this process, before another source opens one of its own."""

    @property
    @abstractmethod
    def origin(self) -> Mapping[str, Any]: ...

    @abstractmethod
    def identity(self) -> Mapping[str, Any]: ...

    def items(self) -> Sequence[Item]:
        groups = [f"{scene}/{seed:05d}" for scene, seed, _ in self._plan]
        splits = split_by_group(groups, self.validation, f"source {self.name!r}")
        return [
            Item(f"{group}/{k:02d}", splits[group])
            for group, (_, _, k) in zip(groups, self._plan, strict=True)
        ]

    def stamp(self, start: int, stop: int) -> str:
        return ""

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        wanted: dict[tuple[str, int], list[int]] = {}
        for scene, seed, k in self._plan[start:stop]:
            wanted.setdefault((scene, seed), []).append(k)
        episodes = [Episode(scene, seed, tuple(pictures)) for (scene, seed), pictures in wanted.items()]
        try:
            for frames in ordered_map(
                functools.partial(played, self.play, self.name), episodes, self.workers
            ):
                yield from frames
        finally:
            self.close()

    @functools.cached_property
    def _plan(self) -> list[tuple[str, int, int]]:
        """(scene, seed, picture), a scene after the other: making one takes a second."""
        return [
            (scene, seed, k)
            for scene in self.scene_names
            for seed in corpus_seeds(self.name, self.seed, self.episodes)
            for k in range(self.frames_per_episode)
        ]


def played(play: Callable[[Episode], list[Frame]], source: str, episode: Episode) -> list[Frame]:
    """Raises DistillError that names the episode, where its simulator fails."""
    try:
        return play(episode)
    except DistillError:
        raise
    except Exception as error:  # MuJoCo's own kind derives from nothing else
        raise DistillError(
            f"{source}/{episode.scene}/{episode.seed:05d}: the simulator fails ({type(error).__name__}: {error}). What is packed is "
            "kept: resume=true goes on from there. If it fails again, leave this scene out or choose another `seed`; "
            "HYDRA_FULL_ERROR=1 shows where"
        ) from error
