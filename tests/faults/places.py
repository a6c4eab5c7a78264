"""Places where writing fails for real, each set up in a child process and gone with it."""

import contextlib
import ctypes
import errno
import os
import resource
from pathlib import Path

import datasets.config

NOBODY = 65534
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def mount(source: str, target: Path, kind: str | None, flags: int, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [None if word is None else word.encode() for word in (source, str(target), kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode()):
        code = ctypes.get_errno()
        raise OSError(code, f"mount {target}: {os.strerror(code)}")


def own_mounts() -> None:
    """From here on this process mounts for itself alone; OSError where that is not permitted."""
    os.unshare(os.CLONE_NEWNS)
    mount("none", Path("/"), None, MS_REC | MS_PRIVATE)


def small_disk(folder: Path, size: int) -> None:
    """Put a file system of `size` bytes in the place of `folder`."""
    own_mounts()
    mount("tmpfs", folder, "tmpfs", 0, f"size={size}")


def read_only(folder: Path) -> None:
    """What lies in `folder` can be read and not changed, by anyone."""
    own_mounts()
    mount(str(folder), folder, None, MS_BIND)
    mount("none", folder, None, MS_BIND | MS_REMOUNT | MS_RDONLY)


def stranger(scratch: Path) -> None:
    """Go on as a user who owns nothing here but `scratch`; as root one may write anywhere."""
    scratch.mkdir(mode=0o777, exist_ok=True)
    scratch.chmod(0o777)
    # HF datasets keeps what it converts in its own cache, which is somebody else's.
    datasets.config.HF_DATASETS_CACHE = scratch
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def file_size_limit(size: int) -> None:
    """No file of this process grows beyond `size` bytes. Python ignores the signal, so writing raises EFBIG."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def no_file_size_limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def little_memory() -> None:
    """This process may have 2 GiB of addresses more than now: enough to work, and not to read what has no end."""
    with contextlib.suppress(FileNotFoundError):  # no /proc, no count
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**31,) * 2)


def may_mount() -> bool:
    """Whether `own_mounts` would succeed. Call it in a child: it cannot be undone."""
    try:
        own_mounts()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL):
            return False
        raise
    return True
