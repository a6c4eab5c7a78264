"""Faults at the one boundary between a cache and the disk.

Everything a cache writes goes through four functions of `lerobot_theia.cache.files`; what processes that share a cache
tell each other goes through claims. In a process of its own (see `children.py`), `inject` wraps both: it counts their
calls, and at the n-th lets the fault happen.

    steps = inject(None)                              # only count
    inject(Fault(7, "before", "kill"))                # as `kill -9`
    inject(Fault(7, "after", "power cut"))            # and what was not synced is lost
    inject(Fault(7, "before", "ENOSPC"))              # the disk is full from here on
"""

import errno
import itertools
import os
import signal
from collections.abc import Buffer, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lerobot_theia.cache import claim, files

STEPS = ("write", "sync", "rename", "sync_folder")
CLAIMS = {"claim": (claim, "open_or_create"), "release": (claim.Claim, "release")}
"""After `claim` the file of a claim is there, and empty still."""


@dataclass(frozen=True)
class Fault:
    """What happens at which step."""

    step: int
    """Number of the call, from 0."""
    when: str
    """`before` the step, `after` it, or `halfway` through a write: half of its bytes are in the file."""
    effect: str
    """`kill`; `power cut`; `power cut, names lost`; or the name of an errno, raised at this step and all later ones."""

    def __str__(self) -> str:
        return f"{self.effect} {self.when} step {self.step}"

    @property
    def is_error(self) -> bool:
        return self.effect.startswith("E")


def inject(fault: Fault | None) -> list[str]:
    """Wrap the boundary of this process, for good. Returns a list that grows by `<step> <file>` with each call."""
    steps: list[str] = []
    numbers, disk = (
        itertools.count(),
        Disk(),
    )  # next() of a count is atomic, so threads get numbers of their own

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(target: Any, *arguments: Any) -> Any:
            # Nothing happens when a claim is let go again, and whether it comes to that depends on threads.
            if name == "release" and target.released:
                return real(target, *arguments)
            number = next(numbers)
            steps.append(f"{name} {name_of(target)}")
            strike(fault, disk, number, "before", name)
            if name == "write" and fault is not None and (number, "halfway") == (fault.step, fault.when):
                data, offset = memoryview(arguments[0]).cast("B"), arguments[1]
                real(target, data[: len(data) // 2], offset)
                disk.write(target)
                strike(fault, disk, number, "halfway", name)
            old = disk.read(*arguments) if name == "rename" else None
            result = real(target, *arguments)
            if name == "rename":
                disk.rename(target, *arguments, old)
            elif name in STEPS and real is not forgotten:
                getattr(disk, name)(target)
            strike(fault, disk, number, "after", name)
            return result

        return step

    boundary: dict[str, tuple[Any, str]] = {name: (files, name) for name in STEPS} | CLAIMS
    for name, (owner, function) in boundary.items():
        setattr(owner, function, wrap(name, getattr(owner, function)))
    return steps


def name_of(target: Any) -> str:
    """Of a path, an open file or a claim."""
    return Path(getattr(target, "path", None) or getattr(target, "name", target)).name


def strike(fault: Fault | None, disk: "Disk", number: int, when: str, name: str) -> None:
    """Let the fault happen if this is its moment."""
    if fault is None or (fault.is_error and (name == "release" or (name, when) == ("claim", "after"))):
        return  # a full disk lets files be removed, and a file is opened or not: there is no failing after that
    stays = fault.is_error and number > fault.step and when == "before"  # a disk that is full stays full
    if not (stays or (number, when) == (fault.step, fault.when)):
        return
    if fault.is_error:
        code = getattr(errno, fault.effect)
        raise OSError(code, os.strerror(code))
    if fault.effect.startswith("power cut"):
        disk.lose(names=fault.effect.endswith("names lost"))
    os.kill(os.getpid(), signal.SIGKILL)


class Disk:
    """What a power cut would spare: bytes that were synced, and names whose folder was synced after a rename.

    A kill alone spares everything, since the kernel lives on; so a writer that forgets to sync shows only here.
    """

    def __init__(self) -> None:
        self.unsynced: set[Path] = set()
        self.renames: list[tuple[Path, Path, bytes | None]] = []

    def write(self, file: BinaryIO) -> None:
        self.unsynced.add(Path(file.name))

    def sync(self, file: BinaryIO) -> None:
        self.unsynced.discard(Path(file.name))

    @staticmethod
    def read(path: Path) -> bytes | None:
        return path.read_bytes() if path.exists() else None

    def rename(self, source: Path, target: Path, old: bytes | None) -> None:
        self.renames.append((source, target, old))
        if source in self.unsynced:
            self.unsynced.remove(source)
            self.unsynced.add(target)

    def sync_folder(self, folder: Path) -> None:
        self.renames = [each for each in self.renames if each[1].parent != folder]

    def lose(self, names: bool) -> None:
        """Cut files whose bytes may not be on the disk; with `names`, take back renames that may not be, either."""
        for path in self.unsynced:
            if path.exists():
                os.truncate(path, path.stat().st_size // 2)
        for source, target, old in reversed(self.renames) if names else ():
            target.rename(source)
            if old is not None:
                target.write_bytes(old)


def short_writes(at_most: int) -> None:
    """Let the kernel of this process take `at_most` bytes per write, as it may."""
    real = os.pwrite

    def pwrite(descriptor: int, data: Buffer, offset: int) -> int:
        return real(descriptor, memoryview(data)[:at_most], offset)

    os.pwrite = pwrite  # type: ignore[assignment]


def never_sync() -> None:
    """A writer with a bug: call before `inject`."""
    files.sync = forgotten


def forgotten(file: BinaryIO) -> None:
    pass
