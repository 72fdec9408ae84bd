"""The second moments of the rows of matrices: for what all of them read, their rows are what inputs are."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.linear_algebra import Moments, MomentSums

_TOKENS = 64  # for each column: nothing is left to chance here, so all of it is believed


def moments_of_matrices(
    matrices: Iterable[Iterable[NDArray[np.float32]]], n: int, threads: int = 1
) -> Moments | None:
    """The sum of the second moments of matrices, in parts of the trace of each.

    Each counts alike, however large its weights are. None where they are not finite, or all zero.

    Parameters
    ----------
    matrices
        For each its rows (m, n), some at a time.
    """
    total = None
    for pieces in matrices:
        sums = MomentSums(n, threads)
        with np.errstate(over="ignore", invalid="ignore"):
            for rows in pieces:
                sums.add(rows)
            matrix = sums.finished().matrix
            trace = math.fsum(matrix.diagonal().tolist())
            if not math.isfinite(trace):
                return None
            if trace > 0:
                matrix *= np.float32(n / trace)
                total = matrix if total is None else np.add(total, matrix, out=total)
    return None if total is None or not np.isfinite(total).all() else Moments(total, _TOKENS * n)
