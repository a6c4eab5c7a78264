"""Errors of the cache room. All derive from `CacheError`."""

from pathlib import Path


class CacheError(Exception):
    """A cache cannot be made or read; the message names the field, the value and the way out."""


class CacheMismatchError(CacheError):
    """No cache fits the request: it was made from another dataset, encoder, preprocessing or camera set."""


class CannotWriteError(CacheError):
    """The file system refuses: no space, a quota, read-only."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.refused = f"cannot write {path}: {error.strerror or error}"
        super().__init__(
            f"{self.refused}. Free some space or choose another place with `cache_root=...`. What was complete before is "
            "untouched; the same command resumes."
        )


class CacheDamagedError(CacheError):
    """A cache is incomplete or altered: a shard or the manifest is missing, cut short or changed."""


class FrameError(CacheError):
    """One frame of the dataset cannot be turned into tokens; the message names episode, frame and camera."""
