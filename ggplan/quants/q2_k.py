"""q2_K: superblocks of sixteen sub-blocks of 16 weights, weight = d * scale * level - dmin * min.

Bytes of a block (84)

     0   scales  sixteen: the scale in the lower four bits, the min in the upper
    16   qs      the levels
    80   d       half
    82   dmin    half

Levels run from 0 to 3. Each half of the superblock, 128 weights, has 32 bytes of qs. Byte i of these has
weights i, 32 + i, 64 + i and 96 + i, from the lowest two bits up.

Without an importance matrix the error of a weight x is not squared and counts |x|, and the largest scale and
min get the whole four bits. With one its square counts importance * sqrt(ms + x^2), the mean square of the
superblock, and d and dmin are searched for too.

From llama.cpp's `ggml/src/ggml-quants.c`: quantize_row_q2_K_ref and quantize_row_q2_K_impl.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.memory import load, new_floats, new_integers, store
from ggplan.quants.search import affine_search, quantize_scales, scales_by_largest
from ggplan.quants.superblock import (
    SUPERBLOCK,
    TILE,
    encode_superblocks,
    first_superblock,
    load_tile,
    new_fit,
    requantize,
    store_blocks,
    store_fit,
    sum_of_squares,
    weigh_by_importance,
)
from ggplan.quants.vector import WIDTH, absolute, float_of, splat

_SIZE = 16
_COUNT = SUPERBLOCK // _SIZE
_BYTES = 84

_ZERO = np.float32(0)
_HIGHEST = np.float32(3)
_LARGEST_SCALE = np.float32(15)


def encode(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 84 bytes for 256 weights; the arguments are those of `encode_superblocks`."""
    first, step, count = (-0.5, 0.1, 16) if importance is None else (-0.9, 0.05, 37)
    # `_SIZE` is an argument so that LLVM does not unroll the search's loops; sixteenfold they run slower.
    encode_superblocks(_encode, rows, importance, out, np.float32(first), np.float32(step), count, _SIZE)


@kernel
def _encode(
    source: Any, importance: Any, out: Any, first_trial: Any, step: Any, trials: Any, size: Any
) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    columns = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(_SIZE * WIDTH)
    scratch = new_floats(_SIZE * WIDTH)
    scales = new_integers(_COUNT * TILE)
    mins = new_integers(_COUNT * TILE)
    levels = new_integers(SUPERBLOCK * TILE)
    block = new_integers(_BYTES * TILE)
    fit = new_fit()
    mean_square = splat(_ZERO, TILE)
    count = source.size // SUPERBLOCK
    per_row = importance.size // SUPERBLOCK - (TILE - 1)
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        load_tile(source, first, _SIZE, tile)
        if importance.size > 0:
            load_tile(importance, first % per_row, _SIZE, columns)
            mean_square = sum_of_squares(tile, _SIZE) / np.float32(SUPERBLOCK)
        for at in range(0, _COUNT * TILE, WIDTH):
            start = _SIZE * at
            if importance.size > 0:
                weigh_by_importance(tile, columns, start, _SIZE, mean_square, weight)
            else:
                for i in range(0, _SIZE * WIDTH, WIDTH):
                    store(weight, i, absolute(load(tile, start + i, WIDTH)))
            found = affine_search(
                tile, start, size, weight, scratch, _HIGHEST, first_trial, step, trials, importance.size == 0
            )
            store_fit(fit, at, found)
        if importance.size > 0:
            d = quantize_scales(fit.scale, fit.weight, _COUNT, _LARGEST_SCALE, scales)
            dmin = quantize_scales(fit.offset, fit.weight, _COUNT, _LARGEST_SCALE, mins)
        else:
            d = scales_by_largest(fit.scale, _COUNT, _LARGEST_SCALE, scales)
            dmin = scales_by_largest(fit.offset, _COUNT, _LARGEST_SCALE, mins)
        pack_scales(d, dmin, scales, mins, block, fit)
        for j in range(_COUNT):
            requantize(tile, tile, fit, j, _SIZE, 0, 3, levels)
        pack_levels(levels, block)
        store_blocks(block, _BYTES, out, first)


@inline
def pack_scales(d: Any, dmin: Any, scales: Any, mins: Any, block: Any, fit: Any) -> None:
    """Write scales, d and dmin, and let `fit` have the scales and offsets that a reader will find in them."""
    d = halves_of(d)
    dmin = halves_of(dmin)
    store(block, 80 * TILE, d)
    store(block, 81 * TILE, d >> 8)
    store(block, 82 * TILE, dmin)
    store(block, 83 * TILE, dmin >> 8)
    d = floats_of(d)
    dmin = floats_of(dmin)
    for j in range(_COUNT):
        # Like ggml, do not clamp: a negative scale, 255 in a byte, spills over into the min.
        both = (load(scales, j * TILE, TILE) | (load(mins, j * TILE, TILE) << 4)) & 255
        store(block, j * TILE, both)
        store(fit.scale, j * TILE, d * float_of(both & 15))
        store(fit.offset, j * TILE, dmin * float_of(both >> 4))


@inline
def pack_levels(levels: Any, block: Any) -> None:
    """Write all levels."""
    for half in range(2):
        for i in range(32):
            at = (128 * half + i) * TILE
            byte = load(levels, at, TILE)
            for k in range(1, 4):
                byte = byte | (load(levels, at + 32 * k * TILE, TILE) << (2 * k))
            store(block, (16 + 32 * half + i) * TILE, byte)
