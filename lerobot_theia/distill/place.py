"""A run's folder, which belongs to one run at a time."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from lerobot_theia.cache.claim import CLAIM_PREFIX, TOUCH_EVERY_S, Claim, owner, take
from lerobot_theia.cache.errors import CacheError
from lerobot_theia.distill.errors import DistillError


@contextlib.contextmanager
def alone_in(output_dir: Path) -> Iterator[None]:
    """Make the folder, and hold it until the block is done.

    Raises DistillError, before anything else is done, if it cannot be written to, or another run holds it.
    """
    path = output_dir / f"{CLAIM_PREFIX}run"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        claim = take(path)
    except (OSError, CacheError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        raise DistillError(
            f"output_dir={output_dir} cannot be written to ({getattr(reason, 'strerror', None) or reason}): choose another place"
        ) from error
    if claim is None:
        raise DistillError(
            f"output_dir={output_dir} is in use by {owner(path)}: wait for it or end it, or choose another output_dir"
        )
    done = threading.Event()
    threading.Thread(target=_keep, args=(claim, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        claim.release()


def _keep(claim: Claim, done: threading.Event) -> None:
    """Show other machines, which do not see this process, that it lives."""
    while not done.wait(TOUCH_EVERY_S):
        claim.touch()
