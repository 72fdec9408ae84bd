"""The float types: f32, f16 and bf16, to and from float32, in plain NumPy.

    f32    sign 1, exponent 8, fraction 23      copied
    f16    sign 1, exponent 5, fraction 10      largest 65504; from 65520 on, infinity
    bf16   sign 1, exponent 8, fraction 7       the upper half of an f32

Both short types round to the nearest value, ties to the even one, and keep subnormal numbers. The bits
are those of `ggml_compute_fp32_to_fp16` and `ggml_compute_fp32_to_bf16` (llama.cpp b11434,
`ggml/src/ggml-impl.h`) for every finite input; NaN is kept out before this point.

NumPy's own cast to float16 gives the same bits, one number at a time. The integer steps below take whole
arrays and are twice as fast. Arrays go through in pieces that fit the cache, so the scratch memory does not
grow with the input.

The importance of a column means nothing to these types; it is a parameter because all encoders have one
signature.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]

_PIECE = 64 * 1024


def encode_f32(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Copy `rows` (n, columns) to `out` (n, 4 columns)."""
    np.copyto(out.view(np.float32), rows)


def encode_f16(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Round `rows` (n, columns) to halves in `out` (n, 2 columns).

    |x| = 1.f x 2^e. Adding 2^(e+13) leaves room for ten bits of the fraction: the float addition does the
    rounding. Below 2^-14, the smallest normal half, e stays put, and the fraction becomes subnormal.
    """
    for word, half, scratch in _pieces(rows, out):
        exponent = scratch[0]
        rounded = scratch[1]
        np.bitwise_and(word, 0x7FFFFFFF, out=rounded)
        np.minimum(rounded, 0x47800000, out=rounded)  # 65536 becomes infinity, as all beyond it
        np.bitwise_and(rounded, 0x7F800000, out=exponent)
        np.maximum(exponent, 0x38800000, out=exponent)
        exponent += 13 << 23
        rounded_float = rounded.view(np.float32)
        rounded_float += exponent.view(np.float32)
        # The low 16 bits of `rounded` are now the fraction with its leading one, 0 .. 2048. On top goes the
        # exponent: 13 was added above, the two formats' biases are 112 apart, the leading one counts 1.
        exponent >>= 13
        rounded += exponent
        rounded -= (13 + 112 + 1) << 10
        rounded &= 0x7FFF
        sign = exponent
        np.right_shift(word, 16, out=sign)
        sign &= 0x8000
        rounded |= sign
        half[...] = rounded


def encode_bf16(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Round `rows` (n, columns) to bfloat16 in `out` (n, 2 columns).

    Adding 0x7FFF carries into the upper half what is above one half of its last bit; adding that last bit
    too carries the ties above odd numbers.
    """
    for word, upper, scratch in _pieces(rows, out):
        rounded = scratch[0]
        np.right_shift(word, 16, out=rounded)
        rounded &= 1
        rounded += 0x7FFF
        rounded += word
        rounded >>= 16
        upper[...] = rounded


def decode_f32(blocks: Bytes, out: F32Array) -> None:
    """Copy `blocks` (n, 4) to `out` (n, 1)."""
    np.copyto(out, blocks.view(np.float32))


def decode_f16(blocks: Bytes, out: F32Array) -> None:
    """Widen the halves in `blocks` (n, 2) to `out` (n, 1)."""
    np.copyto(out, blocks.view(np.float16))


def decode_bf16(blocks: Bytes, out: F32Array) -> None:
    """Widen the bfloat16 numbers in `blocks` (n, 2) to `out` (n, 1)."""
    np.left_shift(blocks.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)


def _pieces(rows: F32Array, out: Bytes) -> Iterator[tuple[Words, NDArray[np.uint16], Words]]:
    """Cut contiguous rows into (float32 bits, their place in `out`, scratch for two times as many bits)."""
    words, shorts = rows.view(np.uint32).reshape(-1), out.view(np.uint16).reshape(-1)
    scratch = np.empty((2, min(_PIECE, words.size)), np.uint32)
    for start in range(0, words.size, _PIECE):
        piece = words[start : start + _PIECE]
        yield piece, shorts[start : start + _PIECE], scratch[:, : piece.size]
