"""iq4_xs: eight sub-blocks of 32 weights, weight = (d scale) LEVELS[code], with the levels of iq4_nl.

    0   d         half
    2   scales_h  eight times the upper two bits of scale + 32, 16 bits in all
    4   scales_l  eight times the lower four bits, the even sub-block's in the lower half of a byte
    8   qs        sixteen bytes for each sub-block: byte j holds the code of weight j in its lower half and of
                  weight j + 16 in its upper half

From llama.cpp's `ggml/src/ggml-common.h` (block_iq4_xs) and `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ggplan.quants.codecs import Rows
from ggplan.quants.formats.fields import (
    Bytes,
    F32Array,
    Symmetric,
    half_at,
    memory_of,
    split_bits,
    symmetric_weights,
)
from ggplan.quants.formats.levels import IQ4_LEVELS
from ggplan.quants.kernels import I64, U8s, U16s, kernel
from ggplan.quants.memory import load, store, store_bytes
from ggplan.quants.searches import iq4_xs
from ggplan.quants.searches.superblock import encode_superblocks

_BYTES = 136


def encode(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 136 bytes for 256 weights, as ggml does; the arguments are those of `encode_superblocks`."""
    encode_superblocks(iq4_xs.search, pack, rows, importance, out)


def encode_best(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 136 bytes for 256 weights, with less error than ggml's."""
    from ggplan.quants.searches import best_symmetric

    rules = best_symmetric.Rules(32, 0, -32, first=105, step=5, trials=7, wide=2, narrow=1)
    encode_superblocks(partial(best_symmetric.improve, iq4_xs.search, rules), pack, rows, importance, out)


def decode(blocks: Bytes, out: F32Array) -> None:
    """The weights of blocks (n, 136)."""
    fields = unpack(blocks)
    symmetric_weights(fields, np.take(IQ4_LEVELS, fields.codes, out=out, mode="clip"), out)


def unpack(blocks: Bytes) -> Symmetric:
    """The fields of blocks (n, 136)."""
    scales = split_bits(blocks[:, 4:8], 1, 4)
    scales |= split_bits(blocks[:, 2:4], 1, 2) << 4
    return Symmetric(
        half_at(blocks, 0), scales.view(np.int8) - np.int8(32), split_bits(blocks[:, 8:136], 16, 4)
    )


def pack(fields: Symmetric, blocks: Bytes) -> None:
    """Write blocks (n, 136)."""
    _pack(len(blocks), *memory_of(fields), blocks)


@kernel
def _pack(count: I64, d: U16s, scales: U8s, codes: U8s, out: U8s) -> None:
    for block in range(count):
        at = block * _BYTES
        store_bytes(out, at, d[block], 2)
        high = 0
        low = 0
        for j in range(8):
            scale = (scales[8 * block + j] + 32) & 63
            high |= (scale >> 4) << (2 * j)
            low |= (scale & 15) << (4 * j)
        store_bytes(out, at + 2, high, 2)
        store_bytes(out, at + 4, low, 4)
        for j in range(8):
            first = 256 * block + 32 * j
            store(out, at + 8 + 16 * j, load(codes, first, 16) | (load(codes, first + 16, 16) << 4))
