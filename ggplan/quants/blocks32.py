"""Encoders of the blocks of 32 weights with evenly spaced levels: q8_0, q4_0, q4_1, q5_0 and q5_1.

    q8_0   d:f16 qs:i8[32]                  d = max|x| / 127     q = round(x / d), halves away from zero
    q4_0   d:f16 qs:u8[16]                  d = extreme / -8     q = trunc(x / d + 8.5), at most 15
    q5_0   d:f16 qh:u8[4] qs:u8[16]         d = extreme / -16    q = trunc(x / d + 16.5), at most 31
    q4_1   d:f16 m:f16 qs:u8[16]            d = (max - m) / 15   q = trunc((x - m) / d + 0.5), m = min
    q5_1   d:f16 m:f16 qh:u8[4] qs:u8[16]   d = (max - m) / 31   q = trunc((x - m) / d + 0.5), m = min

The extreme is the weight of the largest magnitude, the first of its kind, with its sign: it becomes q = 0, at
the end of the range that reaches one step further. ggml divides by multiplying with 1 / d, and with d before
that is rounded to half precision.

So it is without an imatrix: the 32 weights of a block are 32 lanes, and memory sets the speed. With one,
`search32` looks for better scales; q8_0 ignores it.

From llama.cpp b11434, `quantize_row_*_ref` in `ggml/src/ggml-quants.c`. Where C leaves the conversion of a
float to an integer undefined (d so small that 1 / d is infinite, or a range so wide that d is), what x86-64
does decides: all q of such a block are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import search32
from ggplan.quants.accelerate import kernel
from ggplan.quants.layout32 import flat, store_half, store_quants
from ggplan.quants.vector import (
    absolute,
    bits_of,
    first_lane,
    float_of_bits,
    integer_of,
    largest_lane,
    load,
    minimum,
    smallest_lane,
    store,
)

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_127 = np.float32(127)
_LARGEST_FLOAT = np.finfo(np.float32).max
_SIGN_BIT = -(1 << 31)
_BITS_BELOW_HALF = 0x3EFFFFFF  # 0.49999997


def encode_q8_0(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 34)."""
    _q8_0(flat(rows), out.reshape(-1))


def encode_q4_0(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 18)."""
    _encode_symmetric(rows, importance, 8, out)


def encode_q5_0(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 22)."""
    _encode_symmetric(rows, importance, 16, out)


def encode_q4_1(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 20)."""
    _encode_affine(rows, importance, 15, out)


def encode_q5_1(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 24)."""
    _encode_affine(rows, importance, 31, out)


def _encode_symmetric(rows: F32Array, importance: F32Array | None, middle: int, out: Bytes) -> None:
    if importance is None:
        _symmetric(flat(rows), middle, out.reshape(-1))
    else:
        search32.symmetric(flat(rows), flat(importance), middle, out.reshape(-1))


def _encode_affine(rows: F32Array, importance: F32Array | None, highest: int, out: Bytes) -> None:
    if importance is None:
        _affine(flat(rows), highest, out.reshape(-1))
    else:
        search32.affine(flat(rows), flat(importance), highest, out.reshape(-1))


@kernel
def _q8_0(weights: Any, out: Any) -> None:
    for block in range(weights.size // 32):
        x = load(weights, block * 32, 32)
        d = np.float32(largest_lane(absolute(x)) / _127)
        inverse = np.float32(_ONE / d)
        if not inverse <= _LARGEST_FLOAT:
            inverse = _ZERO
        store_half(out, block * 34, d)
        # C's roundf: add 0.49999997 with the number's sign, then cut.
        scaled = x * inverse
        nudge = float_of_bits((bits_of(scaled) & _SIGN_BIT) | _BITS_BELOW_HALF)
        store(out, block * 34 + 2, integer_of(scaled + nudge))


@kernel
def _symmetric(weights: Any, middle: Any, out: Any) -> None:
    block_bytes = 18 if middle == 8 else 22
    highest = 2 * middle - 1
    for block in range(weights.size // 32):
        start = block * 32
        magnitude = absolute(load(weights, start, 32))
        largest = largest_lane(magnitude)
        extreme = _ZERO
        if largest > _ZERO:
            extreme = weights[start + first_lane(magnitude == largest)]
        d = np.float32(extreme / np.float32(-middle))
        inverse = _ZERO
        shift = np.float32(np.float32(middle) + _HALF)
        if d != _ZERO:
            inverse = np.float32(_ONE / d)
            if not abs(inverse) <= _LARGEST_FLOAT:
                inverse = _ZERO
                shift = _ZERO
        store_half(out, block * block_bytes, d)
        low = minimum(integer_of(load(weights, start, 16) * inverse + shift), highest)
        high = minimum(integer_of(load(weights, start + 16, 16) * inverse + shift), highest)
        store_quants(out, block * block_bytes + 2, low, high, highest)


@kernel
def _affine(weights: Any, highest: Any, out: Any) -> None:
    block_bytes = 20 if highest == 15 else 24
    for block in range(weights.size // 32):
        start = block * 32
        x = load(weights, start, 32)
        # By way of their places: where both zeros occur, the first decides the sign of m.
        smallest = weights[start + first_lane(x == smallest_lane(x))]
        largest = weights[start + first_lane(x == largest_lane(x))]
        d = np.float32(np.float32(largest - smallest) / np.float32(highest))
        inverse = np.float32(_ONE / d)
        store_half(out, block * block_bytes, d)
        store_half(out, block * block_bytes + 2, smallest)
        if not inverse <= _LARGEST_FLOAT:
            inverse = _ZERO
        if not d <= _LARGEST_FLOAT:
            smallest = _ZERO  # lest x - m be infinite too, and times 1 / d = 0 no number
        low = integer_of((load(weights, start, 16) - smallest) * inverse + _HALF)
        high = integer_of((load(weights, start + 16, 16) - smallest) * inverse + _HALF)
        store_quants(out, block * block_bytes + 4, low, high, highest)
