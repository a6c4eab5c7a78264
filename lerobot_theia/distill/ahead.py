"""Read what the next steps need while this one computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice


def read_ahead[Key, Read](
    read: Callable[[Key], Read], keys: Iterable[Key], depth: int = 2
) -> Generator[Read, None, None]:
    """Yield `read(key)` for each key in order, from a thread that is up to `depth` keys ahead."""
    waiting = iter(keys)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
        pending: deque[Future[Read]] = deque(pool.submit(read, key) for key in islice(waiting, depth))
        try:
            while pending:
                done = pending.popleft().result()
                pending.extend(pool.submit(read, key) for key in islice(waiting, 1))
                yield done
        finally:
            for future in pending:
                future.cancel()
