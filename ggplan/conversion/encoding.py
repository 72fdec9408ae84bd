"""A chunk's bytes: read, checked, encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ggplan.conversion.chunks import Chunk
from ggplan.errors import ConversionError
from ggplan.ggml_types import GgmlType
from ggplan.model import TensorInfo
from ggplan.quants import encode_into, first_nonfinite
from ggplan.text import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode_chunk(chunk: Chunk) -> bytes | memoryview:
    """The bytes of a chunk as they stand in the output.

    Raises
    ------
    CheckpointError
        If the source cannot be read.
    ConversionError
        If a weight is not finite, or too large for the type.
    """
    planned, tensor = chunk.planned, chunk.planned.tensor
    if planned.is_copied and tensor.read_bytes is not None:
        return tensor.read_bytes(chunk.start, chunk.stop)
    if tensor.read_rows is None:
        raise ConversionError(f"{printable(tensor.name)} has no weights to read")
    rows = tensor.read_rows(chunk.start, chunk.stop)
    at = first_nonfinite(rows)
    if at >= 0:
        raise _not_finite(tensor, chunk.start * tensor.n_columns + at, float(rows.flat[at]))
    out = np.empty((len(rows), planned.type.row_bytes(tensor.n_columns)), np.uint8)
    importance = chunk.importance
    if importance is None:
        encode_into(rows, planned.type, None, out)
    else:
        rows_per_slice = tensor.n_rows // len(importance)
        for slice_, start, stop in _slices(chunk, rows_per_slice):
            encode_into(rows[start:stop], planned.type, importance[slice_], out[start:stop])
    if planned.type.name == "f16":
        _refuse_overflow(tensor, planned.type, rows, out)
    return out.data.cast("B")


def _slices(chunk: Chunk, rows_per_slice: int) -> list[tuple[int, int, int]]:
    """The slices (experts) a chunk touches: slice number, first and last row within the chunk."""
    parts = []
    for slice_ in range(chunk.start // rows_per_slice, (chunk.stop - 1) // rows_per_slice + 1):
        start = max(chunk.start, slice_ * rows_per_slice) - chunk.start
        stop = min(chunk.stop, (slice_ + 1) * rows_per_slice) - chunk.start
        parts.append((slice_, start, stop))
    return parts


def _not_finite(tensor: TensorInfo, index: int, value: float) -> ConversionError:
    row, column = divmod(index, tensor.n_columns)
    return ConversionError(
        f"{printable(tensor.name)} holds {value} at row {row}, column {column} ({printable(tensor.origin)})",
        hint="the checkpoint is damaged or was trained to overflow; download the file again",
    )


def _refuse_overflow(
    tensor: TensorInfo, type_: GgmlType, rows: NDArray[np.float32], out: NDArray[np.uint8]
) -> None:
    infinite = np.flatnonzero((out.view(np.uint16) & 0x7FFF) == 0x7C00)
    if infinite.size:
        value = float(rows.flat[infinite[0]])
        raise ConversionError(
            f"{printable(tensor.name)} holds {value:g}, too large for {type_.name} (65504)",
            hint="give this tensor bf16 or f32",
        )
