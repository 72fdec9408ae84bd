"""q6_K: superblocks of sixteen sub-blocks of 16 weights, weight = d * scale * level.

Bytes of a block (210)

      0   ql      the lower four bits of level + 32
    128   qh      the upper two bits
    192   scales  sixteen int8
    208   d       half

Levels run from -32 to 31. Each half of the superblock, 128 weights, has 64 bytes of ql and 32 of qh. Byte i
of the 64 has weight i in its lower half and weight 64 + i in its upper half; byte i of the 32 has the upper
bits of weights i, 32 + i, 64 + i and 96 + i, from the lowest up.

The error of a weight x counts x^2, or the importance of its column where there is an importance matrix.

From llama.cpp's `ggml/src/ggml-quants.c`: quantize_row_q6_K_ref and quantize_row_q6_K_impl.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.memory import load, new_floats, new_integers, store
from ggplan.quants.search import NOTHING, find_extreme, symmetric_search
from ggplan.quants.superblock import (
    SUPERBLOCK,
    TILE,
    encode_superblocks,
    first_superblock,
    load_tile,
    nearest,
    new_fit,
    requantize,
    store_blocks,
)
from ggplan.quants.vector import WIDTH, any_lane, float_of, minimum, select, splat

_SIZE = 16
_COUNT = SUPERBLOCK // _SIZE
_BYTES = 210
_LOWEST = -32
_HIGHEST = 31

# Twice as many as elsewhere, which halves what comes once a trial.
_LANES = 2 * WIDTH
_ZERO = np.float32(0)
_ONE = np.float32(1)
_LOWEST_SCALE = np.float32(-128)


def encode(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 210 bytes for 256 weights; the arguments are those of `encode_superblocks`."""
    encode_superblocks(_encode, rows, importance, out)


@kernel
def _encode(source: Any, importance: Any, out: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    columns = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(_SIZE * _LANES)
    scratch = new_floats(_SIZE * _LANES)
    scales = new_integers(_COUNT * TILE)
    levels = new_integers(SUPERBLOCK * TILE)
    block = new_integers(_BYTES * TILE)
    fit = new_fit()
    count = source.size // SUPERBLOCK
    per_row = importance.size // SUPERBLOCK - (TILE - 1)
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        load_tile(source, first, _SIZE, tile, _LANES)
        if importance.size > 0:
            load_tile(importance, first % per_row, _SIZE, columns, _LANES)
        for at in range(0, _COUNT * TILE, _LANES):
            for i in range(0, _SIZE * _LANES, _LANES):
                x = load(tile, _SIZE * at + i, _LANES)
                store(weight, i, load(columns, _SIZE * at + i, _LANES) if importance.size > 0 else x * x)
            scale, kept_scale, kept_offset = symmetric_search(
                tile, _SIZE * at, _SIZE, _LANES, weight, scratch, np.float32(-_LOWEST), True
            )
            store(fit.scale, at, scale)
            store(fit.offset, at, splat(_ZERO, _LANES))
            store(fit.kept_scale, at, kept_scale)
            store(fit.kept_offset, at, kept_offset)
        d, nothing = _round_scales(fit.scale, scales)
        pack_scales(d, scales, block, fit)
        for j in range(_COUNT):
            requantize(tile, tile, fit, j, _SIZE, _LOWEST, _HIGHEST, levels, _LANES)
        pack_levels(levels, block)
        if any_lane(nothing):
            for byte in range(_BYTES):
                store(block, byte * TILE, select(nothing, 0, load(block, byte * TILE, TILE)))
        store_blocks(block, _BYTES, out, first)


@inline
def _round_scales(values: Any, scales: Any) -> Any:
    """Give the scale of largest magnitude the integer -128, the others their share.

    Returns the scale of the integers, and which superblocks are nothing.
    """
    extreme, magnitude = find_extreme(values, 0, _COUNT, TILE)
    inverse = _LOWEST_SCALE / extreme
    for j in range(_COUNT):
        integer = minimum(nearest(inverse * load(values, j * TILE, TILE)), 127)
        store(scales, j * TILE, (integer << 24) >> 24)
    return _ONE / inverse, magnitude < NOTHING


@inline
def pack_scales(d: Any, scales: Any, block: Any, fit: Any) -> None:
    """Write scales and d, and let `fit` have the scales that a reader will find in them."""
    d = halves_of(d)
    store(block, 208 * TILE, d)
    store(block, 209 * TILE, d >> 8)
    d = floats_of(d)
    for j in range(_COUNT):
        integer = load(scales, j * TILE, TILE)
        store(block, (192 + j) * TILE, integer)
        store(fit.scale, j * TILE, d * float_of(integer))


@inline
def pack_levels(levels: Any, block: Any) -> None:
    """Write all levels, from 0 to 63."""
    for half in range(2):
        for i in range(32):
            at = (128 * half + i) * TILE
            a = load(levels, at, TILE)
            b = load(levels, at + 32 * TILE, TILE)
            c = load(levels, at + 64 * TILE, TILE)
            d = load(levels, at + 96 * TILE, TILE)
            store(block, (64 * half + i) * TILE, (a & 15) | ((c & 15) << 4))
            store(block, (64 * half + 32 + i) * TILE, (b & 15) | ((d & 15) << 4))
            high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6)
            store(block, (128 + 32 * half + i) * TILE, high)
