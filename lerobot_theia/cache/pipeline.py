"""Two ends of a pipeline: work that threads do ahead of the caller, and work that a thread does behind it.

Both keep order, hold a bounded number of items, and raise in the caller what went wrong in a thread. Leaving a block ends
its threads, after what they are at.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

import torch


class Ahead[T, R]:
    """`function` of each item, in order, computed by `threads` threads up to `items` items ahead.

        with Ahead(decode, batches, threads=2, items=4) as decoded:
            for batch, frames in decoded:
                ...

    `batches` is iterated by the caller's thread. The results of items before one that fails come first.
    """

    def __init__(self, function: Callable[[T], R], source: Iterable[T], threads: int, items: int) -> None:
        self._function, self._source, self._items = function, source, items
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead", initializer=one_core)
        self._pending: deque[tuple[T, Future[R]]] = deque()

    def __enter__(self) -> Iterator[tuple[T, R]]:
        return self._results()

    def _results(self) -> Iterator[tuple[T, R]]:
        for item in self._source:
            self._pending.append((item, self._pool.submit(self._function, item)))
            if len(self._pending) > self._items:
                yield self._first()
        while self._pending:
            yield self._first()

    def _first(self) -> tuple[T, R]:
        item, future = self._pending.popleft()
        return item, future.result()

    def __exit__(self, *_: object) -> None:
        end(self._pool, [future for _, future in self._pending], cancel_futures=True)
        forget_one_core()


class Behind:
    """Calls made in another thread, one after the other; at most `items` wait to be made.

        with Behind(2) as writer:
            writer.call(write, batch)

    After a call has failed no further one is made; its error is raised by the next `call`, or at the end. When the block
    is left by another error, the calls that wait are still made.
    """

    def __init__(self, items: int) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind", initializer=one_core)
        self._pending: deque[Future[None]] = deque()
        self._failed = False

    def call[*Ts](self, function: Callable[[*Ts], None], *arguments: *Ts) -> None:
        while len(self._pending) >= self._items or (self._pending and self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._make, functools.partial(function, *arguments)))

    def _make(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end(self._pool, self._pending)
        forget_one_core()
        if kind is None:
            for future in self._pending:
                future.result()


def end[R](pool: ThreadPoolExecutor, pending: Iterable[Future[R]], cancel_futures: bool = False) -> None:
    """Wait until a pool's threads have ended, even if a signal raises meanwhile."""
    try:
        pool.shutdown(cancel_futures=cancel_futures)
    finally:
        # For the calls themselves: a thread whose `join` was interrupted counts as ended (Python 3.12).
        wait(future for future in pending if not future.cancelled())


def one_core() -> None:
    """Let torch compute in this thread alone: the cores are for the encoder, in the caller's thread."""
    torch.set_num_threads(1)


def forget_one_core() -> None:
    """torch takes the last number it was told for that of threads yet to come; tell it that of the caller's."""
    torch.set_num_threads(torch.get_num_threads())
