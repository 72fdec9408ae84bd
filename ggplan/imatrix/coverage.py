"""How far an imatrix is to be trusted: what each expert saw, and which columns carry most of the energy.

A column's *energy* is its mean square; its share is of the sum over all columns of its matrix. Where one
column has a large share, encoders give it nearly all their care.
"""

from __future__ import annotations

import re
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
        The tokens of each matrix: of each expert, or one number for all where the file has no more.
    half
        For each matrix, in how many columns half of its energy is; 0 without data. Where experts have one
        count, there is nevertheless a number for each of them here, and in `column` and `share`.
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
    def is_counted_as_one(self) -> bool:
        """Whether experts have one count, as in the legacy form: what each saw is not known."""
        return len(self.counts) == 1 and is_experts(self.name)

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
        if few and len(self.counts) == 1:
            return ()
        return tuple(i for i, share in enumerate(self.share) if share >= LARGE_SHARE and i not in few)


_EXPERTS = re.compile(r"_exps\.weight$")


def is_experts(name: str) -> bool:
    """Whether a weight is one of stacked experts, by its name."""
    return _EXPERTS.search(name) is not None


def coverage_of(imatrix: ImatrixSums) -> Iterator[Coverage]:
    """The coverage of each entry, in the order of a file.

    The legacy form has a weight's experts in one row. They are told apart where the router of the same layer
    has an entry: its columns are those of gate and up.
    """
    known: dict[str, int] = {}
    for name in imatrix.names:
        sums = imatrix.entries[name]
        n = 1
        if len(sums.counts) == 1 and is_experts(name):
            layer = name.rpartition(".ffn_")[0]
            if layer not in known:
                known[layer] = _n_experts(imatrix, layer)
            n = known[layer] if sums.squares.size % known[layer] == 0 else 1
        yield coverage_of_entry(name, sums, n)


def _n_experts(imatrix: ImatrixSums, layer: str) -> int:
    """The experts of a layer, by the sizes of its entries; 1 if they do not tell."""
    router = f"{layer}.ffn_gate_inp.weight"
    if router in imatrix.entries:
        n_columns = imatrix.entries[router].squares.size
        for kind in ("gate", "up", "gate_up"):
            if (name := f"{layer}.ffn_{kind}_exps.weight") in imatrix.entries:
                n, rest = divmod(imatrix.entries[name].squares.size, n_columns)
                return 1 if rest else max(n, 1)
    return 1


def coverage_of_entry(name: str, sums: Sums, n_matrices: int = 1) -> Coverage:
    """The coverage of one entry.

    Parameters
    ----------
    n_matrices
        The matrices of the weight, where the entry has them all in one row with one count.
    """
    squares = sums.squares.astype(np.float64)
    if len(sums.counts) == 1:
        squares = squares.reshape(n_matrices, -1)
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
