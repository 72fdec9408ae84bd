"""Decoders of iq2_*, iq3_* and iq1_*, in plain NumPy, equal to ggml's `dequantize_row_*`.

A group of eight or four weights is a point of a grid (see `grids`), an index into which is cut into its lower
eight bits and the rest; s are scales of a few bits:

    type      block               bits of an index   scales of      weight =
    iq3_s     d qs qh signs sc    8 + 1              8 x 32         (d (1 + 2 s)) (sign point)
    iq3_xxs   d qs words          8                  8 x 32         (d (0.5 + s) / 2) (sign point)
    iq2_s     d qs signs qh sc    8 + 2              16 x 16        (d (0.5 + s) / 4) (sign point)
    iq2_xs    d qs sc             9                  16 x 16        (d (0.5 + s) / 4) (sign point)
    iq2_xxs   d words             8                  8 x 32         (d (0.5 + s) / 4) (sign point)
    iq1_m     qs qh sc            8 + 3              16 x 16        (d (1 + 2 s)) (point +- 1/8)
    iq1_s     d qs qh             8 + 3              8 x 32         (d (1 + 2 s)) (point +- 1/8)

The brackets are ggml's order of operations.
Layouts: llama.cpp b11434, `ggml/src/ggml-common.h`; arithmetic: `ggml/src/ggml-quants.c`.

Every function takes `blocks` (n, block bytes) and fills `out` (n, 256).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.decode import fields, half_at, single_bits
from ggplan.quants.grids import even_signs, grid, signs

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_SHIFT = np.float32(0.125)


def decode_iq3_s(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:u8[64] qh:u8[8] signs:u8[32] scales:u8[4]`: bit i of qh is the ninth of index i."""
    index = single_bits(blocks[:, 66:74]).astype(np.uint16) << 8
    index |= blocks[:, 2:66]
    scale = half_at(blocks, 0) * (1 + 2 * fields(blocks[:, 106:110], 1, 4))
    _scale(_signed(grid("iq3_s")[index], signs()[blocks[:, 74:106]]), scale, out)


def decode_iq3_xxs(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:u8[64] words:u32[8]`: a word has four times seven signs, and the scale in its upper bits."""
    chosen_signs, s = _signs_and_scale(_words(blocks[:, 66:98]))
    scale = half_at(blocks, 0) * (np.float32(0.5) + s) * np.float32(0.5)
    _scale(_signed(grid("iq3_xxs")[blocks[:, 2:66]], chosen_signs), scale, out)


def decode_iq2_s(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:u8[32] signs:u8[32] qh:u8[8] scales:u8[8]`: pair i of qh's bits is the upper of index i."""
    index = fields(blocks[:, 66:74], 1, 2).astype(np.uint16) << 8
    index |= blocks[:, 2:34]
    scale = _quarter_scale(blocks, fields(blocks[:, 74:82], 1, 4))
    _scale(_signed(grid("iq2_s")[index], signs()[blocks[:, 34:66]]), scale, out)


def decode_iq2_xs(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:u16[32] scales:u8[8]`: nine bits of index, above them seven signs."""
    q = np.ascontiguousarray(blocks[:, 2:66]).view("<u2")
    scale = _quarter_scale(blocks, fields(blocks[:, 66:74], 1, 4))
    _scale(_signed(grid("iq2_xs")[q & 511], even_signs()[q >> 9]), scale, out)


def decode_iq2_xxs(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 words:u32[16]`: in turn a word of four indices and one of signs and scale, as in iq3_xxs."""
    pairs = np.ascontiguousarray(blocks[:, 2:66]).reshape(-1, 8, 8)
    chosen_signs, s = _signs_and_scale(_words(pairs[:, :, 4:].reshape(-1, 32)))
    index = pairs[:, :, :4].reshape(-1, 32)
    _scale(_signed(grid("iq2_xxs")[index], chosen_signs), _quarter_scale(blocks, s), out)


def decode_iq1_m(blocks: Bytes, out: F32Array) -> None:
    """`qs:u8[32] qh:u8[16] scales:u16[4]`: half a byte of qh is three bits of an index and a sign of 1/8.

    The upper four bits of the four words of scales are together d; below are four scales of three bits.
    """
    words = np.ascontiguousarray(blocks[:, 48:56]).view("<u2")
    quarters = words >> 12 << (4 * np.arange(4, dtype=np.uint16))
    d = np.bitwise_or.reduce(quarters, axis=1, keepdims=True).view(np.float16).astype(np.float32)
    s = (words[:, :, np.newaxis] >> (3 * np.arange(4, dtype=np.uint16)) & 7).reshape(-1, 16)
    high = fields(blocks[:, 32:48], 1, 4)
    _shift_and_scale(blocks[:, :32], high & 7, high >> 3, d * (1 + 2 * s).astype(np.float32), out)


def decode_iq1_s(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:u8[32] qh:u16[8]`: four times three bits of an index, three of a scale, a sign of 1/8."""
    words = np.ascontiguousarray(blocks[:, 34:50]).view("<u2")
    high = (words[:, :, np.newaxis] >> (3 * np.arange(4, dtype=np.uint16)) & 7).reshape(-1, 32)
    scale = half_at(blocks, 0) * (1 + 2 * (words >> 12 & 7)).astype(np.float32)
    _shift_and_scale(blocks[:, 2:34], high, (words >> 15).repeat(4, axis=1), scale, out)


def _words(packed: Bytes) -> NDArray[np.uint32]:
    return np.ascontiguousarray(packed).view("<u4")


def _signs_and_scale(words: NDArray[np.uint32]) -> tuple[NDArray[np.int8], F32Array]:
    """Four times seven signs, (n, 8, 4, 8), and above them the scale's four bits, of words (n, 8)."""
    sevens = words[:, :, np.newaxis] >> (7 * np.arange(4, dtype=np.uint32)) & 127
    return even_signs()[sevens], (words >> 28).astype(np.float32)


def _quarter_scale(blocks: Bytes, s: NDArray[np.uint8] | F32Array) -> F32Array:
    """The scales of iq2."""
    return half_at(blocks, 0) * (np.float32(0.5) + s) * np.float32(0.25)


def _signed(points: NDArray[np.int8], chosen_signs: NDArray[np.int8]) -> NDArray[np.int8]:
    return points.reshape(chosen_signs.shape) * chosen_signs


def _shift_and_scale(
    low: Bytes, high: NDArray[np.integer], negative: NDArray[np.integer], scale: F32Array, out: F32Array
) -> None:
    """`out = scale * (point +- 1/8)`, given the indices in two parts, and which shifts are down."""
    points = grid("iq1_s")[high.astype(np.uint16) << 8 | low]
    shift = np.where(negative, -_SHIFT, _SHIFT)
    _scale(points + shift[:, :, np.newaxis], scale, out)


def _scale(levels: NDArray[np.int8] | F32Array, scale: F32Array, out: F32Array) -> None:
    """`out = scale * levels`, with one scale (n, k) for each of k equal parts of a superblock."""
    parts = (*scale.shape, 256 // scale.shape[1])
    np.multiply(levels.reshape(parts), scale[:, :, np.newaxis], out=out.reshape(parts))
