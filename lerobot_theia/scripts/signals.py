"""Commands end in order when they are asked to."""

import signal
from types import FrameType


def end_in_order() -> None:
    """From now on Ctrl-C and SIGTERM raise SystemExit, so that what is finished stays and the command says how far it got. A
    second signal ends at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)
