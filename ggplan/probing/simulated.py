"""A low type where rows do not hold it: the errors of the type, stored in another.

Rows of 352 weights are no multiple of 256, so llama.cpp gives them a type of 4.5 bits instead of q2_K. A
probe of that type would be of tokens that are routed elsewhere rather than of the tensor. Instead as many
rows as make up whole superblocks are encoded as one, decoded, and written in the type of the base.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ggplan.ggml_types import F32, GgmlType
from ggplan.model import RowSource, TensorInfo
from ggplan.planning.importance import entry_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ggplan.imatrix import Imatrix

    Floats = NDArray[Any]


def simulated(tensor: TensorInfo, type_: GgmlType, imatrix: Imatrix | None) -> TensorInfo:
    """The tensor with weights that went through `type_`; it must have weights.

    Raises
    ------
    ImatrixError
        If an entry of the imatrix does not have the tensor's size.
    """
    assert tensor.rows is not None
    entry = entry_of(tensor, imatrix) if imatrix is not None else None
    importance = None if entry is None else entry.for_tensor(tensor.shape)
    read = partial(_read, tensor.rows, tensor.shape, type_, importance)
    return replace(
        tensor, rows=RowSource(F32, tensor.shape, read, tensor.rows.fault), stored=None, codes=None,
        type=tensor.rows.dtype if tensor.rows.dtype.kind == "float" else F32,
    )  # fmt: skip


def _read(
    source: RowSource,
    shape: tuple[int, ...],
    type_: GgmlType,
    importance: Floats | None,
    start: int,
    stop: int,
) -> Floats:
    """Rows `start` up to `stop`, (stop - start, n) float32. Rows are joined within their slice only."""
    import numpy as np

    parts = []
    rows_per_slice = shape[-2]
    for slice_ in range(start // rows_per_slice, -(-stop // rows_per_slice)):
        first = slice_ * rows_per_slice
        own = None if importance is None else importance[slice_]
        wanted = max(start - first, 0), min(stop - first, rows_per_slice)
        parts.append(_read_slice(source, first, rows_per_slice, type_, own, *wanted))
    return np.concatenate(parts) if parts else np.empty((0, shape[-1]), np.float32)


def _read_slice(
    source: RowSource,
    first: int,
    n_rows: int,
    type_: GgmlType,
    importance: Floats | None,
    start: int,
    stop: int,
) -> Floats:
    """Rows `start` up to `stop` of the slice of `n_rows` rows that begins at row `first`."""
    import numpy as np

    from ggplan.quants import decode_into, encode_into

    n = source.n_columns
    period = type_.block_size // math.gcd(n, type_.block_size)  # rows that are whole blocks
    begin, end = start - start % period, min(-(-stop // period) * period, n_rows)
    rows = np.zeros((-(-(end - begin) // period) * period, n), np.float32)  # a part of a block is zeros
    rows[: end - begin] = source.read_float32(first + begin, first + end)
    long = rows.reshape(-1, period * n)
    if not np.isfinite(long).all():
        return rows[start - begin : stop - begin]  # the conversion refuses such weights
    blocks = np.empty((len(long), type_.row_bytes(period * n)), np.uint8)
    encode_into(long, type_, None if importance is None else np.tile(importance, period), blocks)
    decode_into(blocks, type_, long)
    return rows[start - begin : stop - begin]
