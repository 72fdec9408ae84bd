"""ggml's scales that follow from a block's weights at once, without trials.

    q8_0            d = max|x| / 127     q = round(x / d), halves away from zero
    q4_0            d = extreme / -8     q = trunc(x / d + 8.5), at most 15
    q5_0            d = extreme / -16    q = trunc(x / d + 16.5), at most 31
    q4_1            d = (max - m) / 15   q = trunc((x - m) / d + 0.5), m = min
    q5_1            d = (max - m) / 31   q = trunc((x - m) / d + 0.5), m = min
    tq1_0, tq2_0    d = max|x|           q = 1 + round(x / d), halves away from zero
    q2_0            d = max|x|           q = 1 + round(x / d), halves away from zero
    q1_0            d = mean of |x|      q = 1 where x >= 0, -0 too

The extreme is the weight of the largest magnitude, the first of its kind, with its sign: it becomes q = 0, at
the end of the range that reaches one step further. ggml divides by multiplying with 1 / d, and with d before
that is rounded to half precision.

Memory sets the speed. It would not with a block at a time, since the steps to a scale wait for each other: so
the scales of 16 blocks are worked out at once, a block a lane, and then the weights of each are rounded.
Larger groups are a little faster in cache, but ask memory for too much at a time, and stream more slowly.

From llama.cpp b11434, `quantize_row_*_ref` in `ggml/src/ggml-quants.c`. Where C leaves the conversion of a
float to an integer undefined (d so small that 1 / d is infinite, or a range so wide that d is), what x86-64
does decides: all q of such a block are 0, of a ternary one 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.half import half_from_float, halves_of
from ggplan.quants.kernels import inline
from ggplan.quants.memory import integers_at, load, load_weights, shorts_at, store, store_bytes, transpose
from ggplan.quants.vector import (
    absolute,
    any_lane,
    bits_of,
    extremes_of_blocks,
    first_lane,
    float_of_bits,
    integer_of,
    lane,
    largest_magnitude,
    largest_magnitude_of_blocks,
    minimum,
    select,
    splat,
)

GROUP = 16
"""How many blocks the searches here take."""

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_127 = np.float32(127)
_128 = np.float32(128)
_LARGEST_FLOAT = np.finfo(np.float32).max
_SIGN_BIT = -(1 << 31)
_BITS_BELOW_HALF = 0x3EFFFFFF  # 0.49999997


@inline
def q8_0(given: Any, first: Any, scales: Any, codes: Any) -> None:
    """Scales of q8_0."""
    d = largest_magnitude_of_blocks(given.weights, 32 * first) / _127
    inverse = _ONE / d
    store(shorts_at(scales, 0), 0, halves_of(d))
    store(given.room, 0, select(inverse <= _LARGEST_FLOAT, inverse, _ZERO))


@inline
def q8_0_codes(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """A code is the byte of a signed level."""
    store(codes, 0, _rounded_away(load_weights(given.weights, 32 * (first + k), 32) * given.room[k]))


@inline
def symmetric(given: Any, first: Any, scales: Any, codes: Any) -> None:
    """Scales of q4_0 and q5_0."""
    start = 32 * first
    middle = (given.highest + 1) // 2
    store(given.room, 0, extremes_of_blocks(given.weights, start))
    smallest, largest = load(given.room, 0, GROUP), load(given.room, GROUP, GROUP)
    extreme = select(largest > -smallest, largest, smallest)
    if any_lane(largest == -smallest):
        extreme = _first_of_magnitude(given.weights, start, absolute(extreme), given.room)
        extreme = select(extreme == _ZERO, _ZERO, extreme)  # ggml starts from +0
    d = extreme / np.float32(-middle)
    inverse = _ONE / d
    is_finite = absolute(inverse) <= _LARGEST_FLOAT
    to_nearest = splat(np.float32(np.float32(middle) + _HALF), GROUP)
    store(shorts_at(scales, 0), 0, halves_of(d))
    store(given.room, 0, select(is_finite, inverse, _ZERO))
    store(given.room, GROUP, select(is_finite | (d == _ZERO), to_nearest, _ZERO))


@inline
def symmetric_codes(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """Codes of q4_0 and q5_0."""
    for i in range(0, 32, 16):
        scaled = load_weights(given.weights, 32 * (first + k) + i, 16) * given.room[k]
        store(codes, i, minimum(integer_of(scaled + given.room[GROUP + k]), given.highest))


@inline
def affine(given: Any, first: Any, scales: Any, codes: Any) -> None:
    """Scales and minimums of q4_1 and q5_1."""
    start = 32 * first
    store(given.room, 0, extremes_of_blocks(given.weights, start))
    smallest, largest = load(given.room, 0, GROUP), load(given.room, GROUP, GROUP)
    if any_lane(smallest == _ZERO):
        # Where both zeros occur, the first decides the sign of m.
        nothing = _first_of_magnitude(given.weights, start, absolute(smallest), given.room)
        smallest = select(smallest == _ZERO, nothing, smallest)
    d = absolute(largest - smallest) / np.float32(given.highest)  # +0 also where these are -0 and +0
    inverse = _ONE / d
    store(integers_at(scales, 0), 0, halves_of(d) | (halves_of(smallest) << 16))
    store(given.room, 0, select(inverse <= _LARGEST_FLOAT, inverse, _ZERO))
    # Where d is infinite x - m may be too, and times 1 / d = 0 no number.
    store(given.room, GROUP, select(d <= _LARGEST_FLOAT, smallest, _ZERO))


@inline
def affine_codes(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """Codes of q4_1 and q5_1."""
    for i in range(0, 32, 16):
        x = load_weights(given.weights, 32 * (first + k) + i, 16)
        store(codes, i, integer_of((x - given.room[GROUP + k]) * given.room[k] + _HALF))


@inline
def _first_of_magnitude(weights: Any, start: Any, magnitudes: Any, room: Any) -> Any:
    """The first weight of a magnitude that occurs, in each of 16 blocks of 32."""
    store(room, 0, magnitudes)
    for k in range(GROUP):
        block = start + k * 32
        place = first_lane(absolute(load_weights(weights, block, 32)) == room[k])
        room[k] = lane(load_weights(weights, block + place, 1), 0)
    return load(room, 0, GROUP)


@inline
def ternary(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """The scale and codes of a block of tq1_0 and tq2_0."""
    start = 256 * (first + k)
    scale = largest_magnitude(given.weights, start, 256)
    inverse = np.float32(_ONE / scale)
    if not inverse <= _LARGEST_FLOAT:
        inverse = _ZERO
    store_bytes(scales, 0, half_from_float(scale), 2)
    for i in range(0, 256, 32):
        store(codes, i, ternary_codes(given.weights, start + i, inverse))


@inline
def ternary_codes(weights: Any, start: Any, inverse: Any) -> Any:
    """The codes of 32 weights, given 1 / d."""
    scaled = load_weights(weights, start, 32) * inverse
    nothing = splat(0, 32)
    return select(scaled >= _HALF, 1, nothing) - select(scaled <= -_HALF, 1, nothing) + 1


@inline
def q2_0(given: Any, first: Any, scales: Any, codes: Any) -> None:
    """Scales of q2_0, blocks of 64."""
    for k in range(GROUP):
        given.room[k] = largest_magnitude(given.weights, 64 * (first + k), 64)
    d = load(given.room, 0, GROUP)
    inverse = _ONE / d
    is_finite = inverse <= _LARGEST_FLOAT
    store(shorts_at(scales, 0), 0, halves_of(d))
    store(given.room, 0, select(is_finite, inverse, _ZERO))
    store(integers_at(given.room, GROUP), 0, select(is_finite | (d == _ZERO), 255, splat(0, GROUP)))


@inline
def q2_0_codes(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """Codes of q2_0. As no x is beyond d, its fourth level is not used."""
    kept = integers_at(given.room, GROUP)[k]
    for i in range(0, 64, 32):
        scaled = load_weights(given.weights, 64 * (first + k) + i, 32) * given.room[k]
        store(codes, i, (_rounded_away(scaled) + 1) & kept)


@inline
def _rounded_away(values: Any) -> Any:
    """C's roundf, as int32: add 0.49999997 with the number's sign, then cut."""
    nudge = float_of_bits((bits_of(values) & _SIGN_BIT) | _BITS_BELOW_HALF)
    return integer_of(values + nudge)


@inline
def q1_0(given: Any, first: Any, scales: Any, codes: Any) -> None:
    """Scales of q1_0, blocks of 128; the mean is summed in ggml's order."""
    total = splat(_ZERO, GROUP)
    for column in range(0, 128, 16):
        transpose(given.weights, 128 * first + column, 128, given.room, 0, GROUP)
        for i in range(16):
            total = total + absolute(load(given.room, GROUP * i, GROUP))
    store(shorts_at(scales, 0), 0, halves_of(total / _128))


@inline
def q1_0_codes(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """Codes of q1_0."""
    for i in range(0, 128, 32):
        x = load_weights(given.weights, 128 * (first + k) + i, 32)
        store(codes, i, select(x >= _ZERO, 1, splat(0, 32)))
