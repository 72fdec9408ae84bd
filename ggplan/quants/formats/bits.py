"""q1_0 and q2_0: a scale, and one or two bits a weight, in order from the lowest bit up.

    q1_0   d:half qs:16 bytes    128 weights    weight = d (2 code - 1)
    q2_0   d:half qs:16 bytes    64 weights     weight = d (code - 1)

From llama.cpp's `ggml/src/ggml-common.h` (block_q1_0, block_q2_0) and `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

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
from ggplan.quants.searches import best_scale, direct
from ggplan.quants.searches.best_scale import ScaleTrials, improver
from ggplan.quants.searches.blocks import Format, finder, functions_of, packer
from ggplan.quants.vector import lane_bits


@inline
def _pack_q1_0(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    store_bytes(out, 0, shorts_at(scales, 0)[0], 2)
    for part in range(4):
        store_bytes(out, 2 + 4 * part, lane_bits(load(codes, 32 * part, 32) != 0), 4)


@inline
def _pack_q2_0(highest: Any, scales: Any, codes: Any, out: Any) -> None:
    fours = load(integers_at(codes, 0), 0, 16)  # a code in each byte
    store(out, 2, fours | (fours >> 6) | (fours >> 12) | (fours >> 18))
    store_bytes(out, 0, shorts_at(scales, 0)[0], 2)


def _unpack_q1_0(blocks: Bytes) -> Blocks:
    return Blocks(halves_at(blocks, 0), split_single_bits(blocks[:, 2:]))


def _unpack_q2_0(blocks: Bytes) -> Blocks:
    return Blocks(halves_at(blocks, 0), split_bits(blocks[:, 2:], 1, 2))


def _weights_q1_0(fields: Blocks, out: F32Array) -> None:
    levels = fields.codes.view(np.int8) << 1
    levels -= 1
    block_weights(levels, fields.scales, out)


def _weights_q2_0(fields: Blocks, out: F32Array) -> None:
    block_weights(fields.codes.view(np.int8) - np.int8(1), fields.scales, out)


Q1_0 = Format(
    size=128, n_bytes=18, scale=(np.float16, 1), highest=1,
    plain=finder(direct.q1_0, direct.q1_0_codes, _pack_q1_0, 128, 2, direct.GROUP),
    pack=packer(_pack_q1_0, 128, 2),
    improve=improver(best_scale.signs, -1, 1, ScaleTrials(1.0, 1.0, 1)), plain_is_best=True,
    unpack=_unpack_q1_0, weights=_weights_q1_0,
)  # fmt: skip
Q2_0 = Format(
    size=64, n_bytes=18, scale=(np.float16, 1), highest=3,
    plain=finder(direct.q2_0, direct.q2_0_codes, _pack_q2_0, 64, 2, direct.GROUP),
    pack=packer(_pack_q2_0, 64, 2),
    improve=improver(best_scale.even, -1, 2, ScaleTrials(1.4, 0.5, 3)),
    unpack=_unpack_q2_0, weights=_weights_q2_0,
)  # fmt: skip

encode_q1_0, encode_best_q1_0, decode_q1_0 = functions_of(Q1_0)
encode_q2_0, encode_best_q2_0, decode_q2_0 = functions_of(Q2_0)
