"""Encoders of tq1_0 and tq2_0: superblocks of 256 weights that are -d, 0 or d.

    tq1_0   qs:u8[48] qh:u8[4] d:f16      five weights in a byte, four in each byte of qh
    tq2_0   qs:u8[64] d:f16               four weights in a byte, two bits each

d is the largest magnitude and q = 1 + round(x / d), halves away from zero: right for models that were trained
to three values (BitNet b1.58, TriLM), poor for others.

tq2_0: byte j of each 32 holds weights j, j + 32, j + 64 and j + 96 of 128, the first in the lowest bits.
tq1_0: the weights of a byte are the digits to base three, the first the highest, of a number n below 3^5,
stored as ceil(256 n / 243). That is a binary fraction, of which times 3 carries out the first digit, and so
on. The first 32 bytes hold weights j + 32 i, the next 16 weights 160 + j + 16 i, and qh 240 + j + 4 i, with
a last digit of 0.

From llama.cpp b11434, `quantize_row_tq1_0_ref` and `quantize_row_tq2_0_ref` in `ggml/src/ggml-quants.c`.
Where 1 / d is infinite, all q are 1, as the undefined conversion in C has it on x86-64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.layout32 import flat, store_half
from ggplan.quants.memory import load_weights, store
from ggplan.quants.vector import absolute, largest_lane, maximum, select, splat

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_LARGEST_FLOAT = np.finfo(np.float32).max


def encode_tq1_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 256 * 54)."""
    _tq1_0(flat(rows), out.reshape(-1))


def encode_tq2_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 256 * 66)."""
    _tq2_0(flat(rows), out.reshape(-1))


@kernel
def _tq1_0(weights: Any, out: Any) -> None:
    for block in range(weights.size // 256):
        start = block * 256
        at = block * 54
        scale, inverse = _scale(weights, start)
        store_tq1_0(weights, start, inverse, out, at)
        store_half(out, at + 52, scale)


@kernel
def _tq2_0(weights: Any, out: Any) -> None:
    for block in range(weights.size // 256):
        at = block * 66
        scale, inverse = _scale(weights, block * 256)
        store_tq2_0(weights, block * 256, inverse, out, at)
        store_half(out, at + 64, scale)


@inline
def store_tq1_0(weights: Any, start: Any, inverse: Any, out: Any, at: Any) -> None:
    """Write q of a superblock's weights, given 1 / d."""
    store(out, at, _fraction(_digits(weights, start, 5, 32, inverse)))
    store(out, at + 32, _fraction(_digits(weights, start + 160, 5, 16, inverse)))
    store(out, at + 48, _fraction(_digits(weights, start + 240, 4, 4, inverse) * 3))


@inline
def store_tq2_0(weights: Any, start: Any, inverse: Any, out: Any, at: Any) -> None:
    """Write q of a superblock's weights, given 1 / d."""
    for half in range(2):
        first = start + 128 * half
        packed = _ternary(weights, first, 32, inverse)
        for i in range(1, 4):
            packed = packed | (_ternary(weights, first + 32 * i, 32, inverse) << (2 * i))
        store(out, at + 32 * half, packed)


@inline
def _scale(weights: Any, start: Any) -> Any:
    """Find d of a superblock, and 1 / d."""
    magnitude = absolute(load_weights(weights, start, 32))
    for i in range(1, 8):
        magnitude = maximum(magnitude, absolute(load_weights(weights, start + 32 * i, 32)))
    scale = largest_lane(magnitude)
    inverse = np.float32(_ONE / scale)
    if not inverse <= _LARGEST_FLOAT:
        inverse = _ZERO
    return scale, inverse


@inline
def _ternary(weights: Any, start: Any, count: Any, inverse: Any) -> Any:
    """Round `count` (a constant) weights to q, as int32."""
    scaled = load_weights(weights, start, count) * inverse
    return select(scaled >= _HALF, 2, select(scaled <= -_HALF, 0, splat(1, count)))


@inline
def _digits(weights: Any, start: Any, digits: Any, count: Any, inverse: Any) -> Any:
    """The numbers whose digits are q of weights `count` (a constant) apart."""
    number = _ternary(weights, start, count, inverse)
    for i in range(1, digits):
        number = number * 3 + _ternary(weights, start + count * i, count, inverse)
    return number


@inline
def _fraction(number: Any) -> Any:
    """ceil(256 n / 243) = n + ceil(13 n / 243), for n up to 242; divided by way of a reciprocal."""
    return number + (((number * 13 + 242) * 135) >> 15)
