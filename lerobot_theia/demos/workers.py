"""Run independent episodes in worker processes, and get them back in order."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from lerobot_theia.demos.recording import RecordingError


def ordered_map[Job, Result](
    function: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int
) -> Generator[Result, None, None]:
    """Yield `function(job)` for each job, in the order of the jobs.

    At most `num_workers + 1` results are under way or waiting, so that frames do not pile up in memory when
    the consumer (the video encoder) is the slower one; `jobs` may therefore be endless.

    Args:
        function: importable by name, since workers are spawned.
        jobs: picklable.
        num_workers: processes; 0 runs everything in this process.
    """
    if num_workers < 0:
        raise RecordingError(f"{num_workers} workers: 0 runs everything in this process, more in as many")
    if num_workers == 0:
        yield from map(function, jobs)
        return
    queue = iter(jobs)
    # Spawned, not forked: the parent may already hold threads (encoder, torch) and a rendering context.
    pool = ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))
    pending: deque[Future[Result]] = deque()
    try:
        pending.extend(pool.submit(function, job) for job in itertools.islice(queue, num_workers + 1))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, job) for job in itertools.islice(queue, 1))
            yield result
    except BrokenProcessPool as error:
        raise RecordingError(
            f"one of {num_workers} worker processes died: out of memory, a crash in the renderer, or a calling "
            'script without `if __name__ == "__main__":` (workers are spawned). Without workers it runs in this process and '
            "shows where: --workers 0, num_workers=0 or, of a source of a corpus, corpus.sources.<its name>.workers=0."
        ) from error
    finally:
        # Not only when all is done: also when the consumer has enough, or gives up. Python would then wait for
        # episodes that nobody wants (`terminate_workers` is public from 3.14 on only).
        if pending:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            # One that ends while it sends a result leaves a part of it, and the pool's thread would wait for the rest as long as
            # anyone could still write it, which is this process.
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
        pool.shutdown(wait=False, cancel_futures=True)
