"""Tiles: `LANES` blocks of 32 weights turned on their side, so that lane k of every value is block k.

A search over scales sums along each block in ggml's order, so a block cannot be split over lanes; but blocks
do not depend on each other. `tile[LANES * i + k]` is weight i of block k. The blocks of a tile follow each
other in memory and may belong to two or more rows. Where fewer blocks are left than a tile takes, the last
one fills the rest, and nobody looks at the results.
"""

from __future__ import annotations

from typing import Any

from ggplan.quants.accelerate import inline
from ggplan.quants.vector import WIDTH, load, store, transpose

LANES = WIDTH
TILE_SIZE = 32 * LANES


@inline
def fill_tile(source: Any, first: Any, count: Any, cycle: Any, scratch: Any, tile: Any) -> None:
    """Turn `count` blocks of the flat array `source`, from block `first` on, into `tile`.

    Block numbers are taken modulo `cycle`: for the importance of columns, the blocks in a row.
    `scratch` and `tile` hold `TILE_SIZE` float32 each.
    """
    for lane in range(LANES):
        block = (first + min(lane, count - 1)) % cycle
        store(scratch, lane * 32, load(source, block * 32, 32))
    for group in range(0, LANES, 16):
        for weight in range(0, 32, 16):
            transpose(scratch, group * 32 + weight, 32, tile, weight * LANES + group, LANES)
