"""Encoders of mxfp4 and nvfp4: four-bit floats (E2M1) under an eight-bit scale.

    mxfp4   e:u8 qs:u8[16]       32 weights     scale = 2^(e - 128)
    nvfp4   d:u8[4] qs:u8[32]    4 x 16         scale = d / 2, a UE4M3: 4 bits of exponent, 3 of fraction

A weight is scale x level, and the levels are 0, 1, 2, 3, 4, 6, 8, 12 and their negatives: twice the numbers
of E2M1, which is why the scales are halves. Bit 3 of a level's index is the sign. Of a scale's weights, the
first half lies in the low four bits of its bytes, the second half in the high ones.

The scale follows from the largest magnitude alone. In mxfp4 it is the power of two that puts that weight at 8
to 16; in nvfp4 a sixth of it, rounded to UE4M3, and 448 from 256 on. Then each weight takes the level of the
smallest error, the first of equals. Where weights lie far beyond the largest scale, or near the end of
float32, errors are equal by rounding or infinite: so they are worked out and compared as in ggml, not the
weights with thresholds. Memory sets the speed all the same.

From llama.cpp b11434, `quantize_row_mxfp4_ref` and `quantize_row_nvfp4_ref` in `ggml/src/ggml-quants.c` and
`ggml_fp32_to_ue4m3` in `ggml-impl.h`; the formats are of the OCP's Microscaling Formats 1.0 and of NVIDIA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.decode import E8M0_HALVES, FP4_LEVELS, UE4M3_HALVES
from ggplan.quants.layout32 import flat
from ggplan.quants.memory import load_weights, store
from ggplan.quants.vector import absolute, bits_of, lane, largest_lane, maximum, select, splat

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_6 = np.float32(6)
_512 = np.float32(512)
_MAGNITUDES = np.array(FP4_LEVELS[:8], np.float32)
_NINE_BITS = 0x7FC000
_LARGEST_UE4M3 = 0x7E  # 448; 0x7F is a nan


def encode_mxfp4(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 17)."""
    _mxfp4(flat(rows), out.reshape(-1))


def encode_nvfp4(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 64 * 36)."""
    _nvfp4(flat(rows), out.reshape(-1))


@kernel
def _mxfp4(weights: Any, out: Any) -> None:
    for block in range(weights.size // 32):
        start = block * 32
        at = block * 17
        largest = largest_lane(absolute(load_weights(weights, start, 32)))
        exponent = 0
        if largest > _ZERO:
            # In C, a negative number becomes a byte as x86-64 has it: its lowest eight bits.
            exponent = (_floor_log2(largest) - 2 + 127) & 0xFF
        out[at] = exponent
        scale = E8M0_HALVES[exponent]
        low = nearest_level(load_weights(weights, start, 16), scale)
        high = nearest_level(load_weights(weights, start + 16, 16), scale)
        store(out, at + 1, low | (high << 4))


@kernel
def _nvfp4(weights: Any, out: Any) -> None:
    for block in range(weights.size // 64):
        at = block * 36
        for part in range(4):
            start = block * 64 + part * 16
            low = load_weights(weights, start, 8)
            high = load_weights(weights, start + 8, 8)
            largest = largest_lane(maximum(absolute(low), absolute(high)))
            byte = _ue4m3(np.float32(largest / _6))
            out[at + part] = byte
            scale = UE4M3_HALVES[byte]
            store(out, at + 4 + 8 * part, nearest_level(low, scale) | (nearest_level(high, scale) << 4))


@inline
def _floor_log2(value: Any) -> Any:
    """C's floorf(log2f(value)) of a positive float32: nearly always its exponent.

    log2f rounds to float32, so just below a power of two it gives that power. How near that has to be depends
    on the power, but nine bits of the fraction are ones there.
    """
    bits = lane(bits_of(splat(value, 1)), 0)
    if bits < 1 << 23 or bits & _NINE_BITS == _NINE_BITS:
        return int(np.floor(np.float32(np.log2(np.float64(value)))))
    return int(bits >> 23) - 127


@inline
def _ue4m3(value: Any) -> Any:
    """The byte of a non-negative float32."""
    bits = lane(bits_of(splat(value, 1)), 0)
    if bits < 121 << 23:  # below 2^-6: denormal, in steps of 2^-9
        return min(int(value * _512 + _HALF), 7)
    rounded = (bits >> 20) + ((bits >> 19) & 1) - (120 << 3)
    return rounded if rounded < 15 << 3 else _LARGEST_UE4M3


@inline
def nearest_level(weights: Any, scale: Any) -> Any:
    """The four bits of each lane, as int32."""
    magnitude = absolute(weights)
    error = magnitude
    index = bits_of(magnitude) & 0
    for i in range(1, 8):
        other = absolute(np.float32(_MAGNITUDES[i] * scale) - magnitude)
        index = select(other < error, i, index)
        error = select(other < error, other, error)
    return select((weights < _ZERO) & (index > 0), index | 8, index)
