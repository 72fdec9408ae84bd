"""The number of threads and the size of chunks that fit into a memory budget.

A chunk that is being encoded holds its rows as they are stored, as float32 and as blocks, and the scratch
memory of the steps between; one that waits to be hashed holds only its blocks. Both are counted as bytes per
weight, for the type that needs most. A chunk has at least one row, so a row can be too long for a budget, but
a tensor cannot. If memory is short, chunks become smaller, down to an eighth, before threads become fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ggplan.conversion.chunks import CHUNK_WEIGHTS
from ggplan.errors import PlanError
from ggplan.planning import Plan
from ggplan.text import format_bytes, printable

DEFAULT_MEMORY = 1 << 30

_WORKING, _WAITING = 24, 4  # bytes for each weight of a chunk
_WITH_MOMENTS = 48  # the first, besides the moments themselves: each thread has those of one input


@dataclass(frozen=True, slots=True)
class Pace:
    """Threads, chunks in memory at once, and the most weights of a chunk that has more than one row."""

    n_threads: int
    n_in_flight: int
    chunk_weights: int


def choose_pace(plan: Plan, n_threads: int, memory: int) -> Pace:
    """The pace of a plan under a budget of `memory` bytes, with at most `n_threads` threads.

    Raises
    ------
    PlanError
        If one row of a tensor does not fit.
    """
    working = _WORKING if plan.feedback is None else _WITH_MOMENTS
    each = working + _WAITING
    rows = [(t.tensor.n_columns * math.gcd(t.type.row_group, t.tensor.n_rows), t.name) for t in plan.tensors]
    widest, name = max(rows, default=(1, ""))
    largest = memory // each
    if widest > largest:
        needed = format_bytes(widest * each)
        raise PlanError(
            f"{printable(name)}: a row of {widest:,} weights needs {needed} of memory, more than the "
            f"{format_bytes(memory)} allowed",
            hint="give more with --memory",
        )
    fair = memory // (n_threads * each)
    chunk_weights = min(CHUNK_WEIGHTS, max(fair, CHUNK_WEIGHTS // 8), largest)
    chunk = max(chunk_weights, widest)
    n_threads = max(1, min(n_threads, memory // (chunk * each)))
    n_waiting = min(n_threads, (memory - n_threads * chunk * working) // (chunk * _WAITING))
    return Pace(n_threads, n_threads + max(0, n_waiting), chunk_weights)


def keep_freed_memory(pace: Pace) -> None:
    """Make the C library keep the memory of a chunk for the next one.

    Otherwise it returns the memory to the system, and each page is cleared again at a page fault: a tenth of
    the time of a conversion to q8_0. glibc keeps twice as much as the largest array that was mapped and freed
    so far (mallopt(3), M_MMAP_THRESHOLD), so an unused array is allocated and freed here. With other C
    libraries this has no effect.
    """
    np.empty(pace.chunk_weights * _WORKING, np.uint8)
