"""Products, second moments and factors of matrices, in float32, with the same bits wherever they are made.

A library of linear algebra adds in whatever order suits the processor, so what it returns changes with the
machine, the number of threads and the shape of the whole. Blocks that are chosen by such numbers could not be
made again. Here each sum has one order:

    sum over k of a[i, k] b[k, j]     panels of 256 k from 0 on; the products of a panel are added one after
                                      the other to zero, then the panels' sums one after the other

and each multiplication is fused with its addition (`vector.fused`). So an element depends on nothing but its
row of `a`, its column of `b` and what it is added to: not on the rows beside it, nor on threads or the width
of vectors.

Matrices are C-contiguous in their rows: a view of some columns will do. `threads` is how many threads of
Python share the work; kernels run without the GIL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import QuantizationError
from ggplan.quants.codecs import Rows
from ggplan.quants.in_place import mirror, new_matrix, reverse, reverse_columns, reversed_copy, turn
from ggplan.quants.kernels import I64, F32s, I32s, Weights, inline, kernel, scratch
from ggplan.quants.memory import load, load_weights, store, transpose
from ggplan.quants.vector import fused, lane, splat

F32Array = NDArray[np.float32]

PANEL = 256
"""How many products are added before their sum is added to the others'."""

_BLOCK = 16  # rows or columns that are packed side by side
_STEP = 32  # columns of a factor that are found one by one
_IN_CACHE = 8  # blocks of the left factor that stay in the second cache while the right one passes
_ZERO = np.float32(0)


@dataclass(frozen=True, slots=True)
class Moments:
    """The second moments of what a matrix is multiplied with.

    Attributes
    ----------
    matrix
        float32 (n, n), symmetric: the mean of x x^T over tokens.
    tokens
        How many tokens that is the mean of.
    """

    matrix: F32Array
    tokens: int


class RowRuns(Protocol):
    """Rows (N, n) that are read a run at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, n)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, run: slice, /) -> F32Array:
        """Rows that follow one another."""


def second_moments(x: Rows | RowRuns, threads: int = 1) -> F32Array:
    """The mean of x x^T: float32 (n, n) of the inputs (N, n) of N tokens, float32 or the bits of bfloat16.

    No tokens give zeros.
    """
    sums = MomentSums(x.shape[1], threads)
    for first in range(0, len(x), PANEL):
        sums.add(x[first : first + PANEL])
    return sums.finished().matrix


def cross_moments(a: Rows | RowRuns, b: Rows | RowRuns, threads: int = 1) -> F32Array:
    """The mean of a b^T: float32 (n, m) of the inputs (N, n) and (N, m) of the same N tokens."""
    out = new_matrix(a.shape[1], b.shape[1])
    for first in range(0, len(a), PANEL):
        left, right = (_packed(x[first : first + PANEL]) for x in (a, b))
        _add(out, left, right, min(PANEL, len(a) - first), threads=threads)
    if len(a):
        out /= np.float32(len(a))
    return out


class MomentSums:
    """Second moments of rows that come in pieces: how they were parted makes no difference.

    Holds one matrix (n, n) and fewer than `PANEL` rows.
    """

    def __init__(self, n: int, threads: int = 1) -> None:
        self.tokens = 0
        self._sums = new_matrix(n, n)
        self._rest: Rows | None = None
        self._threads = threads

    def add(self, x: Rows) -> None:
        """Add the inputs (N, n) of N more tokens, all float32 or all the bits of bfloat16."""
        if self._rest is not None and self._rest.dtype != x.dtype:
            raise TypeError(f"inputs of {x.dtype} after inputs of {self._rest.dtype}")
        self.tokens += len(x)
        if self._rest is not None:
            x = np.concatenate((self._rest, x))
        whole = len(x) - len(x) % PANEL
        for first in range(0, whole, PANEL):
            self._add_panel(self._sums, x[first : first + PANEL])
        self._rest = x[whole:].copy() if whole < len(x) else None

    def moments(self) -> Moments:
        """The moments of all rows so far; more can be added."""
        matrix = new_matrix(*self._sums.shape)
        matrix[:] = self._sums
        return self._moments(matrix)

    def finished(self) -> Moments:
        """The moments of all rows, in the memory of the sums: no more can be added."""
        matrix = self._sums
        del self._sums
        return self._moments(matrix)

    def _moments(self, matrix: F32Array) -> Moments:
        """The moments of sums, in their place."""
        if self._rest is not None:
            self._add_panel(matrix, self._rest)
        if self.tokens:
            matrix /= np.float32(self.tokens)
        mirror(matrix)
        return Moments(matrix, self.tokens)

    def _add_panel(self, sums: F32Array, rows: Rows) -> None:
        packed = _packed(rows)
        _add(sums, packed, packed, len(rows), lower_only=True, threads=self._threads)


def regularized(moments: Moments, lam: float = 0.1, *, overwrite: bool = False) -> F32Array:
    """The Hessian that blocks are chosen by: what few tokens do not tell is left out of it.

    rho H + (1 - rho) diag(H) + lam mean(diag(H)) I, with rho = 0.9 N / (N + 1.5 n) for N tokens of n columns.
    `lam` keeps it well conditioned, and blocks good for texts that are unlike the one it was made of.
    Where H is zero, it is the unit matrix. `overwrite` makes it in the memory of the moments.
    """
    n = len(moments.matrix)
    rho = np.float32(0.9 * moments.tokens / (moments.tokens + 1.5 * n))
    diagonal = moments.matrix.diagonal().copy()
    mean = math.fsum(diagonal.tolist()) / n  # exact, so it has one value
    matrix = moments.matrix if overwrite else new_matrix(n, n)
    np.multiply(moments.matrix, rho, out=matrix)
    matrix.flat[:: n + 1] = diagonal + np.float32(lam * mean) if mean > 0 else np.float32(1)
    return matrix


def times(a: F32Array, b: F32Array, threads: int = 1) -> F32Array:
    """The product (m, n) of matrices (m, k) and (k, n)."""
    out = new_matrix(len(a), b.shape[1])
    add_product(out, a, b, threads=threads)
    return out


def add_product(out: F32Array, a: F32Array, b: F32Array, *, minus: bool = False, threads: int = 1) -> None:
    """Add to `out` (m, n) the product of `a` (m, k) and `b` (k, n), or take it off."""
    for first in range(0, len(b), PANEL):
        left = _packed_turned(a[:, first : first + PANEL])
        right = _packed(b[first : first + PANEL])
        _add(out, left, right, min(PANEL, len(b) - first), minus=minus, threads=threads)


def unit_upper(h: F32Array, threads: int = 1) -> F32Array:
    """The upper factor U, ones on its diagonal, of a symmetric positive matrix (n, n) = U D U^T, D diagonal.

    Raises
    ------
    QuantizationError
        If the matrix is not positive: rounding errors count.
    """
    return unit_factor(h, threads)[0]


def unit_factor(h: F32Array, threads: int = 1) -> tuple[F32Array, F32Array]:
    """The same, and the diagonal of D, (n,).

    Raises
    ------
    QuantizationError
        If the matrix is not positive: rounding errors count.
    """
    factor = _lower_factor(reversed_copy(h), threads)
    roots = factor.diagonal().copy()
    factor /= roots
    reverse(factor)
    return factor, (roots * roots)[::-1].copy()


def divide_into(b: F32Array, h: F32Array, threads: int = 1) -> None:
    """Put in the place of `b` (m, n) the matrix whose product with `h` it is; `h` is lost.

    `h` (n, n) is contiguous, symmetric and positive.

    Raises
    ------
    QuantizationError
        If `h` is not positive.
    """
    reverse(h)
    lower = _lower_factor(h, threads)
    reverse_columns(b)
    _divide_by_turned(b, lower, threads)
    reverse_columns(b)
    reverse(lower)
    turn(lower)
    _divide_by_turned(b, lower, threads)


def _lower_factor(lower: F32Array, threads: int) -> F32Array:
    """The lower factor L of a matrix = L L^T, in its place.

    A panel of columns is made up of steps, each of which subtracts the steps before it, and is then taken off
    all columns after it.
    """
    n = len(lower)
    for first in range(0, n, PANEL):
        end = min(first + PANEL, n)
        _find_panel(lower[first:, first:end], lower[first:end, first:end], end - first)
        if end < n:
            packed = _packed_turned(lower[end:, first:end])
            rest = lower[end:, end:]
            _add(rest, packed, packed, end - first, lower_only=True, minus=True, threads=threads)
    for first in range(0, n, PANEL):
        lower[first : first + PANEL, first + PANEL :] = 0
        block = lower[first : first + PANEL, first : first + PANEL]
        block[:] = np.tril(block)
    return lower


def _divide_by_turned(x: F32Array, lower: F32Array, threads: int) -> None:
    """Make x (m, n) what gives x with L^T: the columns of x follow from those before them."""
    n = len(lower)
    for first in range(0, n, PANEL):
        end = min(first + PANEL, n)
        _find_panel(x[:, first:end], lower[first:end, first:end], 0)
        if end < n:
            left = _packed_turned(x[:, first:end])
            right = _packed_turned(lower[end:, first:end])
            _add(x[:, end:], left, right, end - first, minus=True, threads=threads)


def _find_panel(panel: F32Array, square: F32Array, to_factor: int) -> None:
    """Divide rows (m, k) by the turned lower square (k, k), perhaps their own and still to be found."""
    k = panel.shape[1]
    failed = np.zeros(1, np.int32)
    room = scratch(2 * _STEP * _STEP)
    for first in range(0, k, _STEP):
        end = min(first + _STEP, k)
        below = panel[first:] if to_factor else panel
        if first:
            left = _packed_turned(below[:, :first])
            right = left[: _blocks(end - first)] if to_factor else _packed_turned(square[first:end, :first])
            _add(below[:, first:end], left, right, first, minus=True)
        if to_factor:
            _find_square(*_memory(square[first:end, first:end]), end - first, failed)
            if failed[0]:
                raise QuantizationError("the matrix of second moments is not positive")
            below = below[end - first :]
        if len(below):
            _divide_step(
                *_memory(below[:, first:end]), len(below),
                *_memory(square[first:end, first:end]), end - first, room,
            )  # fmt: skip


# --- Packed panels -----------------------------------------------------------------------------------
#
# A panel of a product, k of its sums' products, is packed in blocks of sixteen rows of the left factor, or
# columns of the right one: float32 (blocks, k, 16), filled up with zeros.


def _blocks(count: int) -> int:
    return -(-count // _BLOCK)


def _memory(matrix: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """The memory of a matrix from its first element on, and how far its rows are apart."""
    if matrix.strides[1] != matrix.itemsize and matrix.shape[1] > 1:
        raise TypeError("the rows of matrices are contiguous")
    stride = matrix.strides[0] // matrix.itemsize if len(matrix) > 1 else matrix.shape[1]
    size = (len(matrix) - 1) * stride + matrix.shape[1]
    return np.lib.stride_tricks.as_strided(matrix, (size,), (matrix.itemsize,)), stride


def _packed(rows: Rows) -> F32Array:
    """Columns, packed: rows (k, n) to (blocks, k, 16)."""
    packed = _room(rows.shape[1], len(rows))
    _pack(*_memory(rows), *rows.shape, packed)
    return packed


def _packed_turned(rows: F32Array) -> F32Array:
    """Rows, packed: rows (m, k) to (blocks, k, 16)."""
    packed = _room(*rows.shape)
    _pack_turned(*_memory(rows), *rows.shape, packed)
    return packed


def _room(count: int, k: int) -> F32Array:
    return scratch(_blocks(count) * k * _BLOCK).reshape(-1, k, _BLOCK)


def _add(
    out: F32Array,
    left: F32Array,
    right: F32Array,
    k: int,
    *,
    lower_only: bool = False,
    minus: bool = False,
    threads: int = 1,
) -> None:
    """Add the product of two packed panels to `out`, or take it off; perhaps only up to the diagonal."""
    memory, stride = _memory(out)
    m, n = out.shape

    def add(first: int, end: int) -> None:
        _add_panels(memory, stride, m, n, left, right, k, first, end, int(lower_only), int(minus))

    _share(add, _blocks(m), threads)


def _share(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Let threads do `work` (first, end) on some numbers of `count` each."""
    if threads <= 1 or count <= _IN_CACHE:
        work(0, count)
        return
    starts = range(0, count, _IN_CACHE)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, start, min(start + _IN_CACHE, count)) for start in starts]:
            done.result()


@kernel
def _pack(source: Weights, stride: I64, k: I64, n: I64, packed: F32s) -> None:
    whole = n // 16
    for row in range(k):
        for block in range(whole):
            store(packed, (block * k + row) * 16, load_weights(source, row * stride + 16 * block, 16))
        if whole * 16 < n:
            at = (whole * k + row) * 16
            store(packed, at, splat(_ZERO, 16))
            for i in range(whole * 16, n):
                packed[at + i - whole * 16] = lane(load_weights(source, row * stride + i, 1), 0)


@kernel
def _pack_turned(source: F32s, stride: I64, m: I64, k: I64, packed: F32s) -> None:
    whole_k = k // 16 * 16
    for block in range((m + 15) // 16):
        first = 16 * block
        at = first * k
        turned = 0
        if first + 16 <= m:
            for column in range(0, whole_k, 16):
                transpose(source, first * stride + column, stride, packed, at + 16 * column, 16)
            turned = whole_k
        for column in range(turned, k):
            for i in range(16):
                value = _ZERO
                if first + i < m:
                    value = source[(first + i) * stride + column]
                packed[at + 16 * column + i] = value


@inline
def _put(out: Any, at: Any, value: Any, minus: Any, columns: Any) -> None:
    """Add lanes to `out`, or take them off, as many as there are columns."""
    if columns >= 16:
        before = load(out, at, 16)
        if minus:
            store(out, at, before - value)
        else:
            store(out, at, before + value)
    else:
        for i in range(columns):
            if minus:
                out[at + i] = out[at + i] - lane(value, i)
            else:
                out[at + i] = out[at + i] + lane(value, i)


@kernel
def _add_panels(
    out: F32s, stride: I64, m: I64, n: I64, left: F32s, right: F32s, k: I64, first: I64, end: I64,
    lower_only: I64, minus: I64,
) -> None:  # fmt: skip
    # Four rows of sixteen columns are summed up in registers. The right block stays in the first cache while
    # several left ones pass.
    for start in range(first, end, 8):
        stop = min(start + 8, end)
        for column in range(0, n, 16):
            right_at = column * k
            for block in range(start, stop):
                if not lower_only or column <= 16 * block:
                    for part in range(0, 16, 4):
                        row = 16 * block + part
                        if row < m:
                            at = 16 * block * k + part
                            sum0 = splat(_ZERO, 16)
                            sum1 = sum0
                            sum2 = sum0
                            sum3 = sum0
                            for i in range(k):
                                b = load(right, right_at + 16 * i, 16)
                                sum0 = fused(b, left[at + 16 * i], sum0)
                                sum1 = fused(b, left[at + 16 * i + 1], sum1)
                                sum2 = fused(b, left[at + 16 * i + 2], sum2)
                                sum3 = fused(b, left[at + 16 * i + 3], sum3)
                            columns = n - column
                            to = row * stride + column
                            _put(out, to, sum0, minus, columns)
                            if row + 1 < m:
                                _put(out, to + stride, sum1, minus, columns)
                            if row + 2 < m:
                                _put(out, to + 2 * stride, sum2, minus, columns)
                            if row + 3 < m:
                                _put(out, to + 3 * stride, sum3, minus, columns)


# --- Steps of a factor -------------------------------------------------------------------------------


@kernel
def _find_square(square: F32s, stride: I64, n: I64, failed: I32s) -> None:
    """The lower factor of a small matrix, in its place; what is above the diagonal is not read."""
    for j in range(n):
        pivot = square[j * stride + j]
        for i in range(j):
            pivot = pivot - square[j * stride + i] * square[j * stride + i]
        if not (pivot > _ZERO and pivot < np.float32(np.inf)):
            failed[0] = 1
            return
        pivot = np.sqrt(pivot)
        square[j * stride + j] = pivot
        for row in range(j + 1, n):
            value = square[row * stride + j]
            for i in range(j):
                value = value - square[row * stride + i] * square[j * stride + i]
            square[row * stride + j] = value / pivot


@kernel
def _divide_step(
    rows: F32s, stride: I64, m: I64, square: F32s, square_stride: I64, n: I64, room: F32s
) -> None:
    """Divide rows (m, n) by a small turned lower matrix (n, n), sixteen at a time."""
    for first in range(0, m, 16):
        count = min(16, m - first)
        for j in range(n):
            store(room, 16 * j, splat(_ZERO, 16))
        for r in range(count):
            for j in range(n):
                room[16 * j + r] = rows[(first + r) * stride + j]
        for j in range(n):
            value = load(room, 16 * j, 16)
            for i in range(j):
                value = value - load(room, 16 * i, 16) * square[j * square_stride + i]
            store(room, 16 * j, value / square[j * square_stride + j])
        for r in range(count):
            for j in range(n):
                rows[(first + r) * stride + j] = room[16 * j + r]
