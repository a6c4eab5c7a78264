"""Run an iterator in a thread, a bounded number of items ahead."""

import queue
import threading
from collections.abc import Generator, Iterable


def prefetch[T](items: Iterable[T], depth: int) -> Generator[T]:
    """Yield `items` in order while a thread prepares up to `depth` of them ahead.

    An exception in the thread is raised here, where its item would have come. Closing the generator ends the
    thread.
    """
    ready: queue.Queue[tuple[bool, object]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry: tuple[bool, object]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item  # type: ignore[misc]
            elif item is None:
                return
            else:
                raise item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
