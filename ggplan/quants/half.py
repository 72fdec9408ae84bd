"""IEEE half precision as ggml converts it: the scales of nearly every block are stored in 16 bits.

ggml's portable routines (ggml-impl.h, after Marat Dukhan's FP16) round to nearest even, keep denormals and
send what is too large to infinity, as NumPy and the F16C instructions do; they differ only in a nan's
payload. They are here because a kernel has no `float16` on every machine that Numba supports.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ggplan.quants.accelerate import inline, intrinsic

_2_POW_112 = np.float32(2.0**112)
_2_POW_MINUS_110 = np.float32(2.0**-110)
_2_POW_MINUS_112 = np.float32(2.0**-112)
_HALF = np.float32(0.5)


@intrinsic
def float_bits(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def float_from_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 that has these bits (a uint32)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@inline
def half_from_float(value: Any) -> Any:
    """Round a float32 to half precision; the half's bits as a uint16.

    Adding a power of two that is 2^13 steps above the value's own exponent makes the float adder itself drop
    the 13 surplus bits, rounding to nearest even.
    """
    bits = float_bits(value)
    twice = np.uint32(bits << np.uint32(1))  # the sign shifted out
    exponent = max(np.uint32(twice & np.uint32(0xFF000000)), np.uint32(0x71000000))
    scaled = np.float32(np.float32(abs(value) * _2_POW_112) * _2_POW_MINUS_110)  # too large: inf
    rounded = np.float32(
        float_from_bits(np.uint32((exponent >> np.uint32(1)) + np.uint32(0x07800000))) + scaled
    )
    rounded_bits = float_bits(rounded)
    magnitude = np.uint32(
        ((rounded_bits >> np.uint32(13)) & np.uint32(0x7C00)) + (rounded_bits & np.uint32(0x0FFF))
    )
    if twice > np.uint32(0xFF000000):
        magnitude = np.uint32(0x7E00)
    return np.uint16(((bits & np.uint32(0x80000000)) >> np.uint32(16)) | magnitude)


@inline
def float_from_half(half: Any) -> Any:
    """The float32 that equals a half, given the half's bits as a uint16."""
    bits = np.uint32(np.uint32(half) << np.uint32(16))
    twice = np.uint32(bits << np.uint32(1))
    if twice < np.uint32(1 << 27):  # zero or denormal: read it as 0.5 + value, take the 0.5 away
        denormal = float_from_bits(np.uint32((twice >> np.uint32(17)) | np.uint32(126 << 23)))
        magnitude = float_bits(np.float32(denormal - _HALF))
    else:  # rebias the exponent: 0xE0 in the field, then 2^-112, so that inf and nan stay what they are
        normal = float_from_bits(np.uint32((twice >> np.uint32(4)) + np.uint32(0xE0 << 23)))
        magnitude = float_bits(np.float32(normal * _2_POW_MINUS_112))
    return float_from_bits(np.uint32((bits & np.uint32(0x80000000)) | magnitude))
