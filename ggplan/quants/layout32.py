"""What the encoders of blocks of 32 weights share: the bytes of a block, and tiles of blocks.

Bytes: first the scales in half precision, then, for five-bit quants, four bytes with bit j the fifth bit of
weight j, then sixteen bytes with the low four bits of weights j (below) and j + 16 (above).

Tiles: a search over scales sums along each block in ggml's order, so a block cannot be spread over lanes;
but blocks know nothing of each other. A tile is `LANES` blocks turned on their side: weight i of block k
stands at `tile[LANES * i + k]`, and each step of the search is one operation on the i-th weights of all
blocks. The blocks of a tile follow each other in memory and may belong to several rows. Where fewer are left
than a tile takes, the last one fills the rest, and nobody looks at the results.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline
from ggplan.quants.half import half_from_float
from ggplan.quants.memory import load_weights, store, store_bytes, transpose
from ggplan.quants.vector import WIDTH, lane_bits

LANES = WIDTH
TILE_SIZE = 32 * LANES

Element = TypeVar("Element", bound=np.generic)


def flat(rows: NDArray[Element]) -> NDArray[Element]:
    """All rows as one, and read-only: Numba compiles anew for writable arrays, so let there be none."""
    view = rows.reshape(-1)
    view.flags.writeable = False
    return view


@inline
def fill_tile(source: Any, first: Any, count: Any, cycle: Any, scratch: Any, tile: Any) -> None:
    """Lay `count` blocks of `source`, from block `first` on, into the lanes of `tile`.

    Block numbers wrap around at `cycle`: the blocks in a row, where `source` is the importance of columns.
    `scratch` and `tile` hold `TILE_SIZE` float32 each.
    """
    for lane in range(LANES):
        block = (first + min(lane, count - 1)) % cycle
        store(scratch, lane * 32, load_weights(source, block * 32, 32))
    for group in range(0, LANES, 16):
        for weight in range(0, 32, 16):
            transpose(scratch, group * 32 + weight, 32, tile, weight * LANES + group, LANES)


@inline
def store_half(out: Any, at: Any, value: Any) -> None:
    """Write a float32 as two bytes of half precision."""
    store_bytes(out, at, half_from_float(value), 2)


@inline
def store_quants(out: Any, at: Any, low: Any, high: Any, highest: Any) -> None:
    """Write the quants, from 0 to `highest` (15 or 31): `low` of weights 0 to 15, `high` of 16 to 31."""
    if highest > 15:
        fifth = lane_bits((low & 16) != 0) | (lane_bits((high & 16) != 0) << 16)
        store_bytes(out, at, fifth, 4)
        at += 4
    store(out, at, (low & 15) | ((high & 15) << 4))
