"""Seeds of a corpus, which are none of an evaluation's."""

from lerobot_theia.demos.seeds import FIRST_EVALUATION_SEED
from lerobot_theia.distill.errors import DistillError


def corpus_seeds(what: str, first: int, count: int) -> range:
    """`count` seeds from `first`. Raises DistillError if one of them is an evaluation's."""
    if first < 0:
        raise DistillError(f"{what}: seed is {first}, must be at least 0")
    if first + count > FIRST_EVALUATION_SEED:
        raise DistillError(
            f"{what}: seeds {first} to {first + count - 1} are not all below {FIRST_EVALUATION_SEED}, where the seeds "
            "of evaluations begin, which a corpus must not contain; lower `seed` or the number of images"
        )
    return range(first, first + count)
