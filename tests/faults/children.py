"""Processes to kill. Each is forked from a server that has imported everything once and done nothing else.

So a run costs half a second in place of ten, and a child shares no thread, lock or open file with the tests.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "lerobot_theia.cache.catalog",
        "lerobot_theia.cache.precompute",
        "lerobot_theia.scripts.cache",
        "hydra",
        "torchvision.transforms",
        # What datasets, Pillow and pandas import when first used.
        "av",
        "datasets.io.parquet",
        "pandas",
        "PIL.ImageMath",
        "PIL.JpegImagePlugin",
        "PIL.PngImagePlugin",
        "scipy.io",
    ]
)
PATIENCE_S = 120.0
LOST = 255
"""What multiprocessing says of a child that was gone before its server could tell how; ours end with 0 or 1."""

Tell = Callable[[Any], None]


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    status: int
    """Exit status, or minus the signal that ended it."""
    value: Any = None
    """What its function returned."""
    error: str = ""
    """Type and message of what it raised."""
    details: str = ""

    @property
    def killed(self) -> bool:
        return self.status in (-signal.SIGKILL, LOST)


class Child:
    """`function(tell, *arguments)` in a process of its own; `tell` sends a value that `hear` receives."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._pipe, other = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_run, args=(other, function, arguments))
        self.process.start()
        other.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def hear(self) -> Any:
        """The next value told; None when the child has ended."""
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            return None
        assert kind == "told", value
        return value

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, number)

    def wait(self, patience_s: float = PATIENCE_S) -> Outcome:
        """Raises TimeoutError, and kills it, for a child that does not end."""
        ended: dict[str, Any] = {}
        deadline = time.monotonic() + patience_s
        try:
            while not ended:
                if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"the child did not end in {patience_s:.0f} s")
                kind, value = self._pipe.recv()
                ended = {} if kind == "told" else {kind: value}
        except (EOFError, ConnectionResetError):
            pass  # killed before it could say how it ended
        except TimeoutError:
            self.kill()
            raise
        finally:
            self.process.join()
            self._pipe.close()
        status = self.process.exitcode
        assert status is not None
        error, details = ended.get("raised", ("", ""))
        return Outcome(status, ended.get("returned"), error, details)


def run(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Start a child and wait for it."""
    return Child(function, *arguments).wait()


def _run(pipe: Connection, function: Callable[..., Any], arguments: tuple) -> None:
    import torch

    torch.set_num_threads(1)
    quiet()
    try:
        value = function(lambda each: pipe.send(("told", each)), *arguments)
    except BaseException as error:
        pipe.send(("raised", (f"{type(error).__name__}: {error}", traceback.format_exc())))
        raise SystemExit(1) from None
    pipe.send(("returned", value))


def quiet() -> None:
    """Progress bars and warnings of a hundred children say nothing; what they raise is told."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
