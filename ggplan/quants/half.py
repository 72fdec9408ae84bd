"""IEEE half precision as ggml converts it: the scales of nearly every block are stored in 16 bits.

ggml's portable routines (ggml-impl.h, after Marat Dukhan's FP16) round to nearest even, keep denormals and
send what is too large to infinity, as NumPy and the F16C instructions do; they differ only in a nan's
payload. They are here because not every machine that Numba supports gives a kernel a `float16`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.kernels import inline
from ggplan.quants.vector import absolute, bits_of, float_of_bits, lane, maximum, select, splat

_2_POW_112 = np.float32(2.0**112)
_2_POW_MINUS_110 = np.float32(2.0**-110)
_2_POW_MINUS_112 = np.float32(2.0**-112)
_HALF = np.float32(0.5)


@inline
def halves_of(values: Any) -> Any:
    """Round float32 lanes to half precision; the halves' bits in int32 lanes.

    Adding the power of two whose last place is that of the rounded value makes the float adder itself drop
    the surplus bits, to nearest even. Below 2^-14, where halves are denormal, that power is fixed.
    """
    bits = bits_of(values)
    magnitude = bits & 0x7FFFFFFF
    exponent = maximum(magnitude & 0x7F800000, 0x38800000)
    in_range = absolute(values) * _2_POW_112 * _2_POW_MINUS_110  # four times the value; too large: inf
    rounded = bits_of(float_of_bits(exponent + 0x07800000) + in_range)
    half = ((rounded >> 13) & 0x7C00) + (rounded & 0x0FFF)
    half = select(magnitude > 0x7F800000, 0x7E00, half)  # nan
    return ((bits >> 16) & 0x8000) | half


@inline
def floats_of(halves: Any) -> Any:
    """The float32 lanes that equal halves, given the halves' bits in int32 lanes."""
    magnitude = (halves & 0x7FFF) << 13
    # A denormal is the fraction of a float that begins at 0.5; else the exponent is rebiased in two steps,
    # 0xE0 up in the field and 2^-112 down, so that inf and nan stay what they are.
    denormal = float_of_bits((magnitude >> 13) | (126 << 23)) - _HALF
    normal = float_of_bits(magnitude + (0xE0 << 23)) * _2_POW_MINUS_112
    value = select(magnitude < 1 << 23, denormal, normal)
    return float_of_bits(bits_of(value) | ((halves & 0x8000) << 16))


@inline
def half_from_float(value: Any) -> Any:
    """Round a float32 to half precision; the half's bits as a uint16."""
    return np.uint16(lane(halves_of(splat(value, 1)), 0))


@inline
def float_from_half(half: Any) -> Any:
    """The float32 that equals a half, given the half's bits as a uint16."""
    return lane(floats_of(splat(np.int32(half), 1)), 0)
