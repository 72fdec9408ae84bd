"""The unit of work: a run of rows of one tensor that is read, encoded and written as one.

A chunk is large enough that the time spent in Python is negligible, even if encoding is as fast as memory. It
is small enough that its float32 rows (4 MiB) stay in the cache that cores share, and that all threads have
work until the end. Memory depends on the size of a chunk alone: an expert tensor of 3.8 billion weights only
has more chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.conversion.guides import Guides
from ggplan.errors import ConversionError
from ggplan.ggml_types import BF16
from ggplan.model import RowSource
from ggplan.planning import Effort, Nonfinite, Plan, PlannedTensor
from ggplan.planning.importance import importance_of
from ggplan.quants.searches.row_tiles import TILE
from ggplan.text import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggplan.quants.codecs import Rows

CHUNK_WEIGHTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows `start` up to `stop` of a tensor, and where their bytes go in the file.

    `importance` is the whole tensor's, (n_slices, n_columns), or None; `nonfinite` and `effort` are the
    plan's. `guides` finds the moments that the rows are encoded with, where there are any; then the rows are
    of one slice. `reused` has the tensor's rows in an earlier output, if they were proven to be the same.
    """

    planned: PlannedTensor
    start: int
    stop: int
    file_offset: int
    importance: NDArray[np.float32] | None
    nonfinite: Nonfinite = "refuse"
    effort: Effort = "default"
    reused: RowSource | None = None
    guides: Guides | None = None


def read_rows(planned: PlannedTensor, start: int, stop: int) -> Rows:
    """Rows of a tensor in the form its encoder takes: the bits of bfloat16 if it takes these, else float32.

    Raises
    ------
    CheckpointError
        If they cannot be read.
    ConversionError
        If the model has no weights of this tensor.
    """
    rows = planned.tensor.rows
    if rows is None:
        raise ConversionError(f"{printable(planned.name)} has no weights to read")
    return rows.read(start, stop) if takes_bf16(planned) else rows.read_float32(start, stop)


def takes_bf16(planned: PlannedTensor) -> bool:
    """Whether a tensor's encoder takes bfloat16: those of types with blocks widen it while they encode."""
    rows = planned.tensor.rows
    return planned.type.is_quantized and rows is not None and rows.dtype == BF16


def chunks_of(
    plan: Plan, chunk_weights: int = CHUNK_WEIGHTS, guides: Guides | None = None
) -> Iterator[Chunk]:
    """All chunks of a plan, in the order of the file; those of tensors that share an input go together.

    A tensor's importance is read when its first chunk is asked for, and kept as long as its chunks. `guides`
    has the moments of a plan with a calibration.
    """
    assert (guides is None) == (plan.feedback is None)
    if guides is None:
        for planned in plan.tensors:
            yield from _chunks_of_rows(plan, planned, chunk_weights, None, planned.tensor.n_rows)
        return
    for group in guides.groups(plan.tensors):
        if len(group) == 1 and not guides.guides(group[0]):
            yield from _chunks_of_rows(plan, group[0], chunk_weights, None, group[0].tensor.n_rows)
            continue
        # Moments are made once for all rows of all tensors that are multiplied with the same input.
        runs = [_chunks_of_rows(plan, t, chunk_weights, guides, guides.rows_per_slice(t)) for t in group]
        waiting = [next(run, None) for run in runs]
        for slice_ in range(guides.n_slices(group[0])):
            for number, run in enumerate(runs):
                rows = guides.rows_per_slice(group[number])
                while (chunk := waiting[number]) is not None and chunk.start < (slice_ + 1) * rows:
                    yield chunk
                    waiting[number] = next(run, None)


def _chunks_of_rows(
    plan: Plan, planned: PlannedTensor, chunk_weights: int, guides: Guides | None, run: int
) -> Iterator[Chunk]:
    """The chunks of a tensor, none of which goes from one run of so many rows to the next."""
    tensor = planned.tensor
    importance = importance_of(tensor, planned.type, plan.imatrix, plan.effort)
    row_bytes = planned.type.row_bytes(tensor.n_columns)
    step = max(1, chunk_weights // max(1, tensor.n_columns))
    # Interleaved rows are copied in whole groups; searches that use moments work on sixteen rows at a time.
    group = math.lcm(planned.type.row_group, 1 if guides is None else TILE)
    step = max(step // group, 1) * group
    for first in range(0, tensor.n_rows, max(run, 1)):
        for start in range(first, min(first + run, tensor.n_rows), step):
            offset = len(plan.header) + planned.offset + start * row_bytes
            stop = min(start + step, first + run, tensor.n_rows)
            yield Chunk(planned, start, stop, offset, importance, plan.nonfinite, plan.effort, guides=guides)
