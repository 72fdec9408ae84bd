"""The float types: f32, f16 and bf16, to and from float32.

    f32    sign 1, exponent 8, fraction 23      copied
    f16    sign 1, exponent 5, fraction 10      largest 65504; from 65520 on, infinity
    bf16   sign 1, exponent 8, fraction 7       the upper half of an f32

Both short types round to the nearest value, ties to the even one, and keep subnormal numbers. The bits
are those of `ggml_compute_fp32_to_fp16` and `ggml_compute_fp32_to_bf16` (llama.cpp b11434,
`ggml/src/ggml-impl.h`) for every finite input; NaN is kept out before this point.

The importance of a column means nothing to these types; it is a parameter because all encoders have one
signature.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.codecs import Rows
from ggplan.quants.half import halves_of
from ggplan.quants.kernels import I64, F32s, U16s, inline, kernel
from ggplan.quants.memory import load, store
from ggplan.quants.vector import bits_of, float_of_bits

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_LANES = 32


def encode_f32(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Copy `rows` (n, columns) to `out` (n, 4 columns)."""
    np.copyto(out.view(np.float32), rows)


def encode_f16(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Round `rows` (n, columns) to halves in `out` (n, 2 columns)."""
    _f16(rows, rows.size, out.view(np.uint16))


def encode_bf16(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Round `rows` (n, columns) to bfloat16 in `out` (n, 2 columns)."""
    _bf16(rows, rows.size, out.view(np.uint16))


@kernel
def _f16(weights: F32s, count: I64, out: U16s) -> None:
    whole = count // _LANES * _LANES
    for at in range(0, whole, _LANES):
        store(out, at, halves_of(load(weights, at, _LANES)))
    for at in range(whole, count):
        store(out, at, halves_of(load(weights, at, 1)))


@kernel
def _bf16(weights: F32s, count: I64, out: U16s) -> None:
    whole = count // _LANES * _LANES
    for at in range(0, whole, _LANES):
        store(out, at, _upper_halves(load(weights, at, _LANES)))
    for at in range(whole, count):
        store(out, at, _upper_halves(load(weights, at, 1)))


@inline
def _upper_halves(values: Any) -> Any:
    """The bits of bfloat16 in the low 16 bits of int32 lanes.

    Adding 0x7FFF carries into the upper half what is above one half of its last bit; adding that last bit
    too carries the ties above odd numbers.
    """
    bits = bits_of(values)
    return (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16


def decode_f32(blocks: Bytes, out: F32Array) -> None:
    """Copy `blocks` (n, 4) to `out` (n, 1)."""
    np.copyto(out, blocks.view(np.float32))


def decode_f16(blocks: Bytes, out: F32Array) -> None:
    """Widen the halves in `blocks` (n, 2) to `out` (n, 1)."""
    np.copyto(out, blocks.view(np.float16))


def decode_bf16(blocks: Bytes, out: F32Array) -> None:
    """Widen the bfloat16 numbers in `blocks` (n, 2) to `out` (n, 1)."""
    _widened(blocks.view("<u2"), out.size, out)


def widened(rows: Rows) -> F32Array:
    """`rows` as float32."""
    if rows.dtype != np.uint16:
        return cast(F32Array, rows)
    wide = np.empty(rows.shape, np.float32)
    _widened(np.ascontiguousarray(rows), wide.size, wide)
    return wide


def narrowed(rows: F32Array) -> NDArray[np.uint16]:
    """The bits of `rows` rounded to bfloat16."""
    bits = np.empty(rows.shape, np.uint16)
    _bf16(np.ascontiguousarray(rows).reshape(-1), rows.size, bits.reshape(-1))
    return bits


@kernel
def _widened(halves: U16s, count: I64, out: F32s) -> None:
    whole = count // _LANES * _LANES
    for at in range(0, whole, _LANES):
        store(out, at, float_of_bits(load(halves, at, _LANES) << 16))
    for at in range(whole, count):
        store(out, at, float_of_bits(load(halves, at, 1) << 16))
