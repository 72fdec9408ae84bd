"""The second moments of what several matrices read, from what each makes of its own inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.linear_algebra import Moments, MomentSums, times

F32Array = NDArray[np.float32]

_TOKENS = 64  # for each column: nothing is left to chance here, so all of it is believed


class Reading(NamedTuple):
    """A matrix W that reads gamma * x.

    Attributes
    ----------
    rows
        Gives its rows (m, n), some at a time.
    gamma
        (n,), or None for ones.
    moments
        The second moments of its inputs gamma * x, in parts of some mean square of x; None if it saw none.
    """

    rows: Callable[[], Iterator[F32Array]]
    gamma: F32Array | None
    moments: Callable[[], Moments | None]


def moments_of_readings(readings: Iterable[Reading], n: int, threads: int = 1) -> Moments | None:
    """The moments that errors e of x are made small by: the sum of |W (gamma e)|^2 / mean |W (gamma x)|^2.

    The error of each product counts in parts of the product. None where no matrix saw an input, or something
    is not finite.
    """
    sums = MomentSums(n, threads)
    for reading in readings:
        energy = _energy(reading, threads)
        if not math.isfinite(energy):
            return None
        if energy <= 0:
            continue
        scale = np.float32(1 / math.sqrt(energy))
        with np.errstate(over="ignore", invalid="ignore"):
            gamma = scale if reading.gamma is None else reading.gamma * scale
            for rows in reading.rows():
                sums.add(rows * gamma)
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = sums.finished().matrix
        mean = math.fsum(matrix.diagonal().tolist()) / n
        if not (math.isfinite(mean) and mean > 0):
            return None
        matrix /= np.float32(mean)
    return Moments(matrix, _TOKENS * n) if np.isfinite(matrix).all() else None


def _energy(reading: Reading, threads: int) -> float:
    """The mean square of what a matrix makes of its inputs, all its rows together; 0 if it saw none."""
    moments = reading.moments()
    if moments is None:
        return 0.0
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in reading.rows():
            if rows.shape[1] != len(moments.matrix):
                return 0.0  # of another model
            products = times(np.ascontiguousarray(rows), moments.matrix, threads)
            products *= rows
            total += math.fsum(products.sum(axis=1, dtype=np.float64).tolist())
    return total
