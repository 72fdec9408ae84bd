"""Whether a search's blocks have less error than best effort's (`searches.row_errors`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggplan.ggml_types import GgmlType
from ggplan.quants.codecs import decoder
from ggplan.quants.prepared import Prepared
from ggplan.quants.searches import feedback as searches
from ggplan.quants.searches.row_errors import are_less
from ggplan.quants.searches.row_tiles import panels, tiles_of

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

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
    """Whether rows have certainly less error than best effort's blocks leave, (tiles, 16)."""
    whole = _residues(rows, type, prepared, best)
    residues = [np.ascontiguousarray(whole[:, first:end]) for first, end in panels(rows.shape[1])]
    return are_less(errors, residues, prepared)


def _residues(rows: F32Array, type: GgmlType, prepared: Prepared, blocks: Bytes) -> F32Array:
    """What blocks leave of rows, in tiles and in the order of the moments."""
    residues = np.empty_like(rows)
    decoder(type)(blocks.reshape(-1, type.block_bytes), residues.reshape(-1, type.block_size))
    np.subtract(rows, residues, out=residues)
    return tiles_of(residues if prepared.order is None else residues[:, prepared.order])
