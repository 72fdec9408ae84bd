"""Encoder of iq4_xs: iq4_nl's sixteen levels, and small integer scales under one of 256 weights.

    0  d         half
    2  scales_h  eight times the upper two bits of a scale, 16 bits in all
    4  scales_l  eight times the lower four bits, the even sub-block's in the lower half of a byte
    8  qs        sixteen bytes for each sub-block, weights 0..15 in the lower halves, 16..31 in the upper

    weight = d (scale - 32) LEVELS[q]

The search is iq4_nl's, for each of the eight sub-blocks. With an imatrix the importance of a weight x is
qw sqrt(2 ms + x^2), ms the mean square of all 256 weights. Then d is set so that the scale of the largest
magnitude becomes -32, and each weight takes the level nearest to it under its rounded scale; d is rounded
to a half only when it is written. Where all scales are zero, that half is -0.0.

From llama.cpp b11434, `ggml/src/ggml-quants.c`: quantize_row_iq4_nl_impl with a superblock of 256.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.half import halves_of
from ggplan.quants.iq4_nl import best_scales, nearest_index, weigh_by_square
from ggplan.quants.layout32 import TILE_SIZE
from ggplan.quants.memory import load, new_floats, new_integers, store
from ggplan.quants.superblock import (
    SUPERBLOCK,
    TILE,
    encode_superblocks,
    first_superblock,
    load_tile,
    nearest,
    position,
    store_blocks,
    sum_of_squares,
    weigh_by_importance,
)
from ggplan.quants.vector import WIDTH, absolute, float_of, maximum, minimum, select, splat

_SIZE = 32
_COUNT = SUPERBLOCK // _SIZE
_BYTES = 136

_ZERO = np.float32(0)
_ONE = np.float32(1)


def encode(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 136 bytes for 256 weights; the arguments are those of `encode_superblocks`."""
    encode_superblocks(_encode, rows, importance, out)


@kernel
def _encode(source: Any, importance: Any, out: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    columns = new_floats(SUPERBLOCK * TILE)
    errors = new_floats(TILE_SIZE)
    terms = new_floats(5 * TILE_SIZE)
    scales = new_floats(_COUNT * TILE)
    integers = new_integers(_COUNT * TILE)
    block = new_integers(_BYTES * TILE)
    energy = splat(_ZERO, TILE)
    count = source.size // SUPERBLOCK
    per_row = importance.size // SUPERBLOCK - (TILE - 1)
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        load_tile(source, first, _SIZE, tile)
        if importance.size > 0:
            load_tile(importance, first % per_row, _SIZE, columns)
            energy = sum_of_squares(tile, _SIZE) * np.float32(2 / SUPERBLOCK)
        for at in range(0, _COUNT * TILE, WIDTH):
            # As many sub-blocks as there are lanes make a tile of iq4_nl's.
            sub_blocks = tile[_SIZE * at : _SIZE * at + TILE_SIZE]
            if importance.size > 0:
                weigh_by_importance(tile, columns, _SIZE * at, _SIZE, energy, errors)
            else:
                weigh_by_square(sub_blocks, errors)
            store(scales, at, best_scales(sub_blocks, errors, terms))
        d = _round_scales(scales, integers)
        pack(tile, d, integers, block)
        store_blocks(block, _BYTES, out, first)


@inline
def _round_scales(scales: Any, integers: Any) -> Any:
    """Give the scale of largest magnitude the integer -32, the others their share; return their scale."""
    extreme = splat(_ZERO, TILE)
    largest = splat(_ZERO, TILE)
    for j in range(_COUNT):
        scale = load(scales, j * TILE, TILE)
        larger = absolute(scale) > largest
        largest = select(larger, absolute(scale), largest)
        extreme = select(larger, scale, extreme)
    d = -extreme / np.float32(32)
    inverse = _inverse_or_zero(d)
    for j in range(_COUNT):
        integer = nearest(inverse * load(scales, j * TILE, TILE))
        store(integers, j * TILE, maximum(minimum(integer, 31), -32))
    return d


@inline
def pack(tile: Any, d: Any, integers: Any, block: Any) -> None:
    """Write the blocks of scales from -32 to 31 and their scale `d`, by which weights are rounded."""
    half = halves_of(d)
    store(block, 0 * TILE, half)
    store(block, 1 * TILE, half >> 8)

    high_bits = splat(0, TILE)
    low_bits = splat(0, TILE)
    for j in range(_COUNT):
        integer = load(integers, j * TILE, TILE)
        stored = integer + 32
        high_bits = high_bits | ((stored >> 4) << (2 * j))
        low_bits = low_bits | ((stored & 15) << (4 * j))
        sub_block_inverse = _inverse_or_zero(d * float_of(integer))
        for i in range(_SIZE // 2):
            low = load(tile, position(j, i, _SIZE), TILE) * sub_block_inverse
            high = load(tile, position(j, i + _SIZE // 2, _SIZE), TILE) * sub_block_inverse
            store(block, (8 + 16 * j + i) * TILE, nearest_index(low) | (nearest_index(high) << 4))
    for i in range(2):
        store(block, (2 + i) * TILE, high_bits >> (8 * i))
    for i in range(4):
        store(block, (4 + i) * TILE, low_bits >> (8 * i))


@inline
def _inverse_or_zero(values: Any) -> Any:
    return select(values == _ZERO, _ZERO, _ONE / values)
