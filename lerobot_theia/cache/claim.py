"""One process builds a cache; others wait."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lerobot_theia.cache.errors import CacheError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[None]:
    """One process builds a cache; others wait. The lock is the kernel's, so it ends with its process."""
    lock_path = path.parent / ".locks" / f"{path.name}.lock"
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("another process is building %s; waiting for it", path)
            lock.acquire()
    except OSError as error:
        raise CacheError(
            f"cannot write to {path.parent}: {error.strerror or error}. Choose a writable place "
            "with `cache_root=...` or the environment variable LEROBOT_THEIA_CACHE."
        ) from error
    try:
        yield
    finally:
        lock.release()
