"""Whether a search's blocks have less error than best effort's, without the error of all of these.

With H = U D U^T the error of a row is the sum over columns of D (e U)^2, e what its blocks leave of it.
Panels of columns are summed up from the last on, until best effort's blocks have more than is to be beaten.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggplan.ggml_types import GgmlType
from ggplan.quants.codecs import decoder
from ggplan.quants.prepared import Prepared
from ggplan.quants.searches import feedback as searches
from ggplan.quants.searches.row_tiles import PANEL, TILE, add_products, new_tiles, panels, tiles_of

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_LESS = np.float32(1 - 2.0**-10)
"""A row's error must be below this part of best's to count as less: sums of float32 are wrong by less."""
_DIGITS = np.float32(2.0**-20)
"""What a weight may be wrong by while it is worked on, in parts of it. Where rows lie far from zero beside
their spread, that is more than what blocks leave of them; best's are kept then."""


def at_most(weights: F32Array, prepared: Prepared, errors: F32Array) -> F32Array:
    """What errors (tiles, 16) that a search ended with may be at most, of rows (tiles, n, 16)."""
    count, n, _ = weights.shape
    sizes = np.zeros_like(errors)
    with np.errstate(over="ignore", invalid="ignore"):
        searches.add_weighted_squares(weights, prepared.importance, count, n, n, sizes)
        return np.square(np.sqrt(np.maximum(errors, 0)) + _DIGITS * np.sqrt(sizes))


def beats_best(
    rows: F32Array, type: GgmlType, prepared: Prepared, best: Bytes, errors: F32Array
) -> NDArray[np.bool_]:
    """Whether rows have certainly less error than best effort's blocks leave, (tiles, 16).

    Each panel of columns adds to the error, the last one most, for those before it are mostly told by those
    after them. Rows that have been beaten by the last ones are not multiplied with the others.
    """
    better = np.zeros(errors.shape, np.bool_)
    open_tiles = np.arange(len(errors))
    sums = np.zeros(errors.shape, np.float32)
    whole = _residues(rows, type, prepared, best)
    residues = [np.ascontiguousarray(whole[:, first:end]) for first, end in panels(rows.shape[1])]
    for first, end in reversed(panels(rows.shape[1])):
        k = end - first
        turned = new_tiles(len(open_tiles) * TILE, k)
        turned[:] = 0
        for (start, stop), before in zip(panels(first), residues, strict=False):
            right = prepared.factor[rows.shape[1] * start + first * (stop - start) :]
            add_products(turned, before, right, stop - start, (0, k))
        add_products(turned, residues.pop(), prepared.squares[PANEL * first :], k, (0, k))
        searches.add_weighted_squares(turned, prepared.pivots[first:], len(open_tiles), k, k, sums)
        found = errors[open_tiles] < sums * _LESS
        better[open_tiles] = found
        is_open = ~found.all(axis=1)
        if not is_open.all():
            open_tiles, sums = open_tiles[is_open], sums[is_open]
            residues = [before[is_open] for before in residues]
        if not len(open_tiles):
            break
    return better


def _residues(rows: F32Array, type: GgmlType, prepared: Prepared, blocks: Bytes) -> F32Array:
    """What blocks leave of rows, in tiles and in the order of the moments."""
    residues = np.empty_like(rows)
    decoder(type)(blocks.reshape(-1, type.block_bytes), residues.reshape(-1, type.block_size))
    np.subtract(rows, residues, out=residues)
    return tiles_of(residues if prepared.order is None else residues[:, prepared.order])
