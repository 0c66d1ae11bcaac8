"""Work done a few items ahead, in threads, its results in order."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    work: Callable[[T], R], items: Iterable[T], *, name: str, most: int, each: int = 1
) -> Iterator[R]:
    """Yield what `work` gives for each item, in the items' order, a few computed at a time.

    A stream that is dropped half way does not wait for what runs: a thread of its own may be
    what lets go of it, and a thread cannot wait for itself.

    Args:
        work: Called in a thread; what it raises is raised here in its turn.
        items: Read as results are asked for.
        name: How the threads are called.
        most: Threads at most; there are no more than cores.
        each: Items under way for each thread.
    """
    running: deque[Future[R]] = deque()
    count = threads(most)
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        for item in items:
            if len(running) == count * each:
                yield running.popleft().result()
            running.append(pool.submit(work, item))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def threads(most: int) -> int:
    """Return how many threads there are where `most` are asked for."""
    return min(most, os.cpu_count() or 1)
