"""tq1_0 and tq2_0: superblocks of 256 weights that are -d, 0 or d, code 0, 1 or 2.

    tq1_0   qs:48 bytes qh:4 bytes d:half      five weights in a byte, four in each byte of qh
    tq2_0   qs:64 bytes d:half                 four weights in a byte, two bits each

tq2_0: byte j of each 32 holds weights j, j + 32, j + 64 and j + 96 of 128, the first in the lowest bits.
tq1_0: the codes of a byte are the digits to base three, the first the highest, of a number n below 3^5,
stored as ceil(256 n / 243). That is a binary fraction, of which times 3 carries out the first digit, and so
on. The first 32 bytes hold weights j + 32 i, the next 16 weights 160 + j + 16 i, and qh 240 + j + 4 i, with
a last digit of 0.

From llama.cpp's `ggml/src/ggml-common.h` (block_tq1_0, block_tq2_0) and `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.formats.fields import Blocks, Bytes, F32Array, block_weights, halves_at, split_bits
from ggplan.quants.kernels import inline
from ggplan.quants.memory import integers_at, load, shorts_at, store, store_bytes
from ggplan.quants.searches import best_scale, direct
from ggplan.quants.searches.best_scale import ScaleTrials, improver
from ggplan.quants.searches.blocks import Format, finder, functions_of, no_group_step, packer
from ggplan.quants.vector import lane


@inline
def _pack_tq1_0(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    first = _fractions(codes, 0, 5, 8)
    second = _fractions(codes, 160, 5, 4)
    third = _fractions(codes, 240, 4, 1)
    for i in range(8):
        store_bytes(out, 4 * i, lane(first, i), 4)
    for i in range(4):
        store_bytes(out, 32 + 4 * i, lane(second, i), 4)
    store_bytes(out, 48, lane(third, 0), 4)
    store_bytes(out, 52, shorts_at(scales, 0)[0], 2)


@inline
def _fractions(codes: Any, start: Any, digits: Any, count: Any) -> Any:
    """The bytes of numbers whose digits are codes 4 `count` (a constant) apart, four in each int32 lane."""
    numbers = load(integers_at(codes, 0), start // 4, count)
    for i in range(1, digits):
        numbers = numbers + numbers + numbers + load(integers_at(codes, 0), start // 4 + count * i, count)
    if digits == 4:
        numbers = numbers + numbers + numbers
    # ceil(256 n / 243) = n + ceil(13 n / 243), divided by way of a reciprocal.
    total = numbers
    for shift in range(0, 32, 8):
        total = total + ((((((numbers >> shift) & 255) * 13 + 242) * 135) >> 15) << shift)
    return total


@inline
def _pack_tq2_0(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    first, second = _pairs(codes, 0), _pairs(codes, 128)
    store(out, 0, first)
    store(out, 32, second)
    store_bytes(out, 64, shorts_at(scales, 0)[0], 2)


@inline
def _pairs(codes: Any, start: Any) -> Any:
    """The bytes of 128 codes."""
    packed = load(codes, start, 32)
    for i in range(1, 4):
        packed = packed | (load(codes, start + 32 * i, 32) << (2 * i))
    return packed


def _unpack_tq1_0(blocks: Bytes) -> Blocks:
    codes = np.empty((len(blocks), 256), np.uint8)
    for start, end, weight, digits in ((0, 32, 0, 5), (32, 48, 160, 5), (48, 52, 240, 4)):
        fraction = blocks[:, start:end].copy()
        for _ in range(digits):
            # What 3 x fraction carries over 256.
            np.add(fraction > 85, fraction > 170, out=codes[:, weight : weight + end - start], dtype=np.uint8)
            fraction *= 3
            weight += end - start
    return Blocks(halves_at(blocks, 52), codes)


def _unpack_tq2_0(blocks: Bytes) -> Blocks:
    return Blocks(halves_at(blocks, 64), split_bits(blocks[:, :64], 32, 2))


def _weights(fields: Blocks, out: F32Array) -> None:
    block_weights(fields.codes.view(np.int8) - np.int8(1), fields.scales, out)


_COMMON: Any = {
    "size": 256,
    "scale": (np.float16, 1),
    "highest": 2,
    "improve": improver(best_scale.even, -1, 1, ScaleTrials(1.7, 0.9, 2)),
    "weights": _weights,
}
TQ1_0 = Format(
    n_bytes=54, plain=finder(no_group_step, direct.ternary, _pack_tq1_0, 256, 2),
    pack=packer(_pack_tq1_0, 256, 2), unpack=_unpack_tq1_0, **_COMMON,
)  # fmt: skip
TQ2_0 = Format(
    n_bytes=66, plain=finder(no_group_step, direct.ternary, _pack_tq2_0, 256, 2),
    pack=packer(_pack_tq2_0, 256, 2), unpack=_unpack_tq2_0, **_COMMON,
)  # fmt: skip

encode_tq1_0, encode_best_tq1_0, decode_tq1_0 = functions_of(TQ1_0)
encode_tq2_0, encode_best_tq2_0, decode_tq2_0 = functions_of(TQ2_0)
