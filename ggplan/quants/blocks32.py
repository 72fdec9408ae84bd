"""Encoders of the plain blocks of 32 weights: q8_0, q4_0, q4_1, q5_0 and q5_1, without an imatrix.

    q8_0   d:f16 qs:i8[32]                    d = max|x| / 127     q = round(x / d), halves away from zero
    q4_0   d:f16 qs:u8[16]                    d = extreme / -8     q = trunc(x / d + 8.5), at most 15
    q5_0   d:f16 qh:u8[4] qs:u8[16]           d = extreme / -16    q = trunc(x / d + 16.5), at most 31
    q4_1   d:f16 m:f16 qs:u8[16]              d = (max - m) / 15   q = trunc((x - m) / d + 0.5)
    q5_1   d:f16 m:f16 qh:u8[4] qs:u8[16]     d = (max - m) / 31   q = trunc((x - m) / d + 0.5)

The extreme is the weight of the largest magnitude, the first of its kind, with its sign: it becomes q = 0,
the end of the range that reaches one step further. Byte j of qs holds the low four bits of weights j and
j + 16, bit j of qh the fifth bit of weight j. Division is by way of 1 / d, as ggml's is, and with d before
it was rounded to half precision.

With an imatrix, `search32` looks for better scales; q8_0 ignores it. Here a block's 32 weights are 32 lanes,
and the encoders run at the speed of memory.

From llama.cpp b11434, `quantize_row_*_ref` in `ggml/src/ggml-quants.c`. Where C's conversion of a float to an
integer has no defined result (d so small that 1 / d is infinite, a range so wide that d is), what
x86-64 does decides: such a block has q = 0 throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.half import half_from_float
from ggplan.quants.vector import (
    absolute,
    bits_of,
    first_lane,
    float_of_bits,
    highest,
    integer_of,
    lane_bits,
    load,
    lowest,
    minimum,
    store,
)

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_LARGEST = np.finfo(np.float32).max
_SIGN = np.int32(-(2**31))
_BELOW_HALF_BITS = np.nextafter(_HALF, _ZERO, dtype=np.float32).view(np.int32)


def encode_q8_0(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 x 34)."""
    _q8_0(rows.reshape(-1), out.reshape(-1))


def encode_q4_0(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 x 18)."""
    _symmetric(rows.reshape(-1), np.float32(8), out.reshape(-1))


def encode_q5_0(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 x 22)."""
    _symmetric(rows.reshape(-1), np.float32(16), out.reshape(-1))


def encode_q4_1(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 x 20)."""
    _asymmetric(rows.reshape(-1), np.float32(15), out.reshape(-1))


def encode_q5_1(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 x 24)."""
    _asymmetric(rows.reshape(-1), np.float32(31), out.reshape(-1))


@kernel
def _q8_0(x: Any, out: Any) -> None:
    for block in range(x.size // 32):
        weights = load(x, block * 32, 32)
        d = np.float32(highest(absolute(weights)) / np.float32(127))
        inverse = np.float32(_ONE / d)
        if not inverse <= _LARGEST:
            inverse = _ZERO
        at = block * 34
        store_half(out, at, d)
        # roundf: add 0.49999997 with the sign of the number, then cut.
        scaled = weights * inverse
        nudge = float_of_bits((bits_of(scaled) & _SIGN) | _BELOW_HALF_BITS)
        store(out, at + 2, integer_of(scaled + nudge))


@kernel
def _symmetric(x: Any, half_range: Any, out: Any) -> None:
    block_bytes = 18 if half_range == np.float32(8) else 22
    for block in range(x.size // 32):
        start = block * 32
        magnitudes = absolute(load(x, start, 32))
        largest = highest(magnitudes)
        extreme = _ZERO
        if largest > _ZERO:
            extreme = x[start + first_lane(magnitudes == largest)]
        d = np.float32(extreme / -half_range)
        inverse = _ZERO
        middle = np.float32(half_range + _HALF)
        if d != _ZERO:
            inverse = np.float32(_ONE / d)
            if not abs(inverse) <= _LARGEST:
                inverse = _ZERO
                middle = _ZERO
        at = block * block_bytes
        store_half(out, at, d)
        low = integer_of(load(x, start, 16) * inverse + middle)
        high = integer_of(load(x, start + 16, 16) * inverse + middle)
        top = np.int32(np.float32(half_range + half_range) - _ONE)
        store_quants(out, at + 2, minimum(low, top), minimum(high, top), top)


@kernel
def _asymmetric(x: Any, steps: Any, out: Any) -> None:
    block_bytes = 20 if steps == np.float32(15) else 24
    for block in range(x.size // 32):
        start = block * 32
        weights = load(x, start, 32)
        # Where both zeros occur, the first decides the sign of m.
        smallest = x[start + first_lane(weights == lowest(weights))]
        largest = x[start + first_lane(weights == highest(weights))]
        d = np.float32(np.float32(largest - smallest) / steps)
        inverse = np.float32(_ONE / d)
        at = block * block_bytes
        store_half(out, at, d)
        store_half(out, at + 2, smallest)
        if not inverse <= _LARGEST:
            inverse = _ZERO
        if not d <= _LARGEST:
            smallest = _ZERO  # x - m would overflow as well, and infinity times 1 / d is no number
        low = integer_of((load(x, start, 16) - smallest) * inverse + _HALF)
        high = integer_of((load(x, start + 16, 16) - smallest) * inverse + _HALF)
        store_quants(out, at + 4, low, high, np.int32(steps))


@inline
def store_half(out: Any, at: Any, value: Any) -> None:
    """Write a float32 as two bytes of half precision."""
    half = half_from_float(value)
    out[at] = np.uint8(half & 0xFF)
    out[at + 1] = np.uint8(half >> 8)


@inline
def store_quants(out: Any, at: Any, low: Any, high: Any, top: Any) -> None:
    """Write the quants 0..`top` (15 or 31) of a block: `low` those of its first half, `high` of its second."""
    if top > 15:
        fifth = lane_bits((low & 16) != 0) | (lane_bits((high & 16) != 0) << 16)
        for i in range(4):
            out[at + i] = np.uint8((fifth >> (8 * i)) & 0xFF)
        at += 4
    store(out, at, (low & 15) | ((high & 15) << 4))
