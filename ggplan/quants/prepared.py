"""Second moments made ready for the searches that encode by them: regularized, factored, packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.in_place import reorder
from ggplan.quants.linear_algebra import Moments, regularized, times, unit_upper
from ggplan.quants.searches.row_tiles import PANEL, pack, packed_blocks, panels

F32Array = NDArray[np.float32]

LAMBDA = 0.1
"""What is added to the diagonal by default, in parts of its mean."""


def search_bytes(n: int) -> int:
    """What a search takes for each weight of the rows of n columns that it works on, with rows and blocks.

    Short rows take more: room for a panel is that for `PANEL` columns.
    """
    return 52 + 7 * PANEL // n


@dataclass(frozen=True, slots=True)
class Prepared:
    """The moments of an input in the form that searches take, for any number of rows.

    Attributes
    ----------
    mean_squares
        float32 (n,): the diagonal of H as it was, which is an imatrix's importance. What best effort makes of
        rows with it is what a row must not be worse than; None where that is best effort without importance.
    importance
        float32 (n,): the diagonal of the regularized H.
    order
        None, or int64 (n,): the columns in the order that all below has them in.
    hessian
        H, packed (`searches.row_tiles`).
    factor, pivots
        U and D of H = U D U^T, D as float32 (n,). U is packed with U^T in the squares on the diagonal and
        below them, since each is wanted on one side only.
    squares
        The squares on the diagonal of U, packed.
    remainders
        Packed squares too: U D U^T of these alone. That is H of a panel once all columns after it make good
        what they can.
    """

    mean_squares: F32Array | None
    importance: F32Array
    hessian: F32Array
    factor: F32Array
    pivots: F32Array
    squares: F32Array
    remainders: F32Array
    order: NDArray[np.int64] | None = None


def memory_of(n: int) -> int:
    """The most bytes that the moments of n columns take while they are prepared in their own memory.

    That is H and its factor, and in runs of 256 rows what is packed of them, twice, and one that is packed at
    the time. Once they are prepared it is one run less.
    """
    return 4 * (2 * n * n + 3 * PANEL * n)


def prepare(
    moments: Moments,
    lam: float = LAMBDA,
    threads: int = 1,
    *,
    by_importance: bool = False,
    overwrite: bool = False,
) -> Prepared:
    """Regularize moments, and factor them.

    Parameters
    ----------
    by_importance
        Put the columns in the order of their importance, the most important first.
    overwrite
        Make H in the memory of the moments, which are lost: one matrix less.

    Raises
    ------
    QuantizationError
        If they are no second moments: the matrix is not positive.
    """
    mean_squares = moments.matrix.diagonal().copy()
    matrix = regularized(moments, lam, overwrite=overwrite)
    n = len(matrix)
    importance = matrix.diagonal().copy()
    order = None
    if by_importance:
        order = np.argsort(-importance, kind="stable")
        reorder(matrix, order)
    upper = unit_upper(matrix, threads)
    pivots = _pivots(matrix, upper)
    squares = packed_blocks((upper[first:end, first:end] for first, end in panels(n)), n)
    remainders = packed_blocks((_remainder(upper, pivots, first, end) for first, end in panels(n)), n)
    for first, end in panels(n):
        upper[end:, first:end] = upper[first:end, end:].T
        upper[first:end, first:end] = upper[first:end, first:end].T.copy()
    return Prepared(
        mean_squares if mean_squares.any() else importance,
        importance,
        pack(matrix),
        pack(upper),
        pivots,
        squares,
        remainders,
        order,
    )


def _remainder(upper: F32Array, pivots: F32Array, first: int, end: int) -> F32Array:
    square = upper[first:end, first:end]
    return times(square * pivots[first:end], np.ascontiguousarray(square.T))


def _pivots(matrix: F32Array, upper: F32Array) -> F32Array:
    n = len(matrix)
    pivots = matrix.diagonal().astype(np.float64)
    for j in range(n - 2, -1, -1):
        pivots[j] -= (upper[j, j + 1 :].astype(np.float64) ** 2 * pivots[j + 1 :]).sum()
    return pivots.astype(np.float32)
