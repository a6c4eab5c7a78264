"""Seeds that evaluations use, and that no corpus may contain."""

from lerobot_theia.distill.errors import DistillError

FIRST_EVALUATION_SEED = 100_000
"""This project evaluates with seeds 100000 and up; LeRobot's default, `--seed=1000`, is for quick looks only."""


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
