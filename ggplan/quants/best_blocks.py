"""Blocks of one scale with less error than ggml's: weight = d * level.

    type             weights    levels
    q4_0, q5_0       32         -8 to 7, -16 to 15
    q8_0             32         -127 to 127
    iq4_nl           32         iq4_nl's sixteen
    tq1_0, tq2_0     256        -1, 0, 1
    q2_0             64         -1, 0, 1, 2
    q1_0             128        -1, 1

Blocks are those of `blocks32`, `iq4_nl`, `ternary` and `bits`. As soon as d is known, every weight takes the
nearest level, so d is all there is to search. Trial k puts the weight of the largest magnitude at level
first + step k, or at its negative where levels are not the same on both sides. For the levels that this
gives, the best d follows by least squares (see `best_symmetric`), and so does the error that it leaves. The
best d of all, rounded to a half, is taken where its error, as a decoder works it out, is less than ggml's.

ggml's ternary encoders and q2_0 make the largest weight a level. That is right for weights that are trained
to three values; of others, most would become zero. Here d falls to where the error is least, and q2_0 has a
use for its fourth level. q1_0's d, the mean of |x|, is the best there is without an importance matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import bits, blocks32, iq4_nl, ternary
from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.best import (
    EVEN,
    IQ4,
    SIGNS,
    as_half,
    gather_block_weights,
    gather_blocks,
    half_at,
    nearest_level,
    to_beat,
)
from ggplan.quants.codecs import Rows
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.layout32 import flat, store_quants
from ggplan.quants.memory import load, load_weights, new_floats, new_integers, store, store_bytes
from ggplan.quants.search import find_extreme
from ggplan.quants.vector import WIDTH, integer_of, lane, lane_bits, maximum, minimum, rounded, select, splat

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO = np.float32(0)
_ONE = np.float32(1)


def encode_q4_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 18)."""
    blocks32.encode_q4_0(rows, importance, out)
    trials = (7.5, 0.8, 2) if importance is None else (6.6, 0.1, 30)
    _refine(_refine_even, rows, importance, out, 32, -8, 7, *trials)


def encode_q5_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 22)."""
    blocks32.encode_q5_0(rows, importance, out)
    trials = (15.0, 0.7, 3) if importance is None else (13.7, 0.1, 30)
    _refine(_refine_even, rows, importance, out, 32, -16, 15, *trials)


def encode_q8_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 34)."""
    blocks32.encode_q8_0(rows, importance, out)
    _refine(_refine_even, rows, importance, out, 32, -127, 127, 124.0, 2.0, 2)


def encode_iq4_nl(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 18)."""
    iq4_nl.encode(rows, importance, out)
    _refine(_refine_iq4, rows, importance, out, 32, -127, 113, 100.0, 2.5, 18)


def encode_tq1_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 256 * 54)."""
    ternary.encode_tq1_0(rows, importance, out)
    _refine(_refine_even, rows, importance, out, 256, -1, 1, 1.7, 0.9, 2)


def encode_tq2_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 256 * 66)."""
    ternary.encode_tq2_0(rows, importance, out)
    _refine(_refine_even, rows, importance, out, 256, -1, 1, 1.7, 0.9, 2)


def encode_q2_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 64 * 18)."""
    bits.encode_q2_0(rows, importance, out)
    _refine(_refine_even, rows, importance, out, 64, -1, 2, 1.4, 0.5, 3)


def encode_q1_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 128 * 18)."""
    bits.encode_q1_0(rows, importance, out)
    if importance is not None:
        _refine(_refine_signs, rows, importance, out, 128, -1, 1, 1.0, 1.0, 1)


def _refine(
    refine: Any,
    rows: Rows,
    importance: F32Array | None,
    out: Bytes,
    size: int,
    lowest: int,
    highest: int,
    first: float,
    step: float,
    trials: int,
) -> None:
    columns = np.empty(0, np.float32) if importance is None else importance
    levels = np.array((lowest, highest, first, step), np.float32)
    refine(flat(rows), flat(columns), out.reshape(-1), size, levels, trials)


@kernel
def _refine_even(weights: Any, importance: Any, out: Any, size: Any, levels: Any, trials: Any) -> None:
    _refine_blocks(EVEN, weights, importance, out, size, levels, trials)


@kernel
def _refine_iq4(weights: Any, importance: Any, out: Any, size: Any, levels: Any, trials: Any) -> None:
    _refine_blocks(IQ4, weights, importance, out, size, levels, trials)


@kernel
def _refine_signs(weights: Any, importance: Any, out: Any, size: Any, levels: Any, trials: Any) -> None:
    _refine_blocks(SIGNS, weights, importance, out, size, levels, trials)


@inline
def _refine_blocks(
    kind: Any, weights: Any, importance: Any, out: Any, size: Any, levels: Any, trials: Any
) -> None:
    """Improve all blocks of `size` weights.

    Parameters
    ----------
    kind
        Of the levels; a constant.
    weights, importance, out
        All rows; the columns' importance, or empty; the default's blocks, which are improved.
    levels
        The lowest and highest level; the first level to try the largest weight at, and the step to the next.
    trials
        How many to try.
    """
    total = weights.size // size
    block_bytes = out.size // total
    d_at = block_bytes - 2 if size == 256 else 0
    tile = new_floats(size * WIDTH)
    weight = new_floats(size * WIDTH)
    scratch = new_floats(size * WIDTH)
    found = new_floats(WIDTH)
    inverses = new_floats(WIDTH)
    halves = new_integers(WIDTH)
    units = new_integers(WIDTH)
    column = -1
    for at in range(0, size * WIDTH, WIDTH):
        store(weight, at, splat(_ONE, WIDTH))
    for first in range(0, total, WIDTH):
        count = min(WIDTH, total - first)
        gather_blocks(weights, first, count, total, scratch, size, tile)
        if importance.size > 0 and first % (importance.size // size) != column:
            column = first % (importance.size // size)
            gather_block_weights(importance, first, count, scratch, size, weight)
        for r in range(WIDTH):
            units[r] = half_at(out, (first + min(r, count - 1)) * block_bytes + d_at)
        d, better = _best_scale(tile, weight, size, kind, levels, trials, units)
        store(found, 0, d)
        store(inverses, 0, _ONE / d)
        store(halves, 0, halves_of(d))
        for r in range(count):
            if lane(better, r):
                at = (first + r) * block_bytes
                store_bytes(out, at + d_at, halves[r], 2)
                if kind == IQ4:
                    iq4_nl.write_block(weights, (first + r) * size, found[r], out, at)
                elif kind == EVEN:
                    _write_levels(
                        weights, (first + r) * size, inverses[r], size, block_bytes, levels, out, at
                    )


@inline
def _write_levels(
    weights: Any, start: Any, inverse: Any, size: Any, block_bytes: Any, levels: Any, out: Any, at: Any
) -> None:
    lowest = levels[0]
    highest = levels[1]
    if block_bytes == 34:
        store(out, at + 2, _levels(weights, start, 32, inverse, lowest, highest))
    elif size == 32:
        low = _levels(weights, start, 16, inverse, lowest, highest) - int(lowest)
        high = _levels(weights, start + 16, 16, inverse, lowest, highest) - int(lowest)
        store_quants(out, at + 2, low, high, int(highest - lowest))
    elif size == 64:
        for part in range(0, 64, 32):
            level = _levels(weights, start + part, 32, inverse, lowest, highest) + 1
            lower = lane_bits((level & 1) != 0)
            upper = lane_bits((level & 2) != 0)
            bits.store_pairs(out, at + 2 + part // 4, lower, upper)
    elif block_bytes == 54:
        ternary.store_tq1_0(weights, start, inverse, out, at)
    else:
        ternary.store_tq2_0(weights, start, inverse, out, at)


@inline
def _levels(weights: Any, start: Any, count: Any, inverse: Any, lowest: Any, highest: Any) -> Any:
    """The levels of `count` (a constant) weights."""
    value = rounded(load_weights(weights, start, count) * inverse)
    return integer_of(maximum(minimum(value, highest), lowest))


@inline
def _best_scale(tile: Any, weight: Any, size: Any, kind: Any, levels: Any, trials: Any, units: Any) -> Any:
    """Find d, a half, of each block of a tile, and the lanes in which it is better than that in `units`."""
    lowest = levels[0]
    highest = levels[1]
    _, magnitude = find_extreme(tile, 0, size, WIDTH)
    found = splat(_ZERO, WIDTH)
    most = splat(_ZERO, WIDTH)
    sides = 1 if lowest == -highest else 2
    for k in range(sides * trials):
        level = levels[2] + levels[3] * np.float32(k // sides)
        level = -level if k % sides else level
        inverse = level / magnitude
        sum_vq = splat(_ZERO, WIDTH)
        sum_q2 = splat(_ZERO, WIDTH)
        for at in range(0, size * WIDTH, WIDTH):
            value = load(tile, at, WIDTH) * inverse
            q = nearest_level(value, kind, lowest, highest)
            wq = load(weight, at, WIDTH) * q
            sum_vq = sum_vq + wq * value
            sum_q2 = sum_q2 + wq * q
        # What least squares take off the sum of squares, in units of the largest magnitude.
        change = sum_vq / (sum_q2 * level)
        gain = change * (sum_vq / level)
        better = gain > most
        most = select(better, gain, most)
        found = select(better, change * magnitude, found)

    default_d = floats_of(load(units, 0, WIDTH))
    d = as_half(found)
    least = to_beat(_error(tile, weight, size, kind, lowest, highest, default_d))
    return d, _error(tile, weight, size, kind, lowest, highest, d) < least


@inline
def _error(tile: Any, weight: Any, size: Any, kind: Any, lowest: Any, highest: Any, d: Any) -> Any:
    """The weighted squared error of each block with scale d, each weight worked out as by a decoder."""
    inverse = _ONE / d
    error = splat(_ZERO, WIDTH)
    for at in range(0, size * WIDTH, WIDTH):
        x = load(tile, at, WIDTH)
        r = x - d * nearest_level(x * inverse, kind, lowest, highest)
        error = error + load(weight, at, WIDTH) * r * r
    return error
