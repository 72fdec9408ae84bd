"""How far an imatrix is to be trusted: what each expert saw, and which columns carry most of the energy.

A column's *energy* is its mean square; its share is of the sum over all columns of its matrix. Where one
column has a large share, encoders give it nearly all their care.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ggplan.imatrix.sums import ImatrixSums, Sums

FEW_TOKENS = 2.5
"""Tokens a column below which a matrix is called poorly covered."""
LARGE_SHARE = 0.1
"""The share of the energy from which one column is said to dominate."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """What one entry holds.

    Attributes
    ----------
    name
        The weight's name.
    n_columns
        Columns of a matrix.
    counts
        The tokens of each matrix: of each expert, or one number.
    half
        For each matrix, in how many columns half of its energy is; 0 without data.
    column, share
        For each matrix, the column with most energy, and its share.
    """

    name: str
    n_columns: int
    counts: tuple[int, ...]
    half: tuple[int, ...]
    column: tuple[int, ...]
    share: tuple[float, ...]

    @property
    def without_data(self) -> tuple[int, ...]:
        """The matrices that saw no token."""
        return tuple(i for i, n in enumerate(self.counts) if n <= 0)

    def with_few(self, tokens_a_column: float = FEW_TOKENS) -> tuple[int, ...]:
        """The matrices that saw some tokens, but fewer than so many a column."""
        return tuple(i for i, n in enumerate(self.counts) if 0 < n < tokens_a_column * self.n_columns)

    @property
    def dominated(self) -> tuple[int, ...]:
        """The matrices one column of which dominates; those with few tokens show chance and are left out."""
        few = {*self.without_data, *self.with_few()}
        return tuple(i for i, share in enumerate(self.share) if share >= LARGE_SHARE and i not in few)


def coverage_of(imatrix: ImatrixSums) -> Iterator[Coverage]:
    """The coverage of each entry, in the order of a file."""
    for name in imatrix.names:
        yield coverage_of_entry(name, imatrix.entries[name])


def coverage_of_entry(name: str, sums: Sums) -> Coverage:
    """The coverage of one entry."""
    squares = sums.squares.astype(np.float64)
    total = squares.sum(axis=1)
    measured = (sums.counts > 0) & (total > 0)
    largest = -np.sort(-squares, axis=1)
    half = (np.cumsum(largest, axis=1) < total[:, None] / 2).sum(axis=1) + 1
    share = np.divide(largest[:, 0], total, out=np.zeros(len(total)), where=measured)
    return Coverage(
        name,
        squares.shape[1],
        tuple(sums.counts.tolist()),
        tuple(np.where(measured, half, 0).tolist()),
        tuple(squares.argmax(axis=1).tolist()),
        tuple(share.tolist()),
    )
