"""What a student does on held-out images: losses per teacher, and pictures of its features beside theirs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator

from lerobot_theia.distill.corpus import Corpus
from lerobot_theia.distill.lessons import Lesson, read_batch, targets
from lerobot_theia.distill.loss import batch_loss, teacher_loss
from lerobot_theia.distill.student import Student


@dataclass(frozen=True)
class TeacherScore:
    """Mean over the held-out images of a teacher."""

    cosine: float
    smooth_l1: float
    images: int


@dataclass(frozen=True)
class Score:
    """Validation losses at one resolution.

    Args:
        loss: what training minimises, over all held-out images.
    """

    loss: float
    size: int
    images: int
    teachers: dict[str, TeacherScore]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@torch.no_grad()
def validate(
    student: Student,
    corpus: Corpus,
    lessons: Sequence[Lesson],
    indices: Sequence[int],
    *,
    size: int,
    batch_size: int,
    bf16: bool,
    accelerator: Accelerator,
) -> Score:
    """Losses over `indices`, which the processes of `accelerator` share out."""
    weights = {lesson.teacher.name: lesson.weight for lesson in lessons}
    names = list(weights)
    device = accelerator.device
    # Per teacher: cosine, SmoothL1, images; and last: loss, images.
    sums = torch.zeros(len(names) + 1, 3, dtype=torch.float64, device=device)
    mine = list(indices)[accelerator.process_index :: accelerator.num_processes]
    student.eval()
    for start in range(0, len(mine), batch_size):
        batch = read_batch(corpus, lessons, mine[start : start + batch_size])
        wanted = targets(batch, lessons, corpus, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            predicted = student(
                batch.images(size, device), {name: target.rows for name, target in wanted.items()}, size
            )
        losses = {
            name: teacher_loss(predicted[name], target.features, target.rows)
            for name, target in wanted.items()
        }
        for name, loss in losses.items():
            row = sums[names.index(name)]
            row += torch.stack(
                [
                    loss.cosine.sum(),
                    loss.smooth_l1.sum(),
                    torch.tensor(float(len(loss.cosine)), device=device),
                ]
            )
        sums[-1, 0] += batch_loss(losses, weights, len(batch)) * len(batch)
        sums[-1, 2] += len(batch)
    student.train()
    sums = accelerator.reduce(sums, "sum").cpu()
    teachers = {
        name: TeacherScore(float(row[0] / row[2]), float(row[1] / row[2]), int(row[2]))
        for name, row in zip(names, sums, strict=False)
        if row[2] > 0
    }
    return Score(float(sums[-1, 0] / sums[-1, 2]), size, int(sums[-1, 2]), teachers)
