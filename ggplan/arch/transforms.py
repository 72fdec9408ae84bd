"""Transforms: how the rows of a GGUF tensor come from rows of the checkpoint's tensors.

A transform takes the row source of a tensor, or of several, and gives that of the GGUF tensor: its shape, and
a reader that reads little more than the rows it is asked for and keeps no state, so it may run in any number
of threads. Rows keep their type; only transforms that split rows (`permuted` of a bias, `transposed_slices`)
need weights stored one by one.

What llama.cpp's converter does to tensors (`conversion/*.py` of b11434), as rows:

    plain      as they are
    stacked    one tensor per expert, one after the other: row r is row r mod n of expert r div n
    permuted   Q and K of Llama. transformers rotates the first half of a head against its second half,
               llama.cpp rotates neighbours, so a head's rows 0, d/2, 1, d/2 + 1, ... become 0, 1, 2, 3, ...
    halves_first  the other way round: of the first rows of each head, even ones first, then odd ones
    every      every second row, from the first or the second on: gate and up that are interleaved
    every_column  the same of columns
    shifted    weights plus a number: norms that are stored less one
    rearranged runs of rows in another order, or only some of them: heads of linear attention
    reshaped   the same weights in another shape: the kernel of a convolution without its middle dimension
    decay      minus the exponential: what a state keeps of itself is stored as a logarithm
    sliced     some rows of each group: gate and up of a fused [gate; up], V's part of DeepSeek's kv_b
    k_b        K's part of DeepSeek's kv_b, each head transposed: llama.cpp multiplies it into the query
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ggplan.ggml_types import F16, F32
from ggplan.model import RowSource, empty_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray


def plain(source: RowSource) -> RowSource:
    """The tensor's own rows."""
    return source


def stacked(sources: Sequence[RowSource]) -> RowSource:
    """The rows of several tensors of one shape, one tensor after the other: (tensors, *shape).

    Tensors of several types give rows of f32.
    """
    if len({source.dtype for source in sources}) > 1:
        sources = [source.as_float32() for source in sources]
    first = sources[0]
    n_rows = first.n_rows

    def read(start: int, stop: int) -> NDArray[Any]:
        groups = list(_groups(start, stop, n_rows))
        if len(groups) == 1:
            k, begin, end = groups[0]
            return sources[k].read(begin, end)
        rows = empty_rows(first.dtype, stop - start, first.n_columns)
        for k, begin, end in groups:
            at = k * n_rows - start
            rows[at + begin : at + end] = sources[k].read(begin, end)
        return rows

    def fault() -> str:
        """The fault of the first tensor that has one."""
        return next((fault for source in sources if (fault := source.fault())), "")

    return RowSource(first.dtype, (len(sources), *first.shape), read, fault)


def permuted(source: RowSource, n_heads: int) -> RowSource:
    """Q or K, each head's two halves interleaved; a bias, which is one row, has its columns interleaved."""
    if len(source.shape) == 1:
        return _permuted_bias(source, n_heads)
    head = source.n_rows // n_heads
    half = head // 2

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = empty_rows(source.dtype, stop - start, source.n_columns)
        for k, first, last in _groups(start, stop, head):
            for parity, offset in ((0, 0), (1, half)):
                # Of rows first..last the even ones come from the first half, the odd ones from the second.
                i, j = (first + 1 - parity) // 2, (last + 1 - parity) // 2
                at = k * head - start + 2 * i + parity
                rows[at : at + 2 * (j - i) : 2] = source.read(k * head + offset + i, k * head + offset + j)
        return rows

    return RowSource(source.dtype, source.shape, read, source.fault)


def _permuted_bias(source: RowSource, n_heads: int) -> RowSource:
    source = _by_weights(source)
    half = source.n_columns // n_heads // 2

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = source.read(start, stop)
        return rows.reshape(-1, n_heads, 2, half).swapaxes(2, 3).reshape(rows.shape)

    return RowSource(source.dtype, source.shape, read, source.fault)


def halves_first(source: RowSource, group: int, length: int) -> RowSource:
    """Of each `group` rows the first `length`, those with an even number before those with an odd one.

    A bias, which is one row, has its columns moved so.
    """
    if len(source.shape) == 1:
        return _halves_first_of_bias(source, group, length)
    half = length // 2

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = empty_rows(source.dtype, stop - start, source.n_columns)
        for k, first, last in _groups(start, stop, group):
            at, begin = k * group - start, k * group
            for parity in (0, 1):
                i, j = (min(max(n, parity * half), (parity + 1) * half) for n in (first, last))
                if i < j:
                    low = begin + 2 * (i - parity * half) + parity
                    high = begin + 2 * (j - 1 - parity * half) + parity + 1
                    rows[at + i : at + j] = source.read(low, high)[::2]
            if last > length:
                i = max(first, length)
                rows[at + i : at + last] = source.read(begin + i, begin + last)
        return rows

    return RowSource(source.dtype, source.shape, read, source.fault)


def _halves_first_of_bias(source: RowSource, group: int, length: int) -> RowSource:
    source = _by_weights(source)

    def read(start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        heads = source.read(start, stop).reshape(-1, group)
        parts = (heads[:, 0:length:2], heads[:, 1:length:2], heads[:, length:])
        return np.concatenate(parts, axis=1).reshape(stop - start, source.n_columns)

    return RowSource(source.dtype, source.shape, read, source.fault)


def every(source: RowSource, step: int, offset: int) -> RowSource:
    """Rows `offset`, `offset + step`, ...: a matrix of so many fewer rows; a vector's values likewise.

    The rows of all other dimensions are counted on, so the last but one must be a multiple of `step`.
    """
    if len(source.shape) == 1:
        raise ValueError("a vector has no rows to choose from")
    *outer, n_rows, n_columns = source.shape

    def read(start: int, stop: int) -> NDArray[Any]:
        if start == stop:
            return empty_rows(source.dtype, 0, n_columns)
        return source.read(start * step + offset, (stop - 1) * step + offset + 1)[::step].copy()

    return RowSource(source.dtype, (*outer, n_rows // step, n_columns), read, source.fault)


def every_column(source: RowSource, step: int, offset: int) -> RowSource:
    """Columns `offset`, `offset + step`, ... of every row: biases of experts whose rows are interleaved."""
    source = _by_weights(source)
    shape = (*source.shape[:-1], source.n_columns // step)

    def read(start: int, stop: int) -> NDArray[Any]:
        return source.read(start, stop)[:, offset::step].copy()

    return RowSource(source.dtype, shape, read, source.fault)


def shifted(source: RowSource, by: float) -> RowSource:
    """Every weight plus a number, in f32; the sum of weights in f16 is rounded to f16."""

    def read(start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        return _rounded_like(source, source.read_float32(start, stop) + np.float32(by))

    return RowSource(F32, source.shape, read, source.fault)


def decay(source: RowSource) -> RowSource:
    """Minus the exponential of every weight, in f32; that of weights in f16 is rounded to f16.

    It is rounded correctly. torch's is off by one unit in the last place for one float32 in a hundred, and
    for others on other processors.
    """

    def read(start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        with np.errstate(over="ignore"):
            exact = np.exp(source.read_float32(start, stop).astype(np.float64))
            return _rounded_like(source, -exact.astype(np.float32))

    return RowSource(F32, source.shape, read, source.fault)


def _rounded_like(source: RowSource, rows: NDArray[Any]) -> NDArray[Any]:
    """float32 rows as the converter has them: it computes with f16 in f16, with all else in f32."""
    import numpy as np

    with np.errstate(over="ignore"):
        return rows.astype(np.float16).astype(np.float32) if source.dtype == F16 else rows


def rearranged(source: RowSource, runs: Sequence[tuple[int, int]]) -> RowSource:
    """Runs of rows, each as (first row, rows), one after the other: a matrix.

    A vector, which is one row, has its weights rearranged so.
    """
    if len(source.shape) < 2:
        return rearranged_columns(source, runs)
    ends = list(accumulate(length for _, length in runs))

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = empty_rows(source.dtype, stop - start, source.n_columns)
        k, at = bisect_right(ends, start), start
        while at < stop:
            first, length = runs[k]
            begin, end = at - (ends[k] - length), min(length, length - (ends[k] - stop))
            rows[at - start : at - start + end - begin] = source.read(first + begin, first + end)
            at, k = at + end - begin, k + 1
        return rows

    return RowSource(source.dtype, (ends[-1] if ends else 0, source.n_columns), read, source.fault)


def rearranged_columns(source: RowSource, runs: Sequence[tuple[int, int]]) -> RowSource:
    """The same of columns of every row."""
    source = _by_weights(source)
    n_columns = sum(length for _, length in runs)

    def read(start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        order = np.concatenate([np.arange(first, first + length) for first, length in runs])
        return np.ascontiguousarray(source.read(start, stop)[:, order])

    return RowSource(source.dtype, (*source.shape[:-1], n_columns), read, source.fault)


def tiled(first: int, n_groups: int, n_each: int, length: int) -> list[tuple[int, int]]:
    """Runs that put the first head of each group before the second of each; a head has `length` rows.

    Linear attention has `n_each` heads of V to a head of K. transformers has those of one K side by side,
    ggml repeats the heads of K as a whole, so the first of each group come first.
    """
    heads = (group * n_each + k for k in range(n_each) for group in range(n_groups))
    return [(first + head * length, length) for head in heads]


def reshaped(source: RowSource, shape: tuple[int, ...]) -> RowSource:
    """The same weights in another shape; each row of it must be whole rows of the source or parts of one."""
    source = source if shape[-1] == source.n_columns else _by_weights(source)
    n_columns, n_old = shape[-1], source.n_columns

    def read(start: int, stop: int) -> NDArray[Any]:
        if n_columns == n_old:
            return source.read(start, stop)
        first, last = start * n_columns // n_old, -(-stop * n_columns // n_old)
        weights = source.read(first, last).reshape(-1)
        offset = start * n_columns - first * n_old
        return weights[offset : offset + (stop - start) * n_columns].reshape(stop - start, n_columns)

    return RowSource(source.dtype, shape, read, source.fault)


def sliced(source: RowSource, group: int, offset: int, length: int) -> RowSource:
    """Rows `offset` up to `offset + length` of every `group` rows: (groups, length, n_columns)."""

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = empty_rows(source.dtype, stop - start, source.n_columns)
        for k, first, last in _groups(start, stop, length):
            at, begin = k * length - start, k * group + offset
            rows[at + first : at + last] = source.read(begin + first, begin + last)
        return rows

    shape = (source.n_rows // group, length, source.n_columns)
    return RowSource(source.dtype, shape, read, source.fault)


def transposed_slices(source: RowSource, group: int, length: int) -> RowSource:
    """The first `length` rows of every `group` rows, transposed: (groups, n_columns, length)."""
    source = _by_weights(source)
    n_columns = source.n_columns

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = empty_rows(source.dtype, stop - start, length)
        for k, first, last in _groups(start, stop, n_columns):
            at = k * n_columns - start
            rows[at + first : at + last] = source.read(k * group, k * group + length)[:, first:last].T
        return rows

    shape = (source.n_rows // group, n_columns, length)
    return RowSource(source.dtype, shape, read, source.fault)


def constant(values: Sequence[float]) -> RowSource:
    """A vector that is computed, not stored."""

    def read(start: int, stop: int) -> NDArray[Any]:
        import numpy as np

        return np.array([values], np.float32)[start:stop]

    return RowSource(F32, (len(values),), read)


def _by_weights(source: RowSource) -> RowSource:
    """The same rows in a type that stores weights one by one."""
    return source if source.dtype.is_float else source.as_float32()


def _groups(start: int, stop: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut rows `start` up to `stop` where groups of `length` rows meet: group, first and last row in it."""
    while start < stop:
        group, first = divmod(start, length)
        last = min(length, first + stop - start)
        yield group, first, last
        start += last - first
