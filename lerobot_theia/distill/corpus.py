"""All packed sources as one stream of images: who is in it, who was left out, and which image comes when."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.frames import SPLITS, TRAIN, VALIDATION, Frames
from lerobot_theia.distill.hashing import digest_of
from lerobot_theia.distill.pack import SKIPPED_FILE, PackedSource, Skipped, check_skipped


def evenly(indices: Sequence[int] | np.ndarray, number: int) -> list[int]:
    """So many of `indices`, from the first to the last in even steps; all of them if there are no more.

    Corpus indices are in order of the sources, so each source has its share.
    """
    if len(indices) <= number:
        return [int(index) for index in indices]
    return [int(indices[at]) for at in np.linspace(0, len(indices) - 1, number).round().astype(int)]


def check_splits(found: Collection[str], sources: Sequence[str]) -> None:
    """Raise unless there are images to train with, and others to validate with."""
    for split, remedy in ((TRAIN, "lower"), (VALIDATION, "raise")):
        if split not in found:
            raise DistillError(
                f"no image is in the {split} split of {list(sources)}: {remedy} `validation` of a source that has two or more "
                "episodes, videos or shards (one alone is never divided), add such a source, or name the split in a folder's "
                "manifest"
            )


@dataclass(frozen=True)
class Part:
    """The images of a batch that come from one source.

    Args:
        source: index of the source in the corpus.
        rows: their rows in the packed source.
    """

    source: int
    rows: tuple[int, ...]
    frames: Frames


class Corpus:
    """Packed sources without duplicates.

    Args:
        sources: in the order of the settings; of two equal images the first one stays.
        repeat: source name to how often each of its training images comes per epoch (default 1).
        allow_skipped: raise if more than this share of all images is a duplicate or could not be read.
        check_duplicates: compare the pixels of all images.
    """

    def __init__(
        self,
        sources: Sequence[PackedSource],
        repeat: Mapping[str, int] | None = None,
        allow_skipped: float = 0.001,
        check_duplicates: bool = True,
    ) -> None:
        self.sources = tuple(sources)
        self._starts = np.cumsum([0, *(len(source) for source in sources)])
        duplicates, duplicate_rows = self._duplicates() if check_duplicates else ([], set())
        self.skipped = [skipped for source in sources for skipped in source.skipped] + duplicates
        total = int(self._starts[-1]) + sum(len(source.skipped) for source in sources)
        check_skipped("corpus", self.skipped, total, allow_skipped, sources[0].path.parent / SKIPPED_FILE)
        self.indices = {split: self._indices(split, duplicate_rows) for split in SPLITS}
        check_splits(
            {split for split in SPLITS if len(self.indices[split])}, [source.name for source in sources]
        )
        times = {source.name: (repeat or {}).get(source.name, 1) for source in sources}
        self.epoch = np.concatenate(
            [
                np.tile(self._of_source(self.indices[TRAIN], i), times[source.name])
                for i, source in enumerate(sources)
            ]
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def content_sha256(self) -> str:
        return digest_of([[source.name, source.content_sha256] for source in self.sources])

    def id(self, index: int) -> str:
        source, row = self.locate(index)
        return f"{self.sources[source].name}/{self.sources[source].ids[row]}"

    def locate(self, index: int) -> tuple[int, int]:
        """The source of a corpus index, and the row in it."""
        source = int(np.searchsorted(self._starts, index, side="right")) - 1
        return source, int(index - self._starts[source])

    def index(self, source: int, row: int) -> int:
        return int(self._starts[source]) + row

    def read(self, indices: Sequence[int]) -> list[Part]:
        """The images at `indices`, grouped by source; within a source in the order given."""
        rows: dict[int, list[int]] = {}
        for index in indices:
            source, row = self.locate(int(index))
            rows.setdefault(source, []).append(row)
        return [Part(i, tuple(rows[i]), self.sources[i].frames(rows[i])) for i in sorted(rows)]

    def _duplicates(self) -> tuple[list[Skipped], set[int]]:
        first: dict[bytes, int] = {}
        skipped, rows = [], set()
        for number, source in enumerate(self.sources):
            for row, pixels in enumerate(source.pixel_hashes()):
                index = self.index(number, row)
                earlier = first.setdefault(pixels, index)
                if earlier != index:
                    skipped.append(Skipped(self.id(index), f"a duplicate of {self.id(earlier)}"))
                    rows.add(index)
        return skipped, rows

    def _indices(self, split: str, left_out: set[int]) -> np.ndarray:
        indices = [
            self.index(number, row)
            for number, source in enumerate(self.sources)
            for row, in_split in enumerate(source.splits)
            if in_split == split
        ]
        return np.array([index for index in indices if index not in left_out], dtype=np.int64)

    def _of_source(self, indices: np.ndarray, source: int) -> np.ndarray:
        return indices[(indices >= self._starts[source]) & (indices < self._starts[source + 1])]


class Order:
    """Which images each training step sees: an endless row of shuffled epochs, cut into batches.

    A pure function of seed and step, so that a resumed run goes on with the very images it would have seen; an
    epoch's last images begin the batch that the next epoch fills.
    """

    def __init__(self, epoch: np.ndarray, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise DistillError(f"batch_size is {batch_size}, must be at least 1")
        self._epoch, self.batch_size, self._seed = epoch, batch_size, seed
        self._shuffled: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> float:
        return len(self._epoch) / self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """(batch_size,) corpus indices of a step, from 0."""
        at = step * self.batch_size
        stop, taken = at + self.batch_size, []
        while at < stop:
            number, offset = divmod(at, len(self._epoch))
            part = self._permuted(number)[offset : offset + stop - at]
            taken.append(part)
            at += len(part)
        return np.concatenate(taken)

    def _permuted(self, number: int) -> np.ndarray:
        if self._shuffled is None or self._shuffled[0] != number:
            permutation = np.random.Generator(np.random.PCG64([self._seed, number])).permutation(self._epoch)
            self._shuffled = (number, permutation)
        return self._shuffled[1]
