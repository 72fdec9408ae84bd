"""The number of threads and the size of chunks that fit into a memory budget.

A chunk that is being encoded holds its rows as they are stored, as float32 and as blocks, and the scratch
memory of the steps between; one that waits to be hashed holds only its blocks. Both are counted as bytes per
weight, for the type that needs most. A chunk has at least one row, so a row can be too long for a budget, but
a tensor cannot. If memory is short, chunks become smaller, down to an eighth, before threads become fewer.

With a calibration the moments of the inputs that are worked on are counted too, but for one Hessian each: an
input is worked on by at least one thread, so all takes at most the budget and one Hessian a thread. Threads
that work on the rows of one input share its moments. If memory is short, fewer inputs are worked on at a
time, once chunks are small and before threads become fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ggplan.conversion.chunks import CHUNK_WEIGHTS
from ggplan.conversion.guides import beyond_a_hessian, why_unguided
from ggplan.errors import PlanError
from ggplan.planning import Plan
from ggplan.planning.guidance import CALIBRATED_MEMORY
from ggplan.quants.prepared import search_bytes
from ggplan.quants.searches.row_tiles import TILE
from ggplan.text import format_bytes, printable

DEFAULT_MEMORY = 1 << 30

_WORKING, _WAITING = 24, 4  # bytes for each weight of a chunk
_SEARCHES = 8 << 20  # bytes of what searches that use moments load, which no other conversion does
_SMALLEST = 8  # parts of a chunk


@dataclass(frozen=True, slots=True)
class Pace:
    """How a plan is carried out within a budget.

    Attributes
    ----------
    n_threads
        Threads.
    n_in_flight
        Chunks in memory at once.
    chunk_weights
        The most weights of a chunk that has more than one row.
    moments
        Bytes that the moments of all inputs may take at once, besides one Hessian each.
    """

    n_threads: int
    n_in_flight: int
    chunk_weights: int
    moments: int = 0


def default_memory(plan: Plan) -> int:
    """The budget of a plan where none is given."""
    return DEFAULT_MEMORY if plan.feedback is None else CALIBRATED_MEMORY


def enough_memory(plan: Plan) -> int:
    """The default, or the least that one thread needs where that is more."""
    widest, moments, _ = _largest(plan)
    return max(default_memory(plan), _SEARCHES + moments + widest * (_working(plan) + _WAITING))


def choose_pace(plan: Plan, n_threads: int, memory: int) -> Pace:
    """The pace of a plan under a budget of `memory` bytes, with at most `n_threads` threads.

    Raises
    ------
    PlanError
        If one row of a tensor does not fit, or the moments of one input and one thread's rows.
    """
    working = _working(plan)
    each = working + _WAITING
    widest, moments, name = _largest(plan)
    besides = moments and _SEARCHES + moments
    if (needed := besides + widest * each) > memory:
        what = f"a row of {widest:,} weights needs {format_bytes(needed)} of memory"
        if moments:
            what = f"its second moments need {format_bytes(needed)} of memory besides a Hessian"
        raise PlanError(
            f"{printable(name)}: {what}, more than the {format_bytes(memory)} allowed",
            hint=f"give --memory {-(-needed // 2**20)}M or more",
        )
    memory -= besides - moments
    largest = (memory - moments) // each
    least = max(min(CHUNK_WEIGHTS // _SMALLEST, largest), widest, 1)
    asked, n_threads = n_threads, max(1, min(n_threads, (memory - moments) // (least * each)))
    moments = max(moments, min(n_threads * moments, memory - n_threads * least * each))
    for_chunks = memory - moments
    fair = for_chunks // (n_threads * each) if n_threads == asked else 0
    chunk_weights = min(CHUNK_WEIGHTS, max(fair, CHUNK_WEIGHTS // _SMALLEST), largest)
    chunk = max(chunk_weights, widest)
    n_waiting = min(n_threads, (for_chunks - n_threads * chunk * working) // (chunk * _WAITING))
    return Pace(n_threads, n_threads + max(0, n_waiting), chunk_weights, moments)


def _working(plan: Plan) -> int:
    """Bytes for each weight of a chunk that is worked on, for the tensor that needs most."""
    if plan.feedback is None:
        return _WORKING
    return max(
        (search_bytes(t.tensor.n_columns) for t in plan.tensors if t.tensor.n_columns), default=_WORKING
    )


def _largest(plan: Plan) -> tuple[int, int, str]:
    """The weights that a thread works on at least, the bytes of an input's moments, and whose they are."""
    widest, moments = (1, ""), (0, "")
    for planned in plan.tensors:
        n, n_rows = planned.tensor.n_columns, math.gcd(planned.type.row_group, planned.tensor.n_rows)
        if plan.feedback is not None and not why_unguided(plan.feedback, planned):
            n_rows = math.lcm(n_rows, TILE)
            moments = max(moments, (beyond_a_hessian(n), planned.name))
        widest = max(widest, (n * n_rows, planned.name))
    return widest[0], moments[0], moments[1] or widest[1]


def keep_freed_memory(pace: Pace) -> None:
    """Make the C library keep the memory of a chunk for the next one.

    Otherwise it returns the memory to the system, and each page is cleared again at a page fault: a tenth of
    the time of a conversion to q8_0. glibc keeps twice as much as the largest array that was mapped and freed
    so far (mallopt(3), M_MMAP_THRESHOLD), so an unused array is allocated and freed here. With other C
    libraries this has no effect.
    """
    np.empty(pace.chunk_weights * _WORKING, np.uint8)
