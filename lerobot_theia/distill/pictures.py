"""Pictures of what the student predicts beside what its teachers see."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lerobot_theia.distill.corpus import Corpus
from lerobot_theia.distill.lessons import Lesson, read_batch, targets
from lerobot_theia.distill.student import Student

CELL = 160
"""Side of one picture, in pixels."""
CAPTION = 14


@torch.no_grad()
def draw_pictures(
    path: Path,
    student: Student,
    corpus: Corpus,
    lessons: Sequence[Lesson],
    indices: Sequence[int],
    size: int,
    device: torch.device,
) -> None:
    """One column per image; one row of frames, then two per teacher: teacher above student.

    Features are drawn as the teacher draws them, else by the three principal components of the teacher's features,
    the same for both.
    """
    batch = read_batch(corpus, lessons, indices)
    student.eval()
    wanted = targets(batch, lessons, corpus, device)
    predicted = student(batch.images(size, device), {name: t.rows for name, t in wanted.items()}, size)
    student.train()
    rows = [("frames", _cells(batch.images(224, device).float() / 255, None, len(batch)))]
    for lesson in lessons:
        name = lesson.teacher.name
        if name not in wanted:
            continue
        target = wanted[name]
        seen, guessed = _pictures(lesson, target.features, predicted[name].float())
        rows += [(f"{name}: teacher", _cells(seen, target.rows, len(batch)))]
        rows += [(f"{name}: student", _cells(guessed, target.rows, len(batch)))]
    path.parent.mkdir(parents=True, exist_ok=True)
    _sheet(rows).save(path)


def _pictures(lesson: Lesson, target: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised features (b, N, C) of both as images (b, 3, h, w) in [0, 1]."""
    _, height, width = lesson.teacher.feature_size
    both = []
    for features in (target, predicted):
        restored = lesson.standard.restore(features).transpose(1, 2).unflatten(2, (height, width))
        picture = lesson.teacher.picture(restored)
        if picture is None:
            return _components(target, predicted, height, width)
        both.append(picture)
    return both[0], both[1]


def _components(target: Tensor, predicted: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    flat = target.flatten(0, 1)
    mean = flat.mean(0)
    components = min(3, flat.shape[1])
    basis = torch.linalg.svd((flat - mean).cpu(), full_matrices=False)[2][:components].T.to(flat)
    values = (flat - mean) @ basis
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    pictures = []
    for features in (target, predicted):
        scaled = (((features - mean) @ basis - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        scaled = torch.nn.functional.pad(scaled, (0, 3 - components))
        pictures.append(scaled.transpose(1, 2).unflatten(2, (height, width)))
    return pictures[0], pictures[1]


def _cells(pictures: Tensor, rows: Tensor | None, count: int) -> list[np.ndarray | None]:
    cells: list[np.ndarray | None] = [None] * count
    places = range(count) if rows is None else rows.tolist()
    for place, picture in zip(places, pictures, strict=True):
        cells[place] = (picture.clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
    return cells


def _sheet(rows: Sequence[tuple[str, Sequence[np.ndarray | None]]]) -> Image.Image:
    columns = max(len(cells) for _, cells in rows)
    sheet = Image.new("RGB", (columns * CELL, len(rows) * (CELL + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (caption, cells) in enumerate(rows):
        top = y * (CELL + CAPTION)
        draw.text((2, top + 1), caption, fill="black")
        for x, cell in enumerate(cells):
            if cell is not None:
                image = Image.fromarray(cell).resize((CELL - 2, CELL - 2), Image.Resampling.NEAREST)
                sheet.paste(image, (x * CELL + 1, top + CAPTION))
    return sheet
