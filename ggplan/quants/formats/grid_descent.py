"""The types whose weights are points of a grid, as searches under a Hessian take them (`descent_grids`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ggplan.quants.formats import iq2, iq3
from ggplan.quants.formats.fields import Bytes, F32Array, Grid
from ggplan.quants.searches.descent_grids import Rules, improve
from ggplan.quants.searches.row_errors import Factored


class GridType(NamedTuple):
    """How blocks of a type are taken apart and put together, and the rules of its weights."""

    unpack: Callable[[Bytes], Grid]
    pack: Callable[[Grid, Bytes], None]
    rules: Rules


GRID_TYPES = {
    "iq2_xxs": GridType(iq2.unpack_iq2_xxs, iq2.pack_iq2_xxs, Rules(8, 1, 32, 0.125)),
    "iq2_xs": GridType(iq2.unpack_iq2_xs, iq2.pack_iq2_xs, Rules(8, 1, 16, 0.125)),
    "iq2_s": GridType(iq2.unpack_iq2_s, iq2.pack_iq2_s, Rules(8, 0, 16, 0.125)),
    "iq3_xxs": GridType(iq3.unpack_iq3_xxs, iq3.pack_iq3_xxs, Rules(4, 1, 32, 0.25)),
    "iq3_s": GridType(iq3.unpack_iq3_s, iq3.pack_iq3_s, Rules(4, 0, 32, 1.0)),
}
"""By the name of a type, which is that of its grid."""


def descend(
    name: str,
    rows: F32Array,
    blocks: Bytes,
    factored: Factored,
    method: str,
) -> None:
    """Make blocks of rows have less error under a Hessian, in place; those of other rows stay.

    Parameters
    ----------
    name
        Of a type in `GRID_TYPES`.
    blocks
        (m, row bytes): what best efforts make of `rows`, float32 (m, n), with the Hessian's diagonal.
    factored, method
        See `descent_grids.improve`.
    """
    type = GRID_TYPES[name]
    flat = blocks.reshape(len(rows) * (rows.shape[1] // 256), -1)
    fields = type.unpack(flat)
    chosen = improve(name, type.rules, rows, fields, factored, method)
    packed = np.empty_like(flat)
    type.pack(fields, packed)
    blocks[chosen] = packed.reshape(blocks.shape)[chosen]
