"""Work done ahead in threads: several items at once, results in order, memory bounded.

    with Ahead(workers=4) as ahead:
        for result in ahead.map(read_and_encode, batches):
            write(result)

Reading, computing and writing overlap: while the caller writes one result, the threads already
work on the next items. Never more than `2 * workers` items are in work or wait to be taken, however
many there are. That is for work that releases Python's lock, as torch, numpy and file reads do.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from fvlm.core.device import keep_freed_memory

T = TypeVar("T")
R = TypeVar("R")


class Ahead:
    """A pool of threads; leaving it waits for what is being computed and drops the rest."""

    def __init__(self, *, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Wait for what is being computed, and drop the rest."""
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`function` of every item, in the order of `items`, which are taken in this thread.

        What `function` raises comes up here, in place of its result; later items are dropped.
        """
        most = 2 * self.workers - 1  # while the caller has one
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(self._pool.submit(function, item))
                if len(pending) > most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def one_core_each() -> Iterator[Ahead]:
    """As many threads as torch uses, and torch computes in each of them on one core.

    Splitting every operation over the cores instead makes them wait for each other, some thousand
    times a batch.
    """
    keep_freed_memory()
    cores = torch.get_num_threads()
    with Ahead(workers=cores) as ahead:
        try:
            torch.set_num_threads(1)
            yield ahead
        finally:
            torch.set_num_threads(cores)
