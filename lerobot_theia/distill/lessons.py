"""Teachers at work: the targets of a batch, from extracted features or computed on the fly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lerobot_theia.distill.corpus import Corpus, Part, evenly
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.features import StoredFeatures, check_features
from lerobot_theia.distill.loss import Standard
from lerobot_theia.distill.pack import PackedSource
from lerobot_theia.distill.sources.interface import Source
from lerobot_theia.distill.teachers.interface import Teacher


@dataclass(frozen=True)
class Lesson:
    """A teacher, with what it takes to teach.

    Args:
        weight: of its loss against the other teachers'.
        stored: its extracted features; None computes them on the fly.
        standard: per-channel statistics of its features.
    """

    teacher: Teacher
    weight: float
    stored: StoredFeatures | None
    standard: Standard


def teaches(teacher: Teacher, source: Source | PackedSource) -> bool:
    return teacher.needs <= source.columns.keys()


@dataclass(frozen=True)
class Batch:
    """Images of a step, and the features that were read from disk for them.

    Args:
        indices: in the corpus.
        parts: the images by source; rows of the batch follow this order.
        stored: teacher name and number of the part to features (b, C, H, W).
    """

    indices: tuple[int, ...]
    parts: tuple[Part, ...]
    stored: Mapping[tuple[str, int], Tensor]

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def images(self, size: int, device: torch.device) -> Tensor:
        """(B, 3, size, size) uint8."""
        return torch.cat([part.frames.to(device).at(size) for part in self.parts])


def read_batch(corpus: Corpus, lessons: Sequence[Lesson], indices: Sequence[int]) -> Batch:
    """Everything a batch needs from disk."""
    parts = tuple(corpus.read(indices))
    stored = {}
    for lesson in lessons:
        for number, part in enumerate(parts):
            source = corpus.sources[part.source]
            if lesson.stored is not None and teaches(lesson.teacher, source):
                stored[lesson.teacher.name, number] = lesson.stored.gather(source, part.rows)
    in_order = tuple(corpus.index(part.source, row) for part in parts for row in part.rows)
    return Batch(in_order, parts, stored)


@dataclass(frozen=True)
class Target:
    """Standardised features (b, H*W, C) of some images of a batch: those at `rows` (b,), None for all."""

    features: Tensor
    rows: Tensor | None


@torch.no_grad()
def targets(
    batch: Batch, lessons: Sequence[Lesson], corpus: Corpus, device: torch.device
) -> dict[str, Target]:
    """What the student is to predict, for each teacher that teaches an image of the batch."""
    found = {}
    for lesson in lessons:
        features, rows, row = [], [], 0
        for number, part in enumerate(batch.parts):
            source = corpus.sources[part.source]
            if teaches(lesson.teacher, source):
                features.append(
                    lesson.standard.standardise(raw_features(batch, number, lesson, source, device))
                )
                rows.append(torch.arange(row, row + len(part.rows)))
            row += len(part.rows)
        if features:
            everything = len(features) == len(batch.parts)
            found[lesson.teacher.name] = Target(
                torch.cat(features), None if everything else torch.cat(rows).to(device)
            )
    return found


def raw_features(
    batch: Batch, number: int, lesson: Lesson, source: PackedSource, device: torch.device
) -> Tensor:
    """(b, C, H, W) of one part of the batch."""
    stored = batch.stored.get((lesson.teacher.name, number))
    if stored is not None:
        return stored.to(device, non_blocking=True)
    part = batch.parts[number]
    features = lesson.teacher(part.frames.to(device))
    check_features(lesson.teacher, features, [source.ids[row] for row in part.rows], source.name)
    return features


@torch.no_grad()
def sampled_standard(
    teacher: Teacher, corpus: Corpus, device: torch.device, images: int = 2048, batch_size: int = 32
) -> Standard:
    """Statistics of a teacher that teaches on the fly, from an even sample of its training images."""
    taught = [
        index for index in corpus.epoch if teaches(teacher, corpus.sources[corpus.locate(int(index))[0]])
    ]
    taught = sorted(set(map(int, taught)))
    chosen = evenly(taught, images)
    channels = teacher.feature_size[0]
    total = torch.zeros(channels, dtype=torch.float64)
    square, count = torch.zeros_like(total), 0
    for start in range(0, len(chosen), batch_size):
        for part in corpus.read(chosen[start : start + batch_size]):
            features = teacher(part.frames.to(device))
            source = corpus.sources[part.source]
            check_features(teacher, features, [source.ids[row] for row in part.rows], source.name)
            values = features.double().cpu().transpose(0, 1).flatten(1)  # (C, b*H*W)
            total += values.sum(1)
            square += values.square().sum(1)
            count += values.shape[1]
    mean = total / count
    return Standard(mean.float(), (square / count - mean.square()).clamp_min(0).sqrt().float())


def check_coverage(sources: Sequence[Source], teachers: Sequence[Teacher]) -> None:
    """Raise for a teacher without images, and for images without a teacher."""
    if not teachers:
        raise DistillError("no teacher is configured: choose some with `teachers=...`")
    for teacher in teachers:
        if not any(teaches(teacher, source) for source in sources):
            raise DistillError(
                f"teacher {teacher.name} needs {sorted(teacher.needs)}, which no source has: leave the teacher out, or "
                "add a source of its simulator"
            )
    for source in sources:
        if not any(teaches(teacher, source) for teacher in teachers):
            raise DistillError(
                f"source {source.name!r} has no teacher: it has {sorted(source.columns) or 'images only'}, the "
                f"teachers need { ({t.name: sorted(t.needs) for t in teachers}) }. Leave the source out, or add a teacher"
            )
