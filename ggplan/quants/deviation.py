"""How far decoded weights are from the weights that were encoded.

Per row of w weights and their decoded values v, and then over all rows:

    root mean square error   rmse = sqrt(mean((v - w)^2))
    relative                 rmse / sqrt(mean(w^2))
    weighted                 sqrt(sum(i (v - w)^2) / sum(i)) with importance i of each column

Relative errors of different tensors can be compared; the weighted one is what encoders with an imatrix
make small. Sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Deviation:
    """The error of an encoding.

    Attributes
    ----------
    rmse
        Root mean square error, in the unit of the weights.
    relative
        `rmse` as a part of the weights' own root mean square; 0 where all weights are 0.
    largest
        The largest absolute error of one weight.
    worst_row
        The row with the largest relative error.
    worst_row_relative
        Its relative error.
    weighted
        Root mean square error weighted by the imatrix, or None without one.
    """

    rmse: float
    relative: float
    largest: float
    worst_row: int
    worst_row_relative: float
    weighted: float | None


def deviation(
    rows: NDArray[np.float32], decoded: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> Deviation:
    """Compare `decoded` with `rows`, both (m, n), m and n at least 1; `importance` is (n,)."""
    error = decoded.astype(np.float64) - rows
    squares = np.einsum("ij,ij->i", error, error)
    energy = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    relative = np.sqrt(np.divide(squares, energy, out=np.zeros_like(squares), where=energy > 0))
    worst = int(relative.argmax())
    total = float(energy.sum())
    weighted = None
    if importance is not None:
        weights = importance.astype(np.float64)
        weighed = float(((error * error) @ weights).sum())
        weighted = float(np.sqrt(weighed / (weights.sum() * len(rows)))) if weights.any() else 0.0
    return Deviation(
        rmse=float(np.sqrt(squares.sum() / rows.size)),
        relative=float(np.sqrt(squares.sum() / total)) if total else 0.0,
        largest=float(np.abs(error).max()),
        worst_row=worst,
        worst_row_relative=float(relative[worst]),
        weighted=weighted,
    )
