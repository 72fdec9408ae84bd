"""Do several pieces of work at once, in threads: reading, hashing and decoding release the GIL."""

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
    """The results of `work` on every item, in the order of the items.

    Items are taken only a few ahead of the results, so there may be millions. The first error is raised, and
    no further item is started.
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
