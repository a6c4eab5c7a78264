"""The boundary to the file system: everything a cache writes is written beside its place, synced, renamed.

All changes to the disk go through `write`, `sync`, `rename` and `sync_folder`.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import secrets
import socket
import stat
import time
import uuid
from collections.abc import Buffer, Iterable
from pathlib import Path
from typing import BinaryIO, Self

from lerobot_theia.cache.errors import CannotWriteError

TEMPORARY_PREFIX = ".writing-"
ABANDONED_AFTER_S = 600.0
"""When another machine has not touched its file for so long, its process counts as dead."""


def write(file: BinaryIO, data: Buffer, offset: int) -> None:
    """All of `data` at `offset`; a short write goes on where it stopped."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


def sync(file: BinaryIO) -> None:
    os.fsync(file.fileno())


def rename(source: Path, target: Path) -> None:
    source.rename(target)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable. POSIX wants a sync of the directory itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NewFile:
    """A file that appears at `path` whole or not at all, and survives a power cut.

        with NewFile(path) as file:
            file.write(b"...", offset=0)
            file.publish()

    Left without `publish`, it leaves nothing behind, and what stood at `path` before still stands. Raises
    CannotWriteError.

    A signal that came during a call of the kernel raises when the call returns: each one here counts as made by then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = self._name()
        self._open = contextlib.ExitStack()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open.enter_context(self._create())

    def _name(self) -> Path:
        return self.path.with_name(f"{TEMPORARY_PREFIX}{machine()}-{secrets.token_hex(4)}-{self.path.name}")

    def _create(self) -> BinaryIO:
        """Locked for as long as it is open, so that nobody takes it for a leftover."""
        while True:
            file = self.temporary.open("xb", buffering=0)
            if lock(file) is not False and self.temporary.exists():
                return file
            file.close()  # taken for one in the moment before it was locked
            self.temporary = self._name()

    def write(self, data: Buffer, offset: int) -> None:
        with self._explained():
            write(self._file, data, offset)

    def publish(self) -> None:
        with self._explained():
            sync(self._file)
            rename(self.temporary, self.path)
            self._open.close()
            sync_folder(self.path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._open.close()
        finally:
            with contextlib.suppress(OSError):
                self.temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self):  # type: ignore[no-untyped-def]
        try:
            yield
        except BaseException as error:
            self.__exit__()
            if not isinstance(error, OSError):
                raise
            raise CannotWriteError(self.path, error) from error


def publish(path: Path, chunks: Iterable[Buffer]) -> None:
    """A whole file at once; see `NewFile`."""
    with NewFile(path) as file:
        offset = 0
        for chunk in chunks:
            file.write(chunk, offset)
            offset += memoryview(chunk).nbytes
        file.publish()


@functools.cache
def machine() -> str:
    """Eight digits that are the same for processes which see each other's kernel locks, containers included."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return hashlib.sha256(f"{socket.gethostname()} {uuid.getnode()}".encode()).hexdigest()[:8]


def lock(file: BinaryIO, shared: bool = False) -> bool | None:
    """Take the kernel's lock on an open file, which ends with this process.

    False if another process has it, None if this file system knows no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def take_over(file: BinaryIO, made_on: str) -> bool:
    """Lock an open file that a process on machine `made_on` made and locked; False while that process lives.

    On this machine the kernel knows. On another, or without locks, ABANDONED_AFTER_S without a sign of life is taken
    for its end.
    """
    free = lock(file)
    if free is False or (free and made_on == machine()):
        return free
    return time.time() - os.fstat(file.fileno()).st_mtime > ABANDONED_AFTER_S


def remove_temporaries(folder: Path, below: bool = True) -> None:
    """Delete what interrupted writers left in a folder and `below` it, and nothing that one is still writing."""
    for stray in (folder.rglob if below else folder.glob)(f"{TEMPORARY_PREFIX}*"):
        made_on = stray.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
        # Not to be opened is what vanished meanwhile, or belongs to another user.
        with contextlib.suppress(OSError), stray.open("r+b") as file:
            if take_over(file, made_on):
                stray.unlink()


def open_inside(path: Path, folder: Path, opened: int | None = None) -> int:
    """A file descriptor of a regular file that lies inside `folder`, for a cache that a stranger made.

    Symbolic links are followed if they stay inside, or lead to the `blobs` of the Hub's local cache when `folder` is
    a snapshot in it. `opened` is a descriptor of `path.parent`, if the caller has made sure of that one already.
    Raises OSError otherwise; FileNotFoundError if there is no such file.
    """
    # Not blocking: opening a pipe would wait for its writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if opened is None and path.parent.is_symlink():
            check_inside(path, folder)
        descriptor = os.open(path if opened is None else path.name, flags | os.O_NOFOLLOW, dir_fd=opened)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        check_inside(path, folder)
        descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file")
    return descriptor


def check_inside(path: Path, folder: Path) -> None:
    """Raises OSError when a link leads out of `folder`."""
    target, home = path.resolve(), folder.resolve()
    hub = next((parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots"), home)
    if not (target.is_relative_to(home) or target.is_relative_to(hub)):
        raise OSError(f"it is a link out of {folder}, to {target}")


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> tuple | None:
    """Changes when the file is replaced; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
