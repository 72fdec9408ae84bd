"""q8_0, q4_0, q4_1, q5_0 and q5_1: blocks of 32 weights with evenly spaced levels.

    q8_0   d:half qs:32 bytes                          weight = d code, a signed byte
    q4_0   d:half qs:16 bytes                          weight = d (code - 8)
    q5_0   d:half qh:4 bytes qs:16 bytes               weight = d (code - 16)
    q4_1   d:half m:half qs:16 bytes                   weight = d code + m
    q5_1   d:half m:half qh:4 bytes qs:16 bytes        weight = d code + m

Byte j of qs has the lower four bits of the code of weight j in its lower half and of weight j + 16 in its
upper half. Bit j of qh is the fifth bit of the code of weight j.

From llama.cpp's `ggml/src/ggml-common.h` (block_q8_0 and similar functions) and `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ggplan.quants.formats.fields import (
    Blocks,
    Bytes,
    F32Array,
    block_weights,
    halves_at,
    split_bits,
    split_single_bits,
)
from ggplan.quants.kernels import inline
from ggplan.quants.memory import integers_at, load, shorts_at, store, store_bytes
from ggplan.quants.searches import best_minimum, best_scale, direct, weighted
from ggplan.quants.searches.best_scale import ScaleTrials, improver
from ggplan.quants.searches.blocks import Format, finder, functions_of, no_block_step, packer
from ggplan.quants.vector import lane_bits


@inline
def _pack_q8_0(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    store(out, 2, load(codes, 0, 32))
    store_bytes(out, 0, shorts_at(scales, 0)[0], 2)


@inline
def _pack_symmetric(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    _pack_codes(highest, codes, out, 2)
    store_bytes(out, 0, shorts_at(scales, 0)[0], 2)


@inline
def _pack_affine(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    _pack_codes(highest, codes, out, 4)
    store_bytes(out, 0, integers_at(scales, 0)[0], 4)


@inline
def _pack_codes(highest: Any, codes: Any, out: Any, at: Any) -> None:
    low, high = load(codes, 0, 16), load(codes, 16, 16)
    if highest > 15:
        store_bytes(out, at, lane_bits((low & 16) != 0) | (lane_bits((high & 16) != 0) << 16), 4)
        at += 4
    store(out, at, (low & 15) | (high << 4))


def _unpack(blocks: Bytes, n_scales: int, bits: int) -> Blocks:
    codes = split_bits(blocks[:, -16:], 16, 4)
    if bits == 5:
        codes |= split_single_bits(blocks[:, -20:-16]) << 4
    return Blocks(halves_at(blocks, 0, n_scales), codes)


def _unpack_q8_0(blocks: Bytes) -> Blocks:
    return Blocks(halves_at(blocks, 0), blocks[:, 2:])


def _weights(fields: Blocks, out: F32Array, zero: int) -> None:
    """The weights where code `zero` is level 0."""
    block_weights(fields.codes.view(np.int8) - np.int8(zero) if zero else fields.codes, fields.scales, out)


def _weights_q8_0(fields: Blocks, out: F32Array) -> None:
    block_weights(fields.codes.view(np.int8), fields.scales, out)


_SYMMETRIC: Any = {
    "scale": (np.float16, 1),
    "plain": finder(direct.symmetric, direct.symmetric_codes, _pack_symmetric, 32, 2, direct.GROUP),
    "with_importance": finder(weighted.symmetric, no_block_step, _pack_symmetric, 32, 2),
    "by_row": True,
    "pack": packer(_pack_symmetric, 32, 2),
}
_AFFINE: Any = {
    "scale": (np.float16, 2),
    "plain": finder(direct.affine, direct.affine_codes, _pack_affine, 32, 4, direct.GROUP),
    "with_importance": finder(weighted.affine, no_block_step, _pack_affine, 32, 4),
    "by_row": True,
    "pack": packer(_pack_affine, 32, 4),
    "weights": partial(_weights, zero=0),
}

Q8_0 = Format(
    size=32, n_bytes=34, scale=(np.float16, 1), highest=255,
    plain=finder(direct.q8_0, direct.q8_0_codes, _pack_q8_0, 32, 2, direct.GROUP),
    pack=packer(_pack_q8_0, 32, 2),
    improve=improver(best_scale.even, -127, 127, ScaleTrials(124.0, 2.0, 2), zero=0),
    unpack=_unpack_q8_0, weights=_weights_q8_0,
)  # fmt: skip
Q4_0 = Format(
    size=32, n_bytes=18, highest=15, **_SYMMETRIC,
    improve=improver(best_scale.even, -8, 7, ScaleTrials(7.5, 0.8, 2), ScaleTrials(6.6, 0.1, 30)),
    unpack=partial(_unpack, n_scales=1, bits=4), weights=partial(_weights, zero=8),
)  # fmt: skip
Q5_0 = Format(
    size=32, n_bytes=22, highest=31, **_SYMMETRIC,
    improve=improver(best_scale.even, -16, 15, ScaleTrials(15.0, 0.7, 3), ScaleTrials(13.7, 0.1, 30)),
    unpack=partial(_unpack, n_scales=1, bits=5), weights=partial(_weights, zero=16),
)  # fmt: skip
Q4_1 = Format(
    size=32, n_bytes=20, highest=15, **_AFFINE,
    improve=partial(best_minimum.improve, highest=15), unpack=partial(_unpack, n_scales=2, bits=4),
)  # fmt: skip
Q5_1 = Format(
    size=32, n_bytes=24, highest=31, **_AFFINE,
    improve=partial(best_minimum.improve, highest=31), unpack=partial(_unpack, n_scales=2, bits=5),
)  # fmt: skip

encode_q8_0, encode_best_q8_0, decode_q8_0 = functions_of(Q8_0)
encode_q4_0, encode_best_q4_0, decode_q4_0 = functions_of(Q4_0)
encode_q4_1, encode_best_q4_1, decode_q4_1 = functions_of(Q4_1)
encode_q5_0, encode_best_q5_0, decode_q5_0 = functions_of(Q5_0)
encode_q5_1, encode_best_q5_1, decode_q5_1 = functions_of(Q5_1)
