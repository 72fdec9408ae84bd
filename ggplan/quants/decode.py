"""Decoders of the block types: bytes to float32, in plain NumPy, equal to ggml's `dequantize_row_*`.

A block holds small integers q and a scale or two; a weight is `scale * q`, `scale * q + minimum` or
`scale * table[q]`. In a superblock of 256 the sub-blocks' scales are themselves small integers under a
half-precision scale of the superblock:

    type     block            weights           weight =
    q4_0     d qs             32                d (q - 8)
    q4_1     d m qs           32                d q + m
    q5_0     d qh qs          32                d (q - 16)
    q5_1     d m qh qs        32                d q + m
    q8_0     d qs             32                d q
    iq4_nl   d qs             32                d IQ4_NL_LEVELS[q]
    iq4_xs   d sh sl qs       8 x 32            (d (sc - 32)) IQ4_NL_LEVELS[q]
    q2_K     sc qs d dmin     16 x 16           (d sc) q - (dmin m)
    q3_K     hm qs sc d       16 x 16           (d (sc - 32)) (q - 4)
    q4_K     d dmin sc qs     8 x 32            (d sc) q - (dmin m)
    q5_K     d dmin sc qh qs  8 x 32            (d sc) q - (dmin m)
    q6_K     ql qh sc d       16 x 16           (d sc) (q - 32)
    mxfp4    e qs             32                E8M0_HALVES[e] FP4_LEVELS[q]
    nvfp4    d qs             4 x 16            UE4M3_HALVES[d] FP4_LEVELS[q]
    tq1_0    qs qh d          256               d (q - 1)
    tq2_0    qs d             256               d (q - 1)
    q1_0     d qs             128               d (2 q - 1)
    q2_0     d qs             64                d (q - 1)

The brackets are ggml's order of operations; each rounds to float32, and the order is part of the value.
Layouts: llama.cpp b11434, `ggml/src/ggml-common.h`; arithmetic: `ggml/src/ggml-quants.c`.

Every function takes `blocks` (n, block bytes) and fills `out` (n, block size).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# The levels of iq4_nl, denser near zero: about as likely as each other for weights of a bell-shaped density.
IQ4_NL_LEVELS: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_IQ4_NL = np.array(IQ4_NL_LEVELS, np.float32)

# Twice the numbers of the four-bit float E2M1; the scales of mxfp4 and nvfp4 are halved in return.
FP4_LEVELS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_FP4 = np.array(FP4_LEVELS, np.float32)


def _ue4m3(byte: int) -> float:
    """The number of a UE4M3 byte, whose highest bit means nothing; ggml has 0 for the nan 0x7F."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    if byte == 0x7F:
        return 0
    return (8 + fraction) * 2.0 ** (exponent - 10) if exponent else fraction * 2.0**-9


# Half the number that each byte is as a scale, of mxfp4 (255 is no nan in ggml) and of nvfp4.
E8M0_HALVES: Final = (2.0 ** (np.arange(256) - 128)).astype(np.float32)
UE4M3_HALVES: Final = np.array([_ue4m3(byte) / 2 for byte in range(256)], np.float32)


def decode_q4_0(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:u8[16]`: byte j holds weight j below and weight j + 16 above."""
    q = fields(blocks[:, 2:18], 16, 4).view(np.int8)
    q -= 8
    np.multiply(q, half_at(blocks, 0), out=out)


def decode_q4_1(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 m:f16 qs:u8[16]`, packed as in q4_0."""
    np.multiply(fields(blocks[:, 4:20], 16, 4), half_at(blocks, 0), out=out)
    out += half_at(blocks, 2)


def decode_q5_0(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qh:u8[4] qs:u8[16]`: q4_0's four bits, and bit j of qh is the fifth of weight j."""
    q = fields(blocks[:, 6:22], 16, 4)
    q |= single_bits(blocks[:, 2:6]) << 4
    signed = q.view(np.int8)
    signed -= 16
    np.multiply(signed, half_at(blocks, 0), out=out)


def decode_q5_1(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 m:f16 qh:u8[4] qs:u8[16]`, packed as in q5_0."""
    q = fields(blocks[:, 8:24], 16, 4)
    q |= single_bits(blocks[:, 4:8]) << 4
    np.multiply(q, half_at(blocks, 0), out=out)
    out += half_at(blocks, 2)


def decode_q8_0(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:i8[32]`."""
    np.multiply(blocks[:, 2:].view(np.int8), half_at(blocks, 0), out=out)


def decode_iq4_nl(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:u8[16]`, packed as in q4_0; q is an index into the sixteen levels."""
    np.take(_IQ4_NL, fields(blocks[:, 2:18], 16, 4), out=out, mode="clip")
    out *= half_at(blocks, 0)


def decode_iq4_xs(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 scales_h:u16 scales_l:u8[4] qs:u8[128]`: sixteen bytes of each sub-block, packed as in q4_0.

    Sub-block i has four bits of its six-bit scale in scales_l and the two high ones at bit 2 i of scales_h.
    """
    sc = fields(blocks[:, 4:8], 1, 4)
    sc |= fields(blocks[:, 2:4], 1, 2) << 4
    scale = half_at(blocks, 0) * (sc.view(np.int8) - np.int8(32))
    np.take(_IQ4_NL, fields(blocks[:, 8:136], 16, 4), out=out, mode="clip")
    weights = out.reshape(-1, 8, 32)
    weights *= scale[:, :, np.newaxis]


def decode_q2_k(blocks: Bytes, out: F32Array) -> None:
    """`scales:u8[16] qs:u8[64] d:f16 dmin:f16`: a scale's low four bits are sc, the high four m."""
    scales = blocks[:, :16]
    scale = half_at(blocks, 80) * (scales & 15)
    minimum = half_at(blocks, 82) * (scales >> 4)
    _scale_and_shift(fields(blocks[:, 16:80], 32, 2), scale, minimum, out)


def decode_q3_k(blocks: Bytes, out: F32Array) -> None:
    """`hmask:u8[32] qs:u8[64] scales:u8[12] d:f16`: two low bits in qs, the third in hmask.

    Of the six-bit scales, eight bytes hold the low four bits of sixteen, four bytes the two high bits.
    """
    q = fields(blocks[:, 32:96], 32, 2)
    q |= fields(blocks[:, :32], 32, 1) << 2
    sc = fields(blocks[:, 96:104], 8, 4)
    sc |= fields(blocks[:, 104:108], 4, 2) << 4
    scale = half_at(blocks, 108) * (sc.view(np.int8) - np.int8(32))
    _scale_and_shift(q.view(np.int8) - np.int8(4), scale, None, out)


def decode_q4_k(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 dmin:f16 scales:u8[12] qs:u8[128]`: 32 bytes hold a sub-block below and the next above."""
    _scale_and_shift(fields(blocks[:, 16:144], 32, 4), *_scales_and_minima(blocks), out)


def decode_q5_k(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 dmin:f16 scales:u8[12] qh:u8[32] qs:u8[128]`: bit i of qh[j] is the fifth of weight 32 i + j."""
    q = fields(blocks[:, 48:176], 32, 4)
    q |= fields(blocks[:, 16:48], 32, 1) << 4
    _scale_and_shift(q, *_scales_and_minima(blocks), out)


def decode_q6_k(blocks: Bytes, out: F32Array) -> None:
    """`ql:u8[128] qh:u8[64] scales:i8[16] d:f16`: four low bits in ql, two high ones in qh."""
    q = fields(blocks[:, :128], 64, 4)
    q |= fields(blocks[:, 128:192], 32, 2) << 4
    scale = half_at(blocks, 208) * blocks[:, 192:208].view(np.int8)
    _scale_and_shift(q.view(np.int8) - np.int8(32), scale, None, out)


def decode_mxfp4(blocks: Bytes, out: F32Array) -> None:
    """`e:u8 qs:u8[16]`, packed as in q4_0."""
    np.take(_FP4, fields(blocks[:, 1:17], 16, 4), out=out, mode="clip")
    out *= E8M0_HALVES[blocks[:, :1]]


def decode_nvfp4(blocks: Bytes, out: F32Array) -> None:
    """`d:u8[4] qs:u8[32]`: each scale's 8 bytes hold weight j below and weight j + 8 above."""
    levels = _FP4[fields(blocks[:, 4:36], 8, 4)].reshape(-1, 4, 16)
    np.multiply(levels, UE4M3_HALVES[blocks[:, :4, np.newaxis]], out=out.reshape(-1, 4, 16))


def decode_tq1_0(blocks: Bytes, out: F32Array) -> None:
    """`qs:u8[48] qh:u8[4] d:f16`: a byte is a fraction of 256, whose digits to base three are q."""
    q = np.empty((len(blocks), 256), np.int8)
    for start, end, weight, digits in ((0, 32, 0, 5), (32, 48, 160, 5), (48, 52, 240, 4)):
        fraction = blocks[:, start:end].copy()
        for _ in range(digits):
            digit = q[:, weight : weight + end - start]
            # What 3 x fraction carries over 256, less 1.
            np.add(fraction > 85, fraction > 170, out=digit, dtype=np.int8)
            digit -= 1
            fraction *= 3
            weight += end - start
    np.multiply(q, half_at(blocks, 52), out=out)


def decode_tq2_0(blocks: Bytes, out: F32Array) -> None:
    """`qs:u8[64] d:f16`: of each 32 bytes first all lowest pairs of bits, then all next ones."""
    q = fields(blocks[:, :64], 32, 2).view(np.int8)
    q -= 1
    np.multiply(q, half_at(blocks, 64), out=out)


def decode_q1_0(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:u8[16]`: bit j of all is weight j."""
    q = single_bits(blocks[:, 2:18]).view(np.int8)
    q <<= 1
    q -= 1
    np.multiply(q, half_at(blocks, 0), out=out)


def decode_q2_0(blocks: Bytes, out: F32Array) -> None:
    """`d:f16 qs:u8[16]`: byte j holds weights 4 j to 4 j + 3, the first in the lowest bits."""
    q = fields(blocks[:, 2:18], 1, 2).view(np.int8)
    q -= 1
    np.multiply(q, half_at(blocks, 0), out=out)


def half_at(blocks: Bytes, at: int) -> F32Array:
    """The half-precision number at byte `at` of each block, as (n, 1) float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def fields(packed: Bytes, stride: int, bits: int) -> Bytes:
    """Unpack small integers: of each `stride` bytes first all lowest fields, then all next ones, ..."""
    n, size = packed.shape
    per_byte = 8 // bits
    unpacked = np.empty((n, size // stride, per_byte, stride), np.uint8)
    groups = packed.reshape(n, size // stride, stride)
    for i in range(per_byte):
        np.right_shift(groups, i * bits, out=unpacked[:, :, i])
    unpacked &= (1 << bits) - 1
    return unpacked.reshape(n, size * per_byte)


def single_bits(packed: Bytes) -> Bytes:
    """Unpack single bits in order, the lowest of each byte first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _scales_and_minima(blocks: Bytes) -> tuple[F32Array, F32Array]:
    """The eight scales and minima of q4_K and q5_K, (n, 8) each.

    Twelve bytes hold sixteen six-bit numbers: bytes 0-3 the first four sc, bytes 4-7 the first four m; the
    two bits left over in each are high ones of the last four, whose low ones share bytes 8-11, m above sc.
    """
    first_sc, first_m, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    sc = np.concatenate((first_sc & 63, (last & 15) | (first_sc >> 6 << 4)), axis=1)
    m = np.concatenate((first_m & 63, (last >> 4) | (first_m >> 6 << 4)), axis=1)
    return half_at(blocks, 0) * sc, half_at(blocks, 2) * m


def _scale_and_shift(
    q: NDArray[np.integer], scale: F32Array, minimum: F32Array | None, out: F32Array
) -> None:
    """`out = scale * q - minimum`, with one scale (n, k) for each of k equal parts of a superblock."""
    parts = (*scale.shape, -1)
    weights = out.reshape(parts)
    np.multiply(q.reshape(parts), scale[:, :, np.newaxis], out=weights)
    if minimum is not None:
        weights -= minimum[:, :, np.newaxis]
