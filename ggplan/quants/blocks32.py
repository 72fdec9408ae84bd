"""Encoders of the blocks of 32 weights with evenly spaced levels: q8_0, q4_0, q4_1, q5_0 and q5_1.

    q8_0   d:f16 qs:i8[32]                  d = max|x| / 127     q = round(x / d), halves away from zero
    q4_0   d:f16 qs:u8[16]                  d = extreme / -8     q = trunc(x / d + 8.5), at most 15
    q5_0   d:f16 qh:u8[4] qs:u8[16]         d = extreme / -16    q = trunc(x / d + 16.5), at most 31
    q4_1   d:f16 m:f16 qs:u8[16]            d = (max - m) / 15   q = trunc((x - m) / d + 0.5), m = min
    q5_1   d:f16 m:f16 qh:u8[4] qs:u8[16]   d = (max - m) / 31   q = trunc((x - m) / d + 0.5), m = min

The extreme is the weight of the largest magnitude, the first of its kind, with its sign: it becomes q = 0, at
the end of the range that reaches one step further. ggml divides by multiplying with 1 / d, and with d before
that is rounded to half precision.

Without an imatrix that is all, and memory sets the speed. It would not with a block at a time, since the
steps to a scale wait for each other: so the scales of 16 blocks are worked out at once, a block a lane, and
then the weights of each are rounded. Larger groups are a little faster in cache, but ask memory for too much
at a time, and stream more slowly. With an imatrix, `search32` looks for better scales; q8_0 ignores it.

From llama.cpp b11434, `quantize_row_*_ref` in `ggml/src/ggml-quants.c`. Where C leaves the conversion of a
float to an integer undefined (d so small that 1 / d is infinite, or a range so wide that d is), what x86-64
does decides: all q of such a block are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import search32
from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.half import halves_of
from ggplan.quants.layout32 import flat, store_quants
from ggplan.quants.memory import load, load_weights, new_floats, new_integers, store, store_bytes
from ggplan.quants.vector import (
    absolute,
    any_lane,
    bits_of,
    first_lane,
    float_of_bits,
    integer_of,
    lane,
    largest_magnitude_of_blocks,
    largest_of_blocks,
    minimum,
    select,
    smallest_of_blocks,
    splat,
)

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_GROUP = 16 * 32  # weights of 16 blocks
_MOST_BYTES = 16 * 34  # that they take in any of these types

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_127 = np.float32(127)
_LARGEST_FLOAT = np.finfo(np.float32).max
_SIGN_BIT = -(1 << 31)
_BITS_BELOW_HALF = 0x3EFFFFFF  # 0.49999997


def encode_q8_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 34)."""
    _encode(_q8_0, rows, out)


def encode_q4_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 18)."""
    _encode_symmetric(rows, importance, 8, out)


def encode_q5_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 22)."""
    _encode_symmetric(rows, importance, 16, out)


def encode_q4_1(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 20)."""
    _encode_affine(rows, importance, 15, out)


def encode_q5_1(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 24)."""
    _encode_affine(rows, importance, 31, out)


def _encode_symmetric(rows: Rows, importance: F32Array | None, middle: int, out: Bytes) -> None:
    if importance is None:
        _encode(_symmetric, rows, out, middle)
    else:
        search32.symmetric(flat(rows), flat(importance), middle, out.reshape(-1))


def _encode_affine(rows: Rows, importance: F32Array | None, highest: int, out: Bytes) -> None:
    if importance is None:
        _encode(_affine, rows, out, highest)
    else:
        search32.affine(flat(rows), flat(importance), highest, out.reshape(-1))


def _encode(encode_groups: Callable[..., None], rows: Rows, out: Bytes, *levels: int) -> None:
    """Call a kernel, which needs 16 blocks or more, for any number of them."""
    weights, blocks = flat(rows), out.reshape(-1)
    if weights.size >= _GROUP:
        encode_groups(weights, blocks, *levels)
    else:
        group, room = np.zeros(_GROUP, weights.dtype), np.empty(_MOST_BYTES, np.uint8)
        group[: weights.size] = weights
        encode_groups(group, room, *levels)
        blocks[:] = room[: blocks.size]


@kernel
def _q8_0(weights: Any, out: Any) -> None:
    halves = new_integers(16)
    inverses = new_floats(16)
    for begin in range(0, weights.size, _GROUP):
        start = min(begin, weights.size - _GROUP)  # the last group may overlap the one before
        d = largest_magnitude_of_blocks(weights, start) / _127
        inverse = _ONE / d
        store(halves, 0, halves_of(d))
        store(inverses, 0, select(inverse <= _LARGEST_FLOAT, inverse, _ZERO))
        for k in range(16):
            at = (start // 32 + k) * 34
            store_bytes(out, at, halves[k], 2)
            # C's roundf: add 0.49999997 with the number's sign, then cut.
            scaled = load_weights(weights, start + k * 32, 32) * inverses[k]
            nudge = float_of_bits((bits_of(scaled) & _SIGN_BIT) | _BITS_BELOW_HALF)
            store(out, at + 2, integer_of(scaled + nudge))


@kernel
def _symmetric(weights: Any, out: Any, middle: Any) -> None:
    block_bytes = 18 if middle == 8 else 22
    highest = 2 * middle - 1
    to_nearest = splat(np.float32(np.float32(middle) + _HALF), 16)
    halves = new_integers(16)
    inverses = new_floats(16)
    shifts = new_floats(16)
    for begin in range(0, weights.size, _GROUP):
        start = min(begin, weights.size - _GROUP)
        largest = largest_of_blocks(weights, start)
        smallest = smallest_of_blocks(weights, start)
        extreme = select(largest > -smallest, largest, smallest)
        if any_lane(largest == -smallest):
            extreme = _first_of_magnitude(weights, start, absolute(extreme), inverses)
            extreme = select(extreme == _ZERO, _ZERO, extreme)  # ggml starts from +0
        d = extreme / np.float32(-middle)
        inverse = _ONE / d
        is_finite = absolute(inverse) <= _LARGEST_FLOAT
        store(halves, 0, halves_of(d))
        store(inverses, 0, select(is_finite, inverse, _ZERO))
        store(shifts, 0, select(is_finite | (d == _ZERO), to_nearest, _ZERO))
        for k in range(16):
            block = start + k * 32
            at = (start // 32 + k) * block_bytes
            store_bytes(out, at, halves[k], 2)
            low = minimum(integer_of(load_weights(weights, block, 16) * inverses[k] + shifts[k]), highest)
            high = minimum(
                integer_of(load_weights(weights, block + 16, 16) * inverses[k] + shifts[k]), highest
            )
            store_quants(out, at + 2, low, high, highest)


@kernel
def _affine(weights: Any, out: Any, highest: Any) -> None:
    block_bytes = 20 if highest == 15 else 24
    halves = new_integers(16)
    inverses = new_floats(16)
    minima = new_floats(16)
    for begin in range(0, weights.size, _GROUP):
        start = min(begin, weights.size - _GROUP)
        largest = largest_of_blocks(weights, start)
        smallest = smallest_of_blocks(weights, start)
        if any_lane(smallest == _ZERO):
            # Where both zeros occur, the first decides the sign of m.
            first = _first_of_magnitude(weights, start, absolute(smallest), inverses)
            smallest = select(smallest == _ZERO, first, smallest)
        d = absolute(largest - smallest) / np.float32(highest)  # +0 also where these are -0 and +0
        inverse = _ONE / d
        store(halves, 0, halves_of(d) | (halves_of(smallest) << 16))
        store(inverses, 0, select(inverse <= _LARGEST_FLOAT, inverse, _ZERO))
        # Where d is infinite x - m may be too, and times 1 / d = 0 no number.
        store(minima, 0, select(d <= _LARGEST_FLOAT, smallest, _ZERO))
        for k in range(16):
            block = start + k * 32
            at = (start // 32 + k) * block_bytes
            store_bytes(out, at, halves[k], 4)
            low = integer_of((load_weights(weights, block, 16) - minima[k]) * inverses[k] + _HALF)
            high = integer_of((load_weights(weights, block + 16, 16) - minima[k]) * inverses[k] + _HALF)
            store_quants(out, at + 4, low, high, highest)


@inline
def _first_of_magnitude(weights: Any, start: Any, magnitudes: Any, scratch: Any) -> Any:
    """The first weight of a magnitude that occurs, in each of 16 blocks; `scratch` holds 16 float32."""
    store(scratch, 0, magnitudes)
    for k in range(16):
        block = start + k * 32
        place = first_lane(absolute(load_weights(weights, block, 32)) == scratch[k])
        scratch[k] = lane(load_weights(weights, block + place, 1), 0)
    return load(scratch, 0, 16)
