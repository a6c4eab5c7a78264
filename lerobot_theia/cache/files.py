"""The boundary to the file system: everything a cache writes is written beside its place, synced, renamed."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from lerobot_theia.cache.errors import CacheError

TEMPORARY_PREFIX = ".writing-"


def publish(path: Path, chunks: Iterable[bytes | memoryview]) -> str:
    """Write `chunks` to `path` so that it appears whole or not at all, and survives a power cut.

    Returns the SHA-256 of what was written. Raises CacheError when the file system refuses (no space, quota,
    read-only); what stood at `path` before still stands then.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CacheError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose another place with "
            "`cache_root=...`. What was complete before is untouched; the same command resumes."
        ) from error
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable. POSIX wants a sync of the directory itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Delete what interrupted writers left. Call it while holding the cache's lock."""
    for stray in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        stray.unlink(missing_ok=True)


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
