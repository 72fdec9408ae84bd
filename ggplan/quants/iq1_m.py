"""Encoder of iq1_m: superblocks of sixteen sub-blocks of 16 weights, each two groups of eight (see `iq1`).

Bytes of a block (56)

      0   qs      the lower eight bits of the 32 groups' indices
     32   qh      half a byte for each group, the even one's the lower: three bits of an index, and a bit that
                  is set where the shift is -1/8
     48   scales  four words of 16 bits: four scales s of three bits, and four bits of d, the lowest first

    weight = d (2 s + 1) (level + shift)

The error of a weight x counts x^2, or with an importance matrix qw sqrt(2 ms + x^2), ms the mean square of
all 256 weights.

For each sub-block the best of all 153 splits and four pairs of shifts is found, then the groups' points, then
the best scale. Scales are rounded so that the largest is 15 d, and d is fitted anew to all 256 weights. It is
stored 1.1125 times as large ("another fudge factor", says ggml).

From llama.cpp b11434, `ggml/src/ggml-quants.c`: quantize_row_iq1_m_impl, as it is since ggml 0.25 at the
latest. ggml 0.20 adds up the sums of a split level by level, in four times the time. Its roundings differ,
and so do bytes where several splits are equally good but for rounding: in few blocks of most weights, in many
where weights take few values, where products underflow, or where columns have no importance.
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
    position,
    store_blocks,
    sum_of_squares,
    weigh_by_importance,
)
from ggplan.quants.vector import WIDTH, any_lane, float_of, maximum, minimum, select, splat

_SIZE = 16
_COUNT = SUPERBLOCK // _SIZE
_BYTES = 56
# A sub-block whose largest weight is below this is taken for zero (GROUP_MAX_EPS_IQ1_M).
_NOTHING = np.float32(1e-7)

# What a split needs of each half of a sub-block: two sums, and two products of the second.
_TERMS = 8
_UP = SHIFT + np.float32(1)
_DOWN = np.float32(1) - SHIFT
# Squares of level 0 less those of level 1, and of level 1 less those of level 2.
_UP_LOW = np.float32(_DOWN * _DOWN - SHIFT * SHIFT)
_UP_HIGH = np.float32(SHIFT * SHIFT - _UP * _UP)
_DOWN_LOW = np.float32(_UP * _UP - SHIFT * SHIFT)
_DOWN_HIGH = np.float32(SHIFT * SHIFT - _DOWN * _DOWN)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)


def encode(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 56 bytes for 256 weights; the arguments are those of `encode_superblocks`."""
    encode_superblocks(_encode, rows, importance, out, *tables())


@kernel
def _encode(source: Any, importance: Any, out: Any, index_of: Any, lists: Any, first_key: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(SUPERBLOCK * TILE)
    ranks = new_integers(_SIZE * WIDTH)
    ordered = new_floats(4 * _SIZE * WIDTH)
    terms = new_floats(_TERMS * (_SIZE + 1) * WIDTH)
    errors = new_floats(3 * _SIZE * WIDTH)
    all_keys = new_integers(2 * _COUNT * TILE)
    moved = new_integers(WIDTH)
    indices = new_integers(2 * _COUNT * TILE)
    scales = new_floats(_COUNT * TILE)
    shifts = new_floats(2 * _COUNT * TILE)
    block = new_integers(_BYTES * TILE)
    count = source.size // SUPERBLOCK
    per_row = importance.size // SUPERBLOCK - (TILE - 1)
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        load_tile(source, first, _SIZE, tile)
        if importance.size > 0:
            load_tile(importance, first % per_row, _SIZE, weight)
            energy = sum_of_squares(tile, _SIZE) * np.float32(2) * np.float32(1 / SUPERBLOCK)
            for at in range(0, _COUNT * TILE, WIDTH):
                start = _SIZE * at
                weigh_by_importance(tile, weight, start, _SIZE, energy, weight[start : start + _SIZE * WIDTH])
        else:
            for at in range(0, SUPERBLOCK * TILE, WIDTH):
                x = load(tile, at, WIDTH)
                store(weight, at, x * x)
        for at in range(0, _COUNT * TILE, WIDTH):
            start = _SIZE * at
            keys = all_keys[2 * at : 2 * (at + WIDTH)]
            rank(tile, start, _SIZE, ranks)
            _add_up(tile, weight, start, ranks, ordered, terms)
            scale, number = _best_split(terms)
            found = (number >= 0) & (largest_magnitude(tile, start, _SIZE) >= _NOTHING) & (scale == scale)
            negative = scale < _ZERO
            scale = select(negative, -scale, scale)
            write_keys(ranks, _SIZE, number, found, negative, first_key, keys)
            down = select(found, select(negative, ~number, number), 0)
            for group in range(2):
                shift = select(down & (2 - group) != 0, -SHIFT, splat(SHIFT, WIDTH))
                store(shifts, 2 * at + WIDTH * group, shift)
                measure_levels(tile, start, group, weight, start, scale, shift, errors)
            take_points(keys, 2, errors, index_of, lists, indices[2 * at : 2 * (at + WIDTH)], moved)
            scale = _refit(tile, weight, start, keys, shifts, 2 * at, load(moved, 0, WIDTH) != 0, scale)
            store(scales, at, select(found, scale, _ZERO))
        _pack(tile, weight, scales, shifts, all_keys, indices, block)
        store_blocks(block, _BYTES, out, first)


@inline
def _add_up(tile: Any, weight: Any, start: Any, ranks: Any, ordered: Any, terms: Any) -> None:
    """Put what the splits need of the first j weights in order at `terms[WIDTH * (8 * j) + r]`.

    These are the sums of weight * value and of weight, and what the second adds to sum_q2 as the upper end of
    a split, with the shift up and with the shift down; each for the first half and for the second.
    """
    for i in range(_SIZE):
        half = i // GROUP
        for r in range(WIDTH):
            at = WIDTH * i + r
            to = WIDTH * (4 * ranks[at] + 2 * half) + r
            w = weight[start + at]
            ordered[to] = w * tile[start + at]
            ordered[to + WIDTH] = w
            to = WIDTH * (4 * ranks[at] + 2 - 2 * half) + r
            ordered[to] = _ZERO
            ordered[to + WIDTH] = _ZERO
    for half in range(2):
        sum_x = splat(_ZERO, WIDTH)
        sum_w = splat(_ZERO, WIDTH)
        for j in range(_SIZE + 1):
            at = WIDTH * (_TERMS * j + half)
            store(terms, at, sum_x)
            store(terms, at + WIDTH * 2, sum_w)
            store(terms, at + WIDTH * 4, sum_w * _UP_HIGH)
            store(terms, at + WIDTH * 6, sum_w * _DOWN_HIGH)
            if j < _SIZE:
                sum_x = sum_x + load(ordered, WIDTH * (4 * j + 2 * half), WIDTH)
                sum_w = sum_w + load(ordered, WIDTH * (4 * j + 2 * half + 1), WIDTH)


@inline
def _best_split(terms: Any) -> Any:
    """Try all splits with the four pairs of shifts.

    Returns
    -------
    tuple
        The best scale, and the number of its split and shifts (2 where the first half's is down, 1 where the
        second's is); -1 where there is none.
    """
    best = splat(-LARGEST, WIDTH)
    scale = splat(_ZERO, WIDTH)
    number = splat(-1, WIDTH)
    end = WIDTH * _TERMS * _SIZE
    x_0 = load(terms, end, WIDTH)
    x_1 = load(terms, end + WIDTH, WIDTH)
    w_0 = load(terms, end + WIDTH * 2, WIDTH)
    w_1 = load(terms, end + WIDTH * 3, WIDTH)
    up_x_0 = x_0 * _UP
    up_x_1 = x_1 * _UP
    down_x_0 = x_0 * _DOWN
    down_x_1 = x_1 * _DOWN
    up_w_0 = w_0 * _UP * _UP
    up_w_1 = w_1 * _UP * _UP
    down_w_0 = w_0 * _DOWN * _DOWN
    down_w_1 = w_1 * _DOWN * _DOWN
    for i1 in range(_SIZE + 1):
        at = WIDTH * _TERMS * i1
        below_0 = load(terms, at, WIDTH)
        below_1 = load(terms, at + WIDTH, WIDTH)
        w_0 = load(terms, at + WIDTH * 2, WIDTH)
        w_1 = load(terms, at + WIDTH * 3, WIDTH)
        up_low_0 = up_w_0 + w_0 * _UP_LOW
        up_low_1 = up_w_1 + w_1 * _UP_LOW
        down_low_0 = down_w_0 + w_0 * _DOWN_LOW
        down_low_1 = down_w_1 + w_1 * _DOWN_LOW
        for i2 in range(i1, _SIZE + 1):
            at = WIDTH * _TERMS * i2
            x_0 = below_0 + load(terms, at, WIDTH)
            x_1 = below_1 + load(terms, at + WIDTH, WIDTH)
            up_xq_0 = up_x_0 - x_0
            up_xq_1 = up_x_1 - x_1
            down_xq_0 = down_x_0 - x_0
            down_xq_1 = down_x_1 - x_1
            up_q2_0 = up_low_0 + load(terms, at + WIDTH * 4, WIDTH)
            up_q2_1 = up_low_1 + load(terms, at + WIDTH * 5, WIDTH)
            down_q2_0 = down_low_0 + load(terms, at + WIDTH * 6, WIDTH)
            down_q2_1 = down_low_1 + load(terms, at + WIDTH * 7, WIDTH)
            better = (
                _better(up_xq_0 + up_xq_1, up_q2_0 + up_q2_1, best)
                | _better(up_xq_0 + down_xq_1, up_q2_0 + down_q2_1, best)
                | _better(down_xq_0 + up_xq_1, down_q2_0 + up_q2_1, best)
                | _better(down_xq_0 + down_xq_1, down_q2_0 + down_q2_1, best)
            )
            if any_lane(better):
                state = scale, best, number
                this = number_of(i1, i2, 0)
                state = _improve(state, up_xq_0 + up_xq_1, up_q2_0 + up_q2_1, this)
                state = _improve(state, up_xq_0 + down_xq_1, up_q2_0 + down_q2_1, this + 1)
                state = _improve(state, down_xq_0 + up_xq_1, down_q2_0 + up_q2_1, this + 2)
                state = _improve(state, down_xq_0 + down_xq_1, down_q2_0 + down_q2_1, this + 3)
                scale, best, number = state
    return scale, number


@inline
def _better(sum_xq: Any, sum_q2: Any, best: Any) -> Any:
    return (sum_q2 > _ZERO) & (sum_xq * sum_xq > best * sum_q2)


@inline
def _improve(state: Any, sum_xq: Any, sum_q2: Any, this_number: Any) -> Any:
    scale, best, number = state
    better = _better(sum_xq, sum_q2, best)
    this_scale = sum_xq / sum_q2
    return (
        select(better, this_scale, scale),
        select(better, this_scale * sum_xq, best),
        select(better, this_number, number),
    )


@inline
def _refit(
    tile: Any, weight: Any, start: Any, keys: Any, shifts: Any, shifts_start: Any, moved: Any, scale: Any
) -> Any:
    """The best scale for the points, where they are not the levels that `scale` was found with."""
    if not any_lane(moved):
        return scale
    sum_xq = splat(_ZERO, WIDTH)
    sum_q2 = splat(_ZERO, WIDTH)
    for group in range(2):
        key = load(keys, WIDTH * group, WIDTH)
        shift = load(shifts, shifts_start + WIDTH * group, WIDTH)
        for i in range(GROUP):
            q = level_of(key, i) + shift
            at = start + WIDTH * (GROUP * group + i)
            wq = load(weight, at, WIDTH) * q
            sum_xq = sum_xq + wq * load(tile, at, WIDTH)
            sum_q2 = sum_q2 + wq * q
    return select(moved & (sum_xq > _ZERO) & (sum_q2 > _ZERO), sum_xq / sum_q2, scale)


@inline
def _pack(tile: Any, weight: Any, scales: Any, shifts: Any, keys: Any, indices: Any, block: Any) -> None:
    """Round the scales, fit d anew, and write all to `block`."""
    largest = splat(_ZERO, TILE)
    for j in range(_COUNT):
        largest = maximum(largest, load(scales, TILE * j, TILE))
    something = largest != _ZERO
    d = largest / np.float32(15)
    inverse = _ONE / d
    sum_xq = splat(_ZERO, TILE)
    sum_q2 = splat(_ZERO, TILE)
    for word in range(_COUNT // 4):
        bits = splat(0, TILE)
        for j in range(4 * word, 4 * word + 4):
            s = nearest((inverse * load(scales, TILE * j, TILE) - _ONE) * _HALF)
            s = maximum(minimum(s, 7), 0)
            bits = bits | (s << (3 * (j - 4 * word)))
            factor = float_of(2 * s + 1)
            high = splat(0, TILE)
            for group in range(2):
                index = load(indices, TILE * (2 * j + group), TILE)
                store(block, TILE * (2 * j + group), index)
                at = position(j, group, 2)
                shift = load(shifts, at, TILE)
                key = load(keys, at, TILE)
                down = select(something & (shift < _ZERO), splat(8, TILE), 0)
                high = high | (((index >> 8) | down) << (4 * group))
                for i in range(GROUP):
                    q = (level_of(key, i) + shift) * factor
                    at = position(j, GROUP * group + i, _SIZE)
                    wq = load(weight, at, TILE) * q
                    sum_xq = sum_xq + wq * load(tile, at, TILE)
                    sum_q2 = sum_q2 + wq * q
            store(block, TILE * (32 + j), high)
        store(block, TILE * (48 + 2 * word), bits)
        store(block, TILE * (49 + 2 * word), bits >> 8)
    d = select(sum_q2 > _ZERO, sum_xq / sum_q2, d)
    half = halves_of(d * np.float32(1.1125))
    for word in range(_COUNT // 4):
        low = load(block, TILE * (48 + 2 * word), TILE)
        high = load(block, TILE * (49 + 2 * word), TILE) | (((half >> (4 * word)) & 15) << 4)
        store(block, TILE * (48 + 2 * word), select(something, low, 0))
        store(block, TILE * (49 + 2 * word), select(something, high, 0))
