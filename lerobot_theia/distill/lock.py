"""One process packs or extracts; others wait, and find it done."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lerobot_theia.distill.errors import DistillError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the kernel's lock on `folder`, beside it, so that it ends with its process."""
    place = folder.parent / ".locks" / f"{folder.name}.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("another process is making %s; waiting for it", folder)
            lock.acquire()
    except OSError as error:
        raise DistillError(
            f"cannot write to {folder.parent}: {error.strerror or error}; choose a writable place with cache_root=..."
        ) from error
    try:
        yield
    finally:
        lock.release()
