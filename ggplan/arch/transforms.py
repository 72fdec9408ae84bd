"""Row readers: how rows of a GGUF tensor come from rows of the checkpoint's tensors.

A reader takes `start` and `stop`, row numbers of the GGUF tensor, and gives those rows, as float32 or as its
tensors give them. It reads little more than these rows ask for, keeps nothing between calls, and so may run
in any number of threads.

What llama.cpp's converter does to tensors (`conversion/*.py` of b11434), as rows:

    plain      as they are
    stacked    one tensor per expert, one after the other: row r is row r mod n of expert r div n
    permuted   Q and K of Llama. transformers rotates the first half of a head against its second half,
               llama.cpp rotates neighbours, so a head's rows 0, d/2, 1, d/2 + 1, ... become 0, 1, 2, 3, ...
    sliced     some rows of each group: gate and up of a fused [gate; up], V's part of DeepSeek's kv_b
    k_b        K's part of DeepSeek's kv_b, each head transposed: llama.cpp multiplies it into the query
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ggplan.model import RowReader
from ggplan.sources.tensors import CheckpointTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def plain(tensor: CheckpointTensor) -> RowReader:
    """The tensor's own rows."""
    return tensor.read_rows


def stacked(tensors: Sequence[CheckpointTensor]) -> RowReader:
    """The rows of several tensors of one shape, one tensor after the other."""
    n_rows = tensors[0].n_rows

    def read(start: int, stop: int) -> NDArray[np.float32]:
        groups = list(_groups(start, stop, n_rows))
        if len(groups) == 1:
            k, first, last = groups[0]
            return tensors[k].read_rows(first, last)
        rows = _empty(tensors[0], start, stop, tensors[0].n_columns)
        for k, first, last in groups:
            at = k * n_rows - start
            rows[at + first : at + last] = tensors[k].read_rows(first, last)
        return rows

    return read


def permuted(tensor: CheckpointTensor, n_heads: int) -> RowReader:
    """Q or K, each head's two halves interleaved; a bias, which is one row, has its columns interleaved."""
    if len(tensor.shape) == 1:
        return _permuted_bias(tensor, n_heads)
    head = tensor.n_rows // n_heads
    half = head // 2

    def read(start: int, stop: int) -> NDArray[np.float32]:
        rows = _empty(tensor, start, stop, tensor.n_columns)
        for k, first, last in _groups(start, stop, head):
            for parity, offset in ((0, 0), (1, half)):
                # Of rows first..last the even ones come from the first half, the odd ones from the second.
                i, j = (first + 1 - parity) // 2, (last + 1 - parity) // 2
                at = k * head - start + 2 * i + parity
                rows[at : at + 2 * (j - i) : 2] = tensor.read_rows(
                    k * head + offset + i, k * head + offset + j
                )
        return rows

    return read


def _permuted_bias(tensor: CheckpointTensor, n_heads: int) -> RowReader:
    half = tensor.n_columns // n_heads // 2

    def read(start: int, stop: int) -> NDArray[np.float32]:
        rows = tensor.read_rows(start, stop)
        return rows.reshape(-1, n_heads, 2, half).swapaxes(2, 3).reshape(rows.shape)

    return read


def sliced(tensor: CheckpointTensor, group: int, offset: int, length: int) -> RowReader:
    """Rows `offset` up to `offset + length` of every `group` rows."""

    def read(start: int, stop: int) -> NDArray[np.float32]:
        rows = _empty(tensor, start, stop, tensor.n_columns)
        for k, first, last in _groups(start, stop, length):
            at, source = k * length - start, k * group + offset
            rows[at + first : at + last] = tensor.read_rows(source + first, source + last)
        return rows

    return read


def transposed_slices(tensor: CheckpointTensor, group: int, length: int) -> RowReader:
    """The first `length` rows of every `group` rows, transposed group by group."""
    n_columns = tensor.n_columns

    def read(start: int, stop: int) -> NDArray[np.float32]:
        rows = _empty(tensor, start, stop, length)
        for k, first, last in _groups(start, stop, n_columns):
            at = k * n_columns - start
            rows[at + first : at + last] = tensor.read_rows(k * group, k * group + length)[:, first:last].T
        return rows

    return read


def constant(values: Sequence[float]) -> RowReader:
    """A vector that is computed, not stored."""

    def read(start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        return np.array([values], np.float32)[start:stop]

    return read


def _groups(start: int, stop: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut rows `start` up to `stop` where groups of `length` rows meet: group, first and last row in it."""
    while start < stop:
        group, first = divmod(start, length)
        last = min(length, first + stop - start)
        yield group, first, last
        start += last - first


def _empty(tensor: CheckpointTensor, start: int, stop: int, n_columns: int) -> NDArray[np.float32]:
    """Room for rows of what the tensor gives."""
    import numpy as np

    return np.empty((stop - start, n_columns), tensor.read_rows(0, 0).dtype)
