"""The best splits of a sub-block's weights into the three levels of iq1_s and iq1_m, and their shifts.

With the best scale for given levels the error is the less the larger sum_xq^2 / sum_q2 is: the sums of
importance * weight * (level + shift) and of importance * (level + shift)^2. ggml tries all levels that can
be best: with the weights in order, the first i1 get level -1, those from i2 on level 1, and running sums give
both sums of such a split. iq1_s has 561 splits of 32 weights and one shift; iq1_m 153 of 16 weights, whose
halves have a shift each.

Order
-----
Running sums are rounded, so bytes depend on the order of equal weights, of which bf16 has many: the opposite
order changes 2 to 5 in 100 blocks of a bf16 model. ggml sorts by C's `qsort`, which leaves that order open.
Here equal weights keep their order (zeros are equal whatever their signs), as they do in all releases of the
GNU C library, whose `qsort` merges arrays of this size. Other C libraries may give other bytes.

iq1_m is that of ggml 0.25 and later. ggml 0.20 adds up the sums of a split level by level, in four times the
time. Its roundings differ, and so do bytes where several splits are equally good but for rounding: in few
blocks of most weights, in many where weights take few values, where products underflow, or where columns have
no importance.

From llama.cpp b11434, `ggml/src/ggml-quants.c`: quantize_row_iq1_s_impl, quantize_row_iq1_m_impl.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.kernels import inline
from ggplan.quants.memory import load, store
from ggplan.quants.vector import WIDTH, any_lane, select, splat

SHIFT = np.float32(0.125)

_ZERO = np.float32(0)
_LARGEST = np.finfo(np.float32).max  # what ggml begins its comparisons with
_UP = SHIFT + np.float32(1)
_DOWN = np.float32(1) - SHIFT
# Squares of level 0 less those of level 1, and of level 1 less those of level 2.
_UP_LOW = np.float32(_DOWN * _DOWN - SHIFT * SHIFT)
_UP_HIGH = np.float32(SHIFT * SHIFT - _UP * _UP)
_DOWN_LOW = np.float32(_UP * _UP - SHIFT * SHIFT)
_DOWN_HIGH = np.float32(SHIFT * SHIFT - _DOWN * _DOWN)

# What a split needs of the weights below a place in order: in iq1_m two sums of each half of the sub-block,
# and two products of the second; in iq1_s the two sums, and what all others add, with either shift.
TERMS = 8
_TERMS_S = 6


@inline
def rank(values: Any, size: Any, ranks: Any) -> None:
    """Find how many of a lane's values come before each: smaller ones, and equal ones further left."""
    for i in range(size):
        x = load(values, WIDTH * i, WIDTH)
        before = splat(0, WIDTH)
        for j in range(i):
            before = select(load(values, WIDTH * j, WIDTH) <= x, before + 1, before)
        for j in range(i + 1, size):
            before = select(load(values, WIDTH * j, WIDTH) < x, before + 1, before)
        store(ranks, WIDTH * i, before)


@inline
def number_of(i1: Any, i2: Any, shifts: Any) -> Any:
    """One number for a split and up to three bits of shifts."""
    return 1024 * i1 + 8 * i2 + shifts


@inline
def add_up_s(values: Any, weight: Any, ranks: Any, ordered: Any, terms: Any) -> None:
    """Put what the splits need of the first j weights in order at `terms[WIDTH * (6 * j) + r]`.

    These are the sums of weight * value and of weight, and what all others add to sum_xq and to sum_q2 at the
    highest level: each with the shift up and with the shift down.
    """
    for i in range(0, 32 * WIDTH, WIDTH):
        for r in range(i, i + WIDTH):
            to = WIDTH * ranks[r] + r - i
            w = weight[r]
            ordered[to] = w * values[r]
            ordered[32 * WIDTH + to] = w
    sum_x = splat(_ZERO, WIDTH)
    sum_w = splat(_ZERO, WIDTH)
    store(terms, 0, sum_x)
    store(terms, WIDTH, sum_w)
    for j in range(32):
        sum_x = sum_x + load(ordered, WIDTH * j, WIDTH)
        sum_w = sum_w + load(ordered, WIDTH * (32 + j), WIDTH)
        store(terms, WIDTH * _TERMS_S * (j + 1), sum_x)
        store(terms, WIDTH * (_TERMS_S * (j + 1) + 1), sum_w)
    for j in range(32 + 1):
        at = WIDTH * _TERMS_S * j
        above_x = sum_x - load(terms, at, WIDTH)
        above_w = sum_w - load(terms, at + WIDTH, WIDTH)
        store(terms, at + WIDTH * 2, above_x * _UP)
        store(terms, at + WIDTH * 3, above_x * _DOWN)
        store(terms, at + WIDTH * 4, above_w * _UP * _UP)
        store(terms, at + WIDTH * 5, above_w * _DOWN * _DOWN)


@inline
def best_split_s(terms: Any) -> Any:
    """Try all splits with both shifts.

    Returns
    -------
    tuple
        The best scale, and the number of its split and shift, 1 where that is down; -1 where there is none.
    """
    best = splat(-_LARGEST, WIDTH)
    scale = splat(_ZERO, WIDTH)
    number = splat(-1, WIDTH)
    for i1 in range(32 + 1):
        at = WIDTH * _TERMS_S * i1
        below_x = load(terms, at, WIDTH)
        below_w = load(terms, at + WIDTH, WIDTH)
        x_up = below_x * -_DOWN
        x_down = below_x * -_UP
        w_up = below_w * _DOWN * _DOWN
        w_down = below_w * _UP * _UP
        for i2 in range(i1, 32 + 1):
            at = WIDTH * _TERMS_S * i2
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
def add_up_m(values: Any, weight: Any, ranks: Any, ordered: Any, terms: Any) -> None:
    """Put what the splits need of the first j weights in order at `terms[WIDTH * (8 * j) + r]`.

    These are the sums of weight * value and of weight, and what the second adds to sum_q2 as the upper end of
    a split, with the shift up and with the shift down; each for the first half and for the second.
    """
    for i in range(16):
        half = i // 8
        for r in range(WIDTH):
            at = WIDTH * i + r
            to = WIDTH * (4 * ranks[at] + 2 * half) + r
            w = weight[at]
            ordered[to] = w * values[at]
            ordered[to + WIDTH] = w
            to = WIDTH * (4 * ranks[at] + 2 - 2 * half) + r
            ordered[to] = _ZERO
            ordered[to + WIDTH] = _ZERO
    for half in range(2):
        sum_x = splat(_ZERO, WIDTH)
        sum_w = splat(_ZERO, WIDTH)
        for j in range(16 + 1):
            at = WIDTH * (TERMS * j + half)
            store(terms, at, sum_x)
            store(terms, at + WIDTH * 2, sum_w)
            store(terms, at + WIDTH * 4, sum_w * _UP_HIGH)
            store(terms, at + WIDTH * 6, sum_w * _DOWN_HIGH)
            if j < 16:
                sum_x = sum_x + load(ordered, WIDTH * (4 * j + 2 * half), WIDTH)
                sum_w = sum_w + load(ordered, WIDTH * (4 * j + 2 * half + 1), WIDTH)


@inline
def best_split_m(terms: Any) -> Any:
    """Try all splits with the four pairs of shifts.

    Returns
    -------
    tuple
        The best scale, and the number of its split and shifts (2 where the first half's is down, 1 where the
        second's is); -1 where there is none.
    """
    best = splat(-_LARGEST, WIDTH)
    scale = splat(_ZERO, WIDTH)
    number = splat(-1, WIDTH)
    end = WIDTH * TERMS * 16
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
    for i1 in range(16 + 1):
        at = WIDTH * TERMS * i1
        below_0 = load(terms, at, WIDTH)
        below_1 = load(terms, at + WIDTH, WIDTH)
        w_0 = load(terms, at + WIDTH * 2, WIDTH)
        w_1 = load(terms, at + WIDTH * 3, WIDTH)
        up_low_0 = up_w_0 + w_0 * _UP_LOW
        up_low_1 = up_w_1 + w_1 * _UP_LOW
        down_low_0 = down_w_0 + w_0 * _DOWN_LOW
        down_low_1 = down_w_1 + w_1 * _DOWN_LOW
        for i2 in range(i1, 16 + 1):
            at = WIDTH * TERMS * i2
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
