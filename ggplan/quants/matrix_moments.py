"""The second moments of what several matrices read, from what each makes of its own inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.errors import QuantizationError
from ggplan.quants.linear_algebra import Moments, MomentSums, times
from ggplan.quants.prepared import LAMBDA, Prepared, prepare

F32Array = NDArray[np.float32]

_TOKENS = 64  # for each column: nothing is left to chance here, so all of it is believed
_SAMPLED = 4  # runs of rows that say how much a matrix gives


class Reading(NamedTuple):
    """A matrix W that reads gamma * x.

    Attributes
    ----------
    name
        Its tensor's.
    rows
        Its rows in runs (m, n), each read when it is called.
    n_rows
        All of them.
    gamma
        (n,), or None for ones.
    input
        Equal for matrices with the same input.
    moments
        The second moments of the inputs gamma * x, in parts of some mean square of x; None if it saw none, or
        if only what each slice of a stack saw is known.
    slices
        The tokens that slices saw, and their moments.
    """

    name: str
    rows: Sequence[Callable[[], F32Array]]
    n_rows: int
    gamma: F32Array | None
    input: Hashable
    moments: Callable[[], Moments | None]
    slices: Sequence[tuple[int, Callable[[], Moments | None]]] = ()


def prepared_for(
    name: str,
    readings: Iterable[Reading],
    n: int,
    lam: float = LAMBDA,
    threads: int = 1,
    *,
    by_importance: bool = False,
) -> Prepared:
    """What x of n columns, the tensor `name`, is encoded for: the least error of what is read of it.

    No row may be worse than by best effort without importance: x has no imatrix.

    Raises
    ------
    QuantizationError
        If the matrices that read it are not finite.
    """
    try:
        moments = moments_of(readings, n, threads)
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error.message}", hint=error.hint) from error
    found = prepare(moments, lam, threads, by_importance=by_importance, overwrite=True)
    return replace(found, mean_squares=None)


def moments_of(readings: Iterable[Reading], n: int, threads: int = 1) -> Moments:
    """The moments that errors e of x are made small by: the sum of |W (gamma e)|^2 / mean |W (gamma x)|^2.

    The error of each product counts in parts of the product; matrices that give nothing do not count.

    Raises
    ------
    QuantizationError
        If a matrix, or what is made of it, is not finite.
    """
    sums = MomentSums(n, threads)
    with np.errstate(over="ignore", invalid="ignore"):
        for reading, energy in _energies(readings, threads):
            if not math.isfinite(energy):
                raise _not_finite(reading.name)
            if energy > 0:
                scale = np.float32(1 / math.sqrt(energy))
                gamma = scale if reading.gamma is None else reading.gamma * scale
                for run in reading.rows:
                    rows = run() * gamma
                    if not np.isfinite(rows).all():
                        raise _not_finite(reading.name)
                    sums.add(rows)
        matrix = sums.finished().matrix
        mean = math.fsum(matrix.diagonal().tolist()) / n
        if mean > 0:
            matrix /= np.float32(mean)
    if not np.isfinite(matrix).all():
        raise _not_finite("one of the matrices")
    return Moments(matrix, _TOKENS * n)


def _mean(slices: Sequence[tuple[int, Callable[[], Moments | None]]]) -> Moments | None:
    """The mean of several moments, each counted by its tokens."""
    n_tokens, mean = sum(n for n, _ in slices), None
    for n, moments in slices:
        if (one := moments()) is not None:
            mean = np.zeros_like(one.matrix) if mean is None else mean
            for row, of_one in zip(mean, one.matrix, strict=True):  # no third matrix
                row += of_one * np.float32(n / n_tokens)
    return None if mean is None else Moments(mean, n_tokens)


def _not_finite(name: str) -> QuantizationError:
    return QuantizationError(
        f"{name}, which reads it, or the norm before that has weights that are not finite, or far too large",
        hint="leave the calibration out, or keep the tensor in a float type",
    )


def _energies(readings: Iterable[Reading], threads: int) -> Iterable[tuple[Reading, float]]:
    """For each matrix the mean square of what it makes of its inputs, all rows together; 0 if it saw none.

    By some of its rows, from all over it.
    """
    moments, of = None, None
    for reading in readings:
        if of is None or reading.input != of:
            del moments  # one at a time
            moments, of = reading.moments() or _mean(reading.slices), reading.input
        total, n_rows = 0.0, 0
        every = -(-len(reading.rows) // _SAMPLED)
        for run in reading.rows[::every] if moments is not None else ():
            rows = np.ascontiguousarray(run())
            assert moments is not None
            if rows.shape[1] != len(moments.matrix):
                break  # of another model
            products = times(rows, moments.matrix, threads)
            products *= rows
            total += math.fsum(products.sum(axis=1, dtype=np.float64).tolist())
            n_rows += len(rows)
        yield reading, total * reading.n_rows / max(1, n_rows)
