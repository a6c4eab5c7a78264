"""What a finished run leaves: the student, as trained and as shipped, each with its provenance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lerobot_theia.distill.corpus import Corpus
from lerobot_theia.distill.layout import write_statistics, write_student
from lerobot_theia.distill.lessons import Lesson
from lerobot_theia.distill.provenance import provenance, write_provenance
from lerobot_theia.distill.settings import DistillSettings
from lerobot_theia.distill.student import Beginning
from lerobot_theia.distill.training import Trained
from lerobot_theia.encoder.weights_hash import weights_sha256

SHIPPED = "shipped"


def write_result(
    result: Path,
    settings: DistillSettings,
    beginning: Beginning,
    licenses: Mapping[str, str],
    corpus: Corpus,
    lessons: Sequence[Lesson],
    trained: Trained,
) -> None:
    student = beginning.student
    standards = {lesson.teacher.name: lesson.standard for lesson in lessons}

    def provenance_of(sha256: str) -> dict[str, Any]:
        return provenance(
            beginning=beginning,
            licenses=licenses,
            weights_sha256=sha256,
            corpus=corpus,
            lessons=lessons,
            trained=trained,
        )

    write_statistics(result, standards)
    write_student(result, student)
    write_provenance(result, provenance_of(weights_sha256(student)))
    if settings.export.shipped:
        shipped = settings.output_dir / SHIPPED
        write_student(shipped, student, dtype=torch.float16, translators=False)
        rounded = {name: tensor.half().float() for name, tensor in student.state_dict().items()}
        student.load_state_dict(rounded)  # the hash is that of the weights as they ship
        write_provenance(shipped, provenance_of(weights_sha256(student)))
