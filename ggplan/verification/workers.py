"""Several pieces of work at a time: reading, hashing and decoding release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ggplan.conversion.streaming import available_cpus

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[int], None]
"""Called with the number of bytes just checked, from any thread."""


def each(items: Iterable[Item], work: Callable[[Item], Result], threads: int | None) -> Iterator[Result]:
    """`work` of every item, in their order; items are taken a few ahead, so there may be millions.

    The first error is raised, and no item begun after it.
    """
    n_threads = threads or available_cpus()
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n_threads, "ggplan-verify") as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * n_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
