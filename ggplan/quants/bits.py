"""Encoders of q1_0 and q2_0: a scale, and one or two bits a weight, in order from the lowest bit up.

    q1_0   d:f16 qs:u8[16]    128 weights    d = mean of |x|    q = 1 where x >= 0, -0 too        d (2 q - 1)
    q2_0   d:f16 qs:u8[16]    64 weights     d = max of |x|     q = 1 + round(x / d)              d (q - 1)

q2_0 rounds halves away from zero. As no x is beyond d, its fourth value, 2 d, is never written. The mean is
summed in ggml's order, so sixteen blocks are summed at once, turned on their side.

From llama.cpp b11434, `quantize_row_q1_0_ref` and `quantize_row_q2_0_ref` in `ggml/src/ggml-quants.c`. Where
1 / d is infinite, all q of q2_0 are 0, as the undefined conversion in C has it on x86-64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.layout32 import flat, store_half
from ggplan.quants.memory import load, load_weights, store, transpose
from ggplan.quants.vector import absolute, lane_bits, largest_lane, maximum, splat

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_128 = np.float32(128)
_LARGEST_FLOAT = np.finfo(np.float32).max


def encode_q1_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 128 * 18)."""
    _q1_0(flat(rows), out.reshape(-1))


def encode_q2_0(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 64 * 18)."""
    _q2_0(flat(rows), out.reshape(-1))


@kernel
def _q1_0(weights: Any, out: Any) -> None:
    square = np.empty(256, np.float32)
    columns = np.empty(256, np.float32)
    means = np.empty(16, np.float32)
    blocks = weights.size // 128
    for first in range(0, blocks, 16):
        count = min(16, blocks - first)
        total = splat(_ZERO, 16)
        for column in range(0, 128, 16):
            for i in range(16):  # where fewer blocks are left, the last one fills the rest
                block = first + min(i, count - 1)
                store(square, 16 * i, absolute(load_weights(weights, block * 128 + column, 16)))
            transpose(square, 0, 16, columns, 0, 16)
            for i in range(16):
                total = total + load(columns, 16 * i, 16)
        store(means, 0, total / _128)
        for i in range(count):
            at = (first + i) * 18
            store_half(out, at, means[i])
            for part in range(4):
                x = load_weights(weights, (first + i) * 128 + 32 * part, 32)
                _store_bits(out, at + 2 + 4 * part, lane_bits(x >= _ZERO), 4)


@kernel
def _q2_0(weights: Any, out: Any) -> None:
    for block in range(weights.size // 64):
        start = block * 64
        at = block * 18
        magnitude = maximum(
            absolute(load_weights(weights, start, 32)), absolute(load_weights(weights, start + 32, 32))
        )
        scale = largest_lane(magnitude)
        inverse = np.float32(_ONE / scale) if scale > _ZERO else _ZERO
        store_half(out, at, scale)
        for half in range(2):
            scaled = load_weights(weights, start + 32 * half, 32) * inverse
            # Neither where `scaled` is infinite or a nan.
            is_1 = lane_bits(absolute(scaled) < _HALF)
            is_2 = lane_bits((scaled >= _HALF) & (scaled <= _LARGEST_FLOAT))
            store_pairs(out, at + 2 + 8 * half, is_1, is_2)


@inline
def store_pairs(out: Any, at: Any, low: Any, high: Any) -> None:
    """Write 32 numbers of two bits, given all lower bits and all upper ones."""
    _store_bits(out, at, _to_even_places(low) | (_to_even_places(high) << 1), 8)


@inline
def _to_even_places(bits: Any) -> Any:
    """Move bit i of 32 to bit 2 i of 64, by halves."""
    spread = np.int64(bits)
    spread = (spread | (spread << 16)) & 0x0000FFFF0000FFFF
    spread = (spread | (spread << 8)) & 0x00FF00FF00FF00FF
    spread = (spread | (spread << 4)) & 0x0F0F0F0F0F0F0F0F
    spread = (spread | (spread << 2)) & 0x3333333333333333
    return (spread | (spread << 1)) & 0x5555555555555555


@inline
def _store_bits(out: Any, at: Any, bits: Any, count: Any) -> None:
    """Write the lowest `count` bytes of an integer, the lowest first."""
    for i in range(count):
        out[at + i] = (bits >> (8 * i)) & 0xFF
