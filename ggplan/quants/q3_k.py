"""q3_K: superblocks of sixteen sub-blocks of 16 weights, weight = d * scale * level.

Bytes of a block (110)

      0   hmask   the upper bit of level + 4: bit k of byte i is that of weight 32 k + i
     32   qs      the lower two bits
     96   scales  sixteen scales + 32, of 6 bits
    108   d       half

Levels run from -4 to 3. Each half of the superblock, 128 weights, has 32 bytes of qs. Byte i of these has
weights i, 32 + i, 64 + i and 96 + i, from the lowest two bits up. Of the 12 bytes of scales, byte j of the
first eight has the lower four bits of scale j and, above, of scale 8 + j; byte j of the last four has the
upper two bits of scales j, 4 + j, 8 + j and 12 + j, from the lowest up.

Without an importance matrix the error of a weight x counts x^2, the levels are improved one at a time, and
the largest scale gets the whole 6 bits. With one it counts importance * sqrt(2 ms + x^2), the mean square of
the superblock; scales are found by trial, and their own scale d in the same way.

From llama.cpp's `ggml/src/ggml-quants.c`: quantize_row_q3_K_ref, make_q3_quants and quantize_row_q3_K_impl.
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
    SHIFT,
    SUPERBLOCK,
    TILE,
    encode_superblocks,
    first_superblock,
    load_tile,
    nearest,
    new_fit,
    requantize,
    shifted_nearest,
    store_blocks,
    sum_of_squares,
    weigh_by_importance,
)
from ggplan.quants.vector import WIDTH, any_lane, float_of, maximum, minimum, rounded, select, splat

_SIZE = 16
_COUNT = SUPERBLOCK // _SIZE
_BYTES = 110

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_LOWEST = np.float32(-4)
_HIGHEST = np.float32(3)
_LOWEST_SCALE = np.float32(-32)
_PASSES = 5


def encode(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 110 bytes for 256 weights; the arguments are those of `encode_superblocks`."""
    encode_superblocks(_encode if importance is None else _encode_with_importance, rows, importance, out)


@kernel
def _encode(source: Any, importance: Any, out: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    kept_levels = new_floats(SUPERBLOCK * TILE)
    scales = new_integers(_COUNT * TILE)
    levels = new_integers(SUPERBLOCK * TILE)
    block = new_integers(_BYTES * TILE)
    fit = new_fit()
    count = source.size // SUPERBLOCK
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        load_tile(source, first, _SIZE, tile)
        for at in range(0, _COUNT * TILE, WIDTH):
            store(fit.scale, at, _descend(tile, _SIZE * at, kept_levels))
            store(fit.kept_scale, at, splat(_ONE, WIDTH))
            store(fit.kept_offset, at, splat(_ZERO, WIDTH))
        d = _divide_by_largest(fit.scale, scales)
        pack(tile, kept_levels, d, scales, fit, levels, block)
        store_blocks(block, _BYTES, out, first)


@kernel
def _encode_with_importance(source: Any, importance: Any, out: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    columns = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(_SIZE * WIDTH)
    scratch = new_floats(_SIZE * WIDTH)
    scales = new_integers(_COUNT * TILE)
    levels = new_integers(SUPERBLOCK * TILE)
    block = new_integers(_BYTES * TILE)
    fit = new_fit()
    count = source.size // SUPERBLOCK
    per_row = importance.size // SUPERBLOCK - (TILE - 1)
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        load_tile(source, first, _SIZE, tile)
        load_tile(importance, first % per_row, _SIZE, columns)
        energy = _TWO * sum_of_squares(tile, _SIZE) / np.float32(SUPERBLOCK)
        for at in range(0, _COUNT * TILE, WIDTH):
            weigh_by_importance(tile, columns, _SIZE * at, _SIZE, energy, weight)
            scale, kept_scale, kept_offset = symmetric_search(
                tile, _SIZE * at, _SIZE, WIDTH, weight, scratch, -_LOWEST, True
            )
            sum_w = splat(_ZERO, WIDTH)
            for i in range(0, _SIZE * WIDTH, WIDTH):
                sum_w = sum_w + load(weight, i, WIDTH)
            store(fit.scale, at, scale)
            store(fit.kept_scale, at, kept_scale)
            store(fit.kept_offset, at, kept_offset)
            store(fit.weight, at, sum_w)
        d, kept_scale, kept_offset = symmetric_search(
            fit.scale, 0, _COUNT, TILE, fit.weight, scratch, -_LOWEST_SCALE, False
        )
        for j in range(_COUNT):
            level = nearest((load(fit.scale, j * TILE, TILE) + kept_offset) * kept_scale)
            level = maximum(minimum(level, 31), -32)
            store(scales, j * TILE, select(kept_offset == _ZERO, level, -32))  # scales may be nan
        pack(tile, tile, d, scales, fit, levels, block)
        store_blocks(block, _BYTES, out, first)


@inline
def _descend(tile: Any, start: Any, kept_levels: Any) -> Any:
    """Improve levels one by one while that lessens the error, at most five times each; return the scale.

    `kept_levels`, laid out like the tile, gets the levels.
    """
    extreme, magnitude = find_extreme(tile, start, _SIZE, WIDTH)
    nothing = magnitude < NOTHING

    floor = SHIFT + _LOWEST
    ceiling = SHIFT - _LOWEST - _ONE
    inverse = _LOWEST / extreme
    sum_qx = splat(_ZERO, WIDTH)
    sum_q2 = splat(_ZERO, WIDTH)
    for i in range(start, start + _SIZE * WIDTH, WIDTH):
        x = load(tile, i, WIDTH)
        w = x * x
        q = minimum(rounded(inverse * x), _HIGHEST)
        store(kept_levels, i, q)
        sum_qx = sum_qx + w * x * q
        sum_q2 = sum_q2 + w * q * q
    for _ in range(_PASSES):
        changed = False
        for i in range(start, start + _SIZE * WIDTH, WIDTH):
            x = load(tile, i, WIDTH)
            w = x * x
            wx = w * x
            q = load(kept_levels, i, WIDTH)
            other_qx = sum_qx - wx * q
            possible = other_qx > _ZERO
            if any_lane(possible):
                other_q2 = sum_q2 - w * q * q
                new_q = shifted_nearest(x * other_q2 / other_qx, floor, ceiling) - SHIFT
                new_qx = other_qx + wx * new_q
                new_q2 = other_q2 + w * new_q * new_q
                better = (
                    possible
                    & (new_q != q)
                    & (new_q2 > _ZERO)
                    & (new_qx * new_qx * sum_q2 > sum_qx * sum_qx * new_q2)
                )
                if any_lane(better):
                    changed = True
                    store(kept_levels, i, select(better, new_q, q))
                    sum_qx = select(better, new_qx, sum_qx)
                    sum_q2 = select(better, new_q2, sum_q2)
        if not changed:
            break
    if any_lane(nothing):
        for i in range(start, start + _SIZE * WIDTH, WIDTH):
            store(kept_levels, i, select(nothing, _LOWEST, load(kept_levels, i, WIDTH)))
    return select(nothing | ~(sum_q2 > _ZERO), _ZERO, sum_qx / sum_q2)


@inline
def _divide_by_largest(values: Any, levels: Any) -> Any:
    """Give the scale of largest magnitude the level -32, the others their share; return the levels' scale."""
    extreme, _ = find_extreme(values, 0, _COUNT, TILE)
    inverse = _LOWEST_SCALE / extreme
    nothing = extreme == _ZERO
    for j in range(_COUNT):
        level = (nearest(inverse * load(values, j * TILE, TILE)) << 24) >> 24  # ggml has it in an int8
        level = maximum(minimum(level, 31), -32)
        store(levels, j * TILE, select(nothing, -32, level))
    return select(nothing, _ZERO, _ONE / inverse)


@inline
def pack(tile: Any, kept_tile: Any, d: Any, scales: Any, fit: Any, levels: Any, block: Any) -> None:
    """Write the block of scales from -32 to 31, their scale `d`, and the levels that follow from them."""
    d = halves_of(d)
    store(block, 108 * TILE, d)
    store(block, 109 * TILE, d >> 8)
    d = floats_of(d)
    for j in range(_COUNT):
        scale = load(scales, j * TILE, TILE)
        store(scales, j * TILE, scale + 32)
        store(fit.scale, j * TILE, d * float_of(scale))
        store(fit.offset, j * TILE, splat(_ZERO, TILE))
        requantize(tile, kept_tile, fit, j, _SIZE, -4, 3, levels)
    for j in range(8):
        low = load(scales, j * TILE, TILE) & 15
        high = load(scales, (8 + j) * TILE, TILE) & 15
        store(block, (96 + j) * TILE, low | (high << 4))
    for j in range(4):
        byte = splat(0, TILE)
        for k in range(4):
            byte = byte | ((load(scales, (4 * k + j) * TILE, TILE) >> 4) << (2 * k))
        store(block, (104 + j) * TILE, byte)
    for i in range(32):
        upper = splat(0, TILE)
        for half in range(2):
            lower = splat(0, TILE)
            for k in range(4):
                level = load(levels, (128 * half + 32 * k + i) * TILE, TILE)
                upper = upper | ((level >> 2) << (4 * half + k))
                lower = lower | ((level & 3) << (2 * k))
            store(block, (32 + 32 * half + i) * TILE, lower)
        store(block, i * TILE, upper)
