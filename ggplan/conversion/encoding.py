"""A chunk's bytes: read, checked, encoded."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ggplan.conversion.chunks import Chunk, read_rows
from ggplan.conversion.finiteness import bytes_by_policy, keep_into, overflow_by_policy, rows_by_policy
from ggplan.conversion.running_hash import RunningHash
from ggplan.conversion.source_hash import add_rows
from ggplan.quants import encode_into, first_nonfinite
from ggplan.quants.codecs import Rows
from ggplan.quants.feedback import encode_with_moments
from ggplan.quants.floats import widened
from ggplan.quants.soundness import are_sound


def encode_chunk(chunk: Chunk, source: RunningHash | None = None) -> memoryview:
    """The bytes of a chunk in the output; the rows they are encoded from are added to the hash `source`.

    Raises
    ------
    CheckpointError
        If the source cannot be read.
    ConversionError
        If a weight is not finite or too large for the type, and the plan refuses such weights.
    """
    planned, tensor = chunk.planned, chunk.planned.tensor
    if chunk.reused is not None:
        return chunk.reused.read_bytes(chunk.start, chunk.stop)
    if planned.is_copied and tensor.stored is not None:
        data = tensor.stored.read_bytes(chunk.start, chunk.stop)
        return bytes_by_policy(data, tensor, chunk.start, chunk.nonfinite)
    rows = read_rows(planned, chunk.start, chunk.stop)
    # Hashing the rows also gives their largest magnitude, infinity for a NaN; without it that is not known.
    largest = math.inf if source is None else add_rows(source, chunk.start, rows)
    finite = largest < math.inf or first_nonfinite(rows) < 0
    if not finite:
        rows = rows_by_policy(widened(rows), tensor, planned.type, chunk.nonfinite)
    out = np.empty((len(rows), planned.type.row_bytes(tensor.n_columns)), np.uint8)
    if not _encode_by_moments(chunk, rows, out):
        _encode_by_importance(chunk, rows, out)
    if not are_sound(planned.type, largest):
        overflow_by_policy(rows, tensor, chunk.start, planned.type, chunk.nonfinite, out)
    if not finite and chunk.nonfinite == "keep":
        keep_into(widened(rows), planned.type, out)
    return out.data.cast("B")


def _encode_by_moments(chunk: Chunk, rows: Rows, out: NDArray[np.uint8]) -> bool:
    """Encode rows by the second moments that they have; False if they have none."""
    if chunk.guides is None:
        return False
    with chunk.guides.prepared(chunk.planned, chunk.start) as prepared:
        if prepared is None:
            return False
        importance = None
        if chunk.importance is not None:  # of the imatrix, as a file of best effort has it
            n_rows = chunk.planned.tensor.n_rows // len(chunk.importance)
            importance = chunk.importance[chunk.start // n_rows]
        encode_with_moments(
            widened(rows), chunk.planned.type, prepared, out, method=chunk.guides.method,
            importance=importance,
        )  # fmt: skip
        del prepared  # others wait for its memory
    return True


def _encode_by_importance(chunk: Chunk, rows: Rows, out: NDArray[np.uint8]) -> None:
    """Encode rows by an imatrix's importance, where there is one."""
    type_, importance = chunk.planned.type, chunk.importance
    effort = "default" if chunk.effort == "default" else "best"
    if importance is None:
        encode_into(rows, type_, None, out, effort)
        return
    rows_per_slice = chunk.planned.tensor.n_rows // len(importance)
    for slice_, start, stop in _slices(chunk, rows_per_slice):
        part = slice(start, stop)
        encode_into(rows[part], type_, importance[slice_], out[part], effort)


def _slices(chunk: Chunk, rows_per_slice: int) -> list[tuple[int, int, int]]:
    """The slices (experts) a chunk touches: slice number, first and last row within the chunk."""
    parts = []
    for slice_ in range(chunk.start // rows_per_slice, (chunk.stop - 1) // rows_per_slice + 1):
        start = max(chunk.start, slice_ * rows_per_slice) - chunk.start
        stop = min(chunk.stop, (slice_ + 1) * rows_per_slice) - chunk.start
        parts.append((slice_, start, stop))
    return parts
