"""Encoder of iq1_s: superblocks of eight sub-blocks of 32 weights, each four groups of eight (see `iq1`).

Bytes of a block (50)

      0   d    half
      2   qs   the lower eight bits of the 32 groups' indices
     34   qh   sixteen bits for each sub-block: four times three bits of an index, from the lowest up,
               then three bits of a scale s, and a bit that is set where the shift is -1/8

    weight = d (2 s + 1) (level + shift)

The error of a weight x counts qw sqrt(2 ms + x^2), ms the mean square of all 256 weights. There is no encoder
without an imatrix: ggml's aborts.

For each sub-block the best of all 561 splits and both shifts is found, then the groups' points, then the best
scale. d makes the largest scale of a superblock 15 d, and is stored 1.125 times as large ("another fudge
factor", says ggml).

From llama.cpp b11434, `ggml/src/ggml-quants.c`: quantize_row_iq1_s_impl.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.half import halves_of
from ggplan.quants.iq1 import (
    GROUP,
    LARGEST,
    SHIFT,
    largest_magnitude,
    level_of,
    measure_levels,
    number_of,
    rank,
    tables,
    take_points,
    write_keys,
)
from ggplan.quants.memory import load, new_floats, new_integers, store
from ggplan.quants.superblock import (
    SUPERBLOCK,
    TILE,
    encode_superblocks,
    first_superblock,
    load_tile,
    nearest,
    store_blocks,
    sum_of_squares,
    weigh_by_importance,
)
from ggplan.quants.vector import WIDTH, any_lane, maximum, minimum, select, splat

_SIZE = 32
_COUNT = SUPERBLOCK // _SIZE
_GROUPS = _SIZE // GROUP
_BYTES = 50
# A sub-block whose largest weight is below this is taken for zero (GROUP_MAX_EPS_IQ1_S).
_NOTHING = np.float32(1e-12)
_TERMS = 6

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)


def encode(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 50 bytes for 256 weights; the arguments are those of `encode_superblocks`, with importance."""
    assert importance is not None
    encode_superblocks(_encode, rows, importance, out, *tables())


@kernel
def _encode(source: Any, importance: Any, out: Any, index_of: Any, lists: Any, first_key: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    columns = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(_SIZE * WIDTH)
    ranks = new_integers(_SIZE * WIDTH)
    ordered = new_floats(2 * _SIZE * WIDTH)
    terms = new_floats(_TERMS * (_SIZE + 1) * WIDTH)
    errors = new_floats(3 * _SIZE * WIDTH)
    keys = new_integers(_GROUPS * WIDTH)
    moved = new_integers(WIDTH)
    indices = new_integers(_COUNT * _GROUPS * TILE)
    scales = new_floats(_COUNT * TILE)
    down = new_integers(_COUNT * TILE)
    block = new_integers(_BYTES * TILE)
    count = source.size // SUPERBLOCK
    per_row = importance.size // SUPERBLOCK - (TILE - 1)
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        load_tile(source, first, _SIZE, tile)
        load_tile(importance, first % per_row, _SIZE, columns)
        energy = sum_of_squares(tile, _SIZE) * np.float32(2) * np.float32(1 / SUPERBLOCK)
        for at in range(0, _COUNT * TILE, WIDTH):
            start = _SIZE * at
            weigh_by_importance(tile, columns, start, _SIZE, energy, weight)
            rank(tile, start, _SIZE, ranks)
            _add_up(tile, start, weight, ranks, ordered, terms)
            scale, number = _best_split(terms)
            found = (number >= 0) & (largest_magnitude(tile, start, _SIZE) >= _NOTHING) & (scale == scale)
            negative = scale < _ZERO
            scale = select(negative, -scale, scale)
            write_keys(ranks, _SIZE, number, found, negative, first_key, keys)
            downwards = ((number & 1) != 0) ^ negative
            shift = select(downwards, -SHIFT, splat(SHIFT, WIDTH))
            for group in range(_GROUPS):
                measure_levels(tile, start, group, weight, 0, scale, shift, errors)
            sub_block_indices = indices[_GROUPS * at : _GROUPS * (at + WIDTH)]
            take_points(keys, _GROUPS, errors, index_of, lists, sub_block_indices, moved)
            scale = _refit(tile, start, weight, keys, shift, load(moved, 0, WIDTH) != 0, scale)
            store(scales, at, select(found, scale, _ZERO))
            store(down, at, select(downwards & found, splat(8, WIDTH), 0))
        _pack(scales, down, indices, block)
        store_blocks(block, _BYTES, out, first)


@inline
def _add_up(tile: Any, start: Any, weight: Any, ranks: Any, ordered: Any, terms: Any) -> None:
    """Put what the splits need of the first j weights in order at `terms[WIDTH * (6 * j) + r]`.

    These are the sums of weight * value and of weight, and what all others add to sum_xq and to sum_q2 at the
    highest level: each with the shift up and with the shift down.
    """
    for i in range(0, _SIZE * WIDTH, WIDTH):
        for r in range(i, i + WIDTH):
            to = WIDTH * ranks[r] + r - i
            w = weight[r]
            ordered[to] = w * tile[start + r]
            ordered[_SIZE * WIDTH + to] = w
    sum_x = splat(_ZERO, WIDTH)
    sum_w = splat(_ZERO, WIDTH)
    store(terms, 0, sum_x)
    store(terms, WIDTH, sum_w)
    for j in range(_SIZE):
        sum_x = sum_x + load(ordered, WIDTH * j, WIDTH)
        sum_w = sum_w + load(ordered, WIDTH * (_SIZE + j), WIDTH)
        store(terms, WIDTH * _TERMS * (j + 1), sum_x)
        store(terms, WIDTH * (_TERMS * (j + 1) + 1), sum_w)
    up = _ONE + SHIFT
    down = _ONE - SHIFT
    for j in range(_SIZE + 1):
        at = WIDTH * _TERMS * j
        above_x = sum_x - load(terms, at, WIDTH)
        above_w = sum_w - load(terms, at + WIDTH, WIDTH)
        store(terms, at + WIDTH * 2, above_x * up)
        store(terms, at + WIDTH * 3, above_x * down)
        store(terms, at + WIDTH * 4, above_w * up * up)
        store(terms, at + WIDTH * 5, above_w * down * down)


@inline
def _best_split(terms: Any) -> Any:
    """Try all splits with both shifts.

    Returns
    -------
    tuple
        The best scale, and the number of its split and shift, 1 where that is down; -1 where there is none.
    """
    best = splat(-LARGEST, WIDTH)
    scale = splat(_ZERO, WIDTH)
    number = splat(-1, WIDTH)
    up = SHIFT - _ONE
    down = -SHIFT - _ONE
    for i1 in range(_SIZE + 1):
        at = WIDTH * _TERMS * i1
        below_x = load(terms, at, WIDTH)
        below_w = load(terms, at + WIDTH, WIDTH)
        x_up = below_x * up
        x_down = below_x * down
        w_up = below_w * up * up
        w_down = below_w * down * down
        for i2 in range(i1, _SIZE + 1):
            at = WIDTH * _TERMS * i2
            x = (load(terms, at, WIDTH) - below_x) * SHIFT
            w = (load(terms, at + WIDTH, WIDTH) - below_w) * SHIFT * SHIFT
            xq = x_up + x + load(terms, at + WIDTH * 2, WIDTH)
            q2 = w_up + w + load(terms, at + WIDTH * 4, WIDTH)
            xq_down = x_down - x + load(terms, at + WIDTH * 3, WIDTH)
            q2_down = w_down + w + load(terms, at + WIDTH * 5, WIDTH)
            better = (q2 > _ZERO) & (xq * xq > best * q2)
            square_down = xq_down * xq_down
            positive_down = q2_down > _ZERO
            if any_lane(better | (positive_down & (square_down > best * q2_down))):
                this_scale = xq / q2
                scale = select(better, this_scale, scale)
                best = select(better, this_scale * xq, best)
                better_down = positive_down & (square_down > best * q2_down)
                this_scale = xq_down / q2_down
                scale = select(better_down, this_scale, scale)
                best = select(better_down, this_scale * xq_down, best)
                number = select(better, number_of(i1, i2, 0), number)
                number = select(better_down, number_of(i1, i2, 0) + 1, number)
    return scale, number


@inline
def _refit(tile: Any, start: Any, weight: Any, keys: Any, shift: Any, moved: Any, scale: Any) -> Any:
    """The best scale for the points, where they are not the levels that `scale` was found with."""
    if not any_lane(moved):
        return scale
    sum_xq = splat(_ZERO, WIDTH)
    sum_q2 = splat(_ZERO, WIDTH)
    for group in range(_GROUPS):
        key = load(keys, WIDTH * group, WIDTH)
        for i in range(GROUP):
            q = level_of(key, i) + shift
            at = WIDTH * (GROUP * group + i)
            wq = load(weight, at, WIDTH) * q
            sum_xq = sum_xq + wq * load(tile, start + at, WIDTH)
            sum_q2 = sum_q2 + wq * q
    return select(moved & (sum_xq > _ZERO) & (sum_q2 > _ZERO), sum_xq / sum_q2, scale)


@inline
def _pack(scales: Any, down: Any, indices: Any, block: Any) -> None:
    """Round the scales, and write all to `block`."""
    largest = splat(_ZERO, TILE)
    for j in range(_COUNT):
        largest = maximum(largest, load(scales, TILE * j, TILE))
    something = largest != _ZERO
    d = largest / np.float32(15)
    half = select(something, halves_of(d * np.float32(1.125)), 0)
    store(block, 0 * TILE, half)
    store(block, 1 * TILE, half >> 8)
    inverse = _ONE / d
    for j in range(_COUNT):
        level = nearest((inverse * load(scales, TILE * j, TILE) - _ONE) * _HALF)
        level = maximum(minimum(level, 7), 0) | load(down, TILE * j, TILE)
        high = select(something, level << 12, 0)
        for k in range(_GROUPS):
            index = load(indices, TILE * (_GROUPS * j + k), TILE)
            store(block, TILE * (2 + _GROUPS * j + k), index)
            high = high | ((index >> 8) << (3 * k))
        store(block, TILE * (34 + 2 * j), high)
        store(block, TILE * (35 + 2 * j), high >> 8)
