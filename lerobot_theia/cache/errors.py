"""Errors of the cache room. All derive from `CacheError`."""


class CacheError(Exception):
    """A cache cannot be made or read; the message names the field, the value and the way out."""


class CacheMismatchError(CacheError):
    """No cache fits the request: it was made from another dataset, encoder, preprocessing or camera set."""


class CacheDamagedError(CacheError):
    """A cache is incomplete or altered: a shard or the manifest is missing, cut short or changed."""


class FrameError(CacheError):
    """One frame of the dataset cannot be turned into tokens; the message names episode, frame and camera."""
