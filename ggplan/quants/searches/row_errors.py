"""The error of rows under a Hessian, and whether it is more than another, without all of it.

With H = U D U^T the error of a row is the sum over columns of D (e U)^2, e what its blocks leave of it.
Each panel of columns adds to it, the last one most, for those before it are mostly told by those after them;
the others not so differently, but a panel takes as much time as it has columns before its end. So the last
panel is summed up first, and then the others from the first on. At 2048 columns the last has 28 % of the
error of best effort's blocks, the first 8 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.searches.feedback import add_weighted_squares
from ggplan.quants.searches.row_tiles import PANEL, TILE, add_products, add_triangle, new_tiles, panels

F32Array = NDArray[np.float32]

_LESS = np.float32(1 - 2.0**-10)
"""An error must be below this part of another to count as less: sums of float32 are wrong by less."""


class Factored(Protocol):
    """A Hessian H = U D U^T of n columns, packed (`row_tiles`)."""

    @property
    def hessian(self) -> F32Array:
        """H."""

    @property
    def factor(self) -> F32Array:
        """U, and in the squares on the diagonal U^T."""

    @property
    def pivots(self) -> F32Array:
        """D, (n,)."""

    @property
    def squares(self) -> F32Array:
        """The squares on the diagonal of U."""

    @property
    def remainders(self) -> F32Array:
        """U D U^T of these alone: H of a panel once all columns after it make good what they can."""


def are_less(errors: F32Array, residues: Sequence[F32Array], factored: Factored) -> NDArray[np.bool_]:
    """Whether errors (tiles, 16) are certainly less than those of blocks, by what these leave of rows.

    Parameters
    ----------
    residues
        Of each panel float32 (tiles, its columns, 16).

    Tiles some of whose panels have more error already are not multiplied with the others.
    """
    n = len(factored.pivots)
    less = np.zeros(errors.shape, np.bool_)
    open_tiles = np.arange(len(errors))
    sums = np.zeros(errors.shape, np.float32)
    left = list(residues)
    last = len(left) - 1
    for number in (last, *range(last)):
        first, end = panels(n)[number]
        k = end - first
        turned = new_tiles(len(open_tiles) * TILE, k)
        turned[:] = 0
        for (start, stop), before in zip(panels(first), left, strict=False):
            right = factored.factor[n * start + first * (stop - start) :]
            add_products(turned, before, right, stop - start, (0, k))
        add_triangle(turned, left[number], factored.squares[PANEL * first :], k)
        add_weighted_squares(turned, factored.pivots[first:], len(open_tiles), k, k, sums)
        found = errors[open_tiles] < sums * _LESS
        less[open_tiles] = found
        is_open = ~found.all(axis=1)
        if not is_open.any():
            break
        if not is_open.all():
            open_tiles, sums = open_tiles[is_open], sums[is_open]
            left = [before[is_open] for before in left]
    return less
