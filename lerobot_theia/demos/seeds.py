"""Seeds that evaluations use, and that nothing which is learned from may contain."""

from lerobot_theia.demos.recording import RecordingError

FIRST_EVALUATION_SEED = 100_000
"""This project evaluates with seeds 100000 and up; LeRobot's default, `--seed=1000`, is for quick looks only."""


def check_recorded(last: int) -> None:
    """Raises RecordingError unless the last seed of demonstrations is below those of evaluations."""
    if last >= FIRST_EVALUATION_SEED:
        raise RecordingError(
            f"seeds of demonstrations would go up to {last}, and from {FIRST_EVALUATION_SEED} on they are those of "
            "evaluations, whose starts a policy must not have seen: choose lower ones"
        )
