"""q3_K: superblocks of sixteen sub-blocks of 16 weights, weight = (d scale) (code - 4).

Bytes of a block (110)

      0   hmask   the upper bit of codes 0..7: bit k of byte i is that of weight 32 k + i
     32   qs      the lower two bits
     96   scales  sixteen times scale + 32, of 6 bits
    108   d       half

Each half of the superblock, 128 weights, has 32 bytes of qs. Byte i of these has weights i, 32 + i, 64 + i
and 96 + i, from the lowest two bits up. Of the 12 bytes of scales, byte j of the first eight has the lower
four bits of scale j and, above, of scale 8 + j; byte j of the last four has the upper two bits of scales j,
4 + j, 8 + j and 12 + j, from the lowest up.

From llama.cpp's `ggml/src/ggml-common.h` (block_q3_K) and `ggml/src/ggml-quants.c`.
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
from ggplan.quants.kernels import I64, U8s, U16s, kernel
from ggplan.quants.memory import load, store, store_bytes
from ggplan.quants.searches import symmetric
from ggplan.quants.searches.superblock import encode_superblocks

_BYTES = 110


def encode(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 110 bytes for 256 weights, as ggml does; the arguments are those of `encode_superblocks`."""
    encode_superblocks(symmetric.search_q3_k, pack, rows, importance, out)


def encode_best(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 110 bytes for 256 weights, with less error than ggml's."""
    from ggplan.quants.searches import best_symmetric

    rules = best_symmetric.Rules(16, -4, -32, first=2.5, step=0.15, trials=16, wide=4, narrow=3)
    improve = partial(best_symmetric.improve, symmetric.search_q3_k, rules)
    encode_superblocks(improve, pack, rows, importance, out)


def decode(blocks: Bytes, out: F32Array) -> None:
    """The weights of blocks (n, 110)."""
    fields = unpack(blocks)
    symmetric_weights(fields, fields.codes.view(np.int8) - np.int8(4), out)


def unpack(blocks: Bytes) -> Symmetric:
    """The fields of blocks (n, 110)."""
    codes = split_bits(blocks[:, 32:96], 32, 2)
    codes |= split_bits(blocks[:, :32], 32, 1) << 2
    scales = split_bits(blocks[:, 96:104], 8, 4)
    scales |= split_bits(blocks[:, 104:108], 4, 2) << 4
    return Symmetric(half_at(blocks, 108), scales.view(np.int8) - np.int8(32), codes)


def pack(fields: Symmetric, blocks: Bytes) -> None:
    """Write blocks (n, 110)."""
    _pack(len(blocks), *memory_of(fields), blocks)


@kernel
def _pack(count: I64, d: U16s, scales: U8s, codes: U8s, out: U8s) -> None:
    for block in range(count):
        at = block * _BYTES
        upper = load(codes, 256 * block, 32) & 0
        for half in range(2):
            first = 256 * block + 128 * half
            lower = upper & 0
            for k in range(4):
                code = load(codes, first + 32 * k, 32)
                upper = upper | ((code >> 2) << (4 * half + k))
                lower = lower | ((code & 3) << (2 * k))
            store(out, at + 32 + 32 * half, lower)
        store(out, at, upper)
        low = load(scales, 16 * block, 8) + 32
        high = load(scales, 16 * block + 8, 8) + 32
        store(out, at + 96, (low & 15) | ((high & 15) << 4))
        bits = load(scales, 16 * block, 4) & 0
        for k in range(4):
            bits = bits | ((((load(scales, 16 * block + 4 * k, 4) + 32) >> 4) & 3) << (2 * k))
        store(out, at + 104, bits)
        store_bytes(out, at + 108, d[block], 2)
