"""Run a command with its output in a log, watch it, and end all of it."""

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

TICK_S = 0.2
GRACE_S = 15
"""From asking a process group to end to killing it."""
SHOWN_LINES = 25


class CommandError(RuntimeError):
    """A command failed. The message has its last lines and the path of its log."""


class InUseError(RuntimeError):
    """The work folder belongs to another run, or to what an ended one left behind."""


def run(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str],
    cwd: Path,
    watch: Callable[[str], bool] | None = None,
    inherit: Sequence[int] = (),
) -> bool:
    """Run `command` to its end, or until `watch` says stop.

    Args:
        log: what the command prints is appended here.
        environment: variables over those of this process.
        watch: is given what was printed since the last call, several times a second; True ends the command. Signals that
            end this process wait until it is done.
        inherit: open files that the command keeps open: a lock, so that it outlives this process.

    Returns:
        Whether `watch` stopped it.

    Raises:
        CommandError: if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n$ {shlex.join(command)}\n")
    with log.open("ab") as output, log.open("rb") as printed:
        printed.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd,
            env={**os.environ, **environment}, start_new_session=True, pass_fds=inherit,
        )  # fmt: skip
        stopped = False
        try:
            while process.poll() is None and not stopped:
                time.sleep(TICK_S)
                if watch is not None:
                    with undisturbed():
                        stopped = watch(printed.read().decode(errors="replace"))
        finally:
            try:
                if watch is not None:  # however this ends: what was printed until now counts
                    with undisturbed():
                        watch(printed.read().decode(errors="replace"))
            finally:
                end(process)
    if process.returncode and not stopped:
        raise CommandError(failure(command, log, process.returncode))
    return stopped


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that ask this process to end wait until the block is done. For the main thread.

    Handlers are exchanged: a blocked signal would go to another thread (BLAS has some), and its handler would run here.
    """
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    handlers = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in came:
            signal.raise_signal(each)


def end(process: subprocess.Popen) -> None:
    """End the process and its children (loader workers), if any is left."""
    for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        until = time.monotonic() + patience
        while process.poll() is None and time.monotonic() < until:
            time.sleep(TICK_S)
    process.wait()


def failure(command: Sequence[str], log: Path, code: int) -> str:
    """What went wrong, in the command's own last words."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    last = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:])
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    return f"{Path(command[0]).name} {ended}; its last lines:\n{last}\nAll of it: {log}"


@contextlib.contextmanager
def only_run(root: Path) -> Iterator[int]:
    """Times mean something only if one thing runs: hold the work folder's lock. Yields the lock's file descriptor.

    Commands inherit it, so a training whose runner was killed still holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    path = root / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InUseError(
                f"{root} is in use by process {file.read().strip() or '?'}, or by a command that it left behind; wait "
                "for it, or end it, or choose another folder (work=...)"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()
