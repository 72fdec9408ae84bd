"""Plain error feedback that rounds columns in the order of their importance, as GPTQ's act-order does.

A column's error is made good by those that are rounded after it, so the last ones keep most of theirs: here
these are the least important. Scales must be known before a block's first column is rounded. They are those
of best effort for the weights as they are (GPTQ's static groups), so blocks are stored as ever and need no
order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggplan.ggml_types import GgmlType
from ggplan.quants.formats.ladders import Ladder
from ggplan.quants.prepared import Prepared
from ggplan.quants.searches import feedback as searches
from ggplan.quants.searches.row_tiles import PANEL, TILE, add_products, new_tiles, panels, rows_of, tiles_of

F32Array = NDArray[np.float32]


def encode_in_order(
    rows: F32Array, type: GgmlType, ladder: Ladder, prepared: Prepared, blocks: NDArray[np.uint8]
) -> F32Array:
    """Round rows (m, n) anew in their `blocks` (m, row bytes); `prepared` has an order.

    Returns
    -------
    ndarray
        (tiles, 16), float32: the error of each row on H.
    """
    m, n = rows.shape
    rules = ladder.rules
    numbers = ladder.numbers(blocks.reshape(-1, type.block_bytes), with_levels=False)

    def in_order(unit: F32Array, integers: F32Array) -> F32Array:
        """The numbers of sub-blocks for each column, in tiles."""
        of_columns = np.repeat(unit[:, np.newaxis] * integers, rules.sub, axis=1).reshape(m, n)
        return tiles_of(of_columns[:, prepared.order])

    scales, lows = in_order(numbers.d, numbers.scales), in_order(numbers.dmin, numbers.mins)
    weights = tiles_of(rows[:, prepared.order])
    targets, levels = weights.copy(), np.empty_like(weights)
    count = len(weights)
    residues = new_tiles(count * TILE, PANEL)
    errors = np.zeros((count, TILE), np.float32)
    for first, end in panels(n):
        k = end - first
        searches.round_columns(
            rules.uneven, rules.lowest, rules.highest, count, n, first, k, prepared.squares[PANEL * first :],
            weights, scales, lows, targets, levels, residues,
        )  # fmt: skip
        missed = targets[:, first:end] - weights[:, first:end] + residues[:, :k]
        searches.add_weighted_squares(missed, prepared.pivots[first:end], count, k, k, errors)
        add_products(targets, residues, prepared.factor[n * first :], k, (end, n))
    found = np.empty_like(rows)
    found[:, prepared.order] = rows_of(levels)[:m]
    ladder.write(numbers._replace(levels=found.reshape(-1, rules.size)), blocks.reshape(-1, type.block_bytes))
    return errors
