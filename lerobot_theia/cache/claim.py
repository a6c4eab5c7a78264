"""Several processes at one cache: who makes which shard, and nobody deletes it meanwhile.

A claim is a small file, created exclusively beside the shard it stands for. Its owner holds the kernel's lock on it, so
on one machine a claim ends with its process; for other machines the owner touches it as the work goes on.

Claims only save work. That a cache is right never rests on them: a shard is written to a file of its writer's own and
renamed when it is whole, and it is the same whoever makes it. Two owners of one claim make one shard twice.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from lerobot_theia.cache.errors import CacheError, CannotWriteError
from lerobot_theia.cache.files import (
    ABANDONED_AFTER_S,
    lock,
    machine,
    open_inside,
    remove_temporaries,
    take_over,
)

CLAIM_PREFIX = ".claim-"
CLAIM_BYTES = 1024
"""As many are read of a claim, which is shorter; it may be a stranger's."""
WRITTEN_AFTER_S = 2.0
"""A claim that is still empty after so long was never taken: its process ended between creating and writing it."""
TOUCH_EVERY_S = 10.0
POLL_S = 0.2


@dataclass(frozen=True)
class Owner:
    """The process that a claim names; the claim's file is these fields as JSON."""

    machine: str
    host: str
    pid: int


class Claim:
    """A piece of work that is this process's, until `release`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._touched = time.monotonic()

    @property
    def released(self) -> bool:
        return self._file.closed

    def touch(self) -> None:
        """Tell other machines that the work goes on; cheap enough to be called with every batch."""
        if time.monotonic() - self._touched > TOUCH_EVERY_S:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError, ValueError):  # ValueError: released, and closed, meanwhile
                os.utime(self._file.fileno())

    def release(self) -> None:
        """Let go, whether the work is done or not. May be called twice."""
        if not self.released:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)  # while the lock is held: nobody takes it for abandoned
            self._file.close()


def take(path: Path) -> Claim | None:
    """The claim at `path`, if it is free or its owner is gone; None while another process has it.

    Raises CannotWriteError when the file system refuses.
    """
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file, created = open_or_create(path)
        except FileNotFoundError:
            return None  # released in this very moment
        try:
            if (created or owner_is_gone(file)) and holds(file, path):
                owner = Owner(machine(), socket.gethostname(), os.getpid())
                file.seek(0)
                file.truncate()
                file.write(json.dumps(asdict(owner)).encode())
                return Claim(path, file)
        except BaseException:
            if created:
                path.unlink(missing_ok=True)
            file.close()
            raise
        file.close()
        return None


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raises CannotWriteError when the file system refuses."""
    try:
        yield
    except OSError as error:
        raise CannotWriteError(path, error) from error


def open_or_create(path: Path) -> tuple[BinaryIO, bool]:
    """The file, and whether it is new. OSError for a link, which could lead out of the cache, and for a pipe."""
    try:
        return path.open("x+b", buffering=0), True
    except FileExistsError:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
        return open(path, "r+b", buffering=0, opener=lambda name, _: os.open(name, flags)), False


def owner_is_gone(file: BinaryIO) -> bool:
    try:
        made_on = read_owner(file).machine
    except ValueError:
        return time.time() - os.fstat(file.fileno()).st_mtime > WRITTEN_AFTER_S
    return take_over(file, made_on)


def read_owner(file: BinaryIO) -> Owner:
    """Raises ValueError for what is no claim, or one that is not written yet."""
    try:
        value = json.loads(file.read(CLAIM_BYTES))
        return Owner(str(value["machine"]), str(value["host"]), int(value["pid"]))
    except (TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is no claim: {error!r:.300}") from error


def holds(file: BinaryIO, path: Path) -> bool:
    """Lock the file, unless another process has, and make sure that it is still the one at `path`."""
    with contextlib.suppress(FileNotFoundError):
        return lock(file) is not False and os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


@contextlib.contextmanager
def waiting_for(path: Path) -> Iterator[Claim]:
    """The claim at `path`, as soon as it is free."""
    while (claim := take(path)) is None:
        time.sleep(POLL_S)
    try:
        yield claim
    finally:
        claim.release()


def owner(path: Path) -> str:
    """Who has a claim, for people."""
    try:
        with open(open_inside(path, path.parent), "rb") as file:
            value = read_owner(file)
    except (OSError, ValueError):
        return "another process"
    return f"process {value.pid} on {value.host!r}"


def claims(cache: Path) -> Iterator[Path]:
    """Those in the cache's own folders: one that is a link, in a cache that a stranger made, may be anybody's."""
    for pattern in (f"{CLAIM_PREFIX}*", f"*/{CLAIM_PREFIX}*"):
        yield from (
            path for path in cache.glob(pattern) if path.parent == cache or not path.parent.is_symlink()
        )


def sweep(cache: Path) -> None:
    """Delete what processes that are gone left in a cache, and nothing of one that lives."""
    remove_temporaries(cache)
    for path in claims(cache):
        deadline = time.monotonic() + WRITTEN_AFTER_S + POLL_S
        while (claim := take(path)) is None and is_empty(path) and time.monotonic() < deadline:
            time.sleep(POLL_S)  # its process is just writing it, or has just been killed: that shows soon
        if claim is not None:
            claim.release()


def is_empty(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == 0
    return False


@contextlib.contextmanager
def in_use(cache: Path, *, exclusive: bool = False) -> Iterator[None]:
    """Processes that build a cache are in it together; who deletes it wants it alone.

    The lock is the kernel's, on a file beside the cache, so it ends with its process. It is one for the folder, by
    whatever name or link the folder is reached. Raises CacheError when the folder is not writable, and for `exclusive`
    when another process builds the cache.
    """
    cache = Path(os.path.realpath(cache))
    place = cache.parent / ".locks" / f"{cache.name}.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = place.open("a+b")
    except OSError as error:
        raise CacheError(
            f"cannot write to {cache.parent}: {error.strerror or error}. Choose a writable place "
            "with `cache_root=...` or the environment variable LEROBOT_THEIA_CACHE."
        ) from error
    with file:
        while lock(file, shared=not exclusive) is False:
            if exclusive:
                raise CacheError(f"{cache} is being built by another process: end that first")
            time.sleep(POLL_S)  # another process deletes it; that takes no time
        if exclusive:
            sweep(cache)
            if path := next(claims(cache), None):
                raise CacheError(
                    f"{cache} is being built by {owner(path)}: end that first. If it is gone already, its claim "
                    f"ends {ABANDONED_AFTER_S:.0f} s after its last sign of life."
                )
        yield
