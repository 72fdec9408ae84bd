"""q6_K: superblocks of sixteen sub-blocks of 16 weights, weight = (d scale) (code - 32).

Bytes of a block (210)

      0   ql      the lower four bits of codes 0..63
    128   qh      the upper two bits
    192   scales  sixteen int8
    208   d       half

Each half of the superblock, 128 weights, has 64 bytes of ql and 32 of qh. Byte i of the 64 has weight i in
its lower half and weight 64 + i in its upper half; byte i of the 32 has the upper bits of weights i, 32 +
i, 64 + i and 96 + i, from the lowest up.

From llama.cpp's `ggml/src/ggml-common.h` (block_q6_K) and `ggml/src/ggml-quants.c`.
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

_BYTES = 210


def encode(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 210 bytes for 256 weights, as ggml does; the arguments are those of `encode_superblocks`."""
    encode_superblocks(symmetric.search_q6_k, pack, rows, importance, out)


def encode_best(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 210 bytes for 256 weights, with less error than ggml's."""
    from ggplan.quants.searches import best_symmetric

    rules = best_symmetric.Rules(16, -32, -128, first=29, step=0.3, trials=13, wide=12, narrow=3)
    improve = partial(best_symmetric.improve, symmetric.search_q6_k, rules)
    encode_superblocks(improve, pack, rows, importance, out)


def decode(blocks: Bytes, out: F32Array) -> None:
    """The weights of blocks (n, 210)."""
    fields = unpack(blocks)
    symmetric_weights(fields, fields.codes.view(np.int8) - np.int8(32), out)


def unpack(blocks: Bytes) -> Symmetric:
    """The fields of blocks (n, 210)."""
    codes = split_bits(blocks[:, :128], 64, 4)
    codes |= split_bits(blocks[:, 128:192], 32, 2) << 4
    return Symmetric(half_at(blocks, 208), blocks[:, 192:208].view(np.int8), codes)


def pack(fields: Symmetric, blocks: Bytes) -> None:
    """Write blocks (n, 210)."""
    _pack(len(blocks), *memory_of(fields), blocks)


@kernel
def _pack(count: I64, d: U16s, scales: U8s, codes: U8s, out: U8s) -> None:
    for block in range(count):
        at = block * _BYTES
        for half in range(2):
            first = 256 * block + 128 * half
            a = load(codes, first, 32)
            b = load(codes, first + 32, 32)
            c = load(codes, first + 64, 32)
            e = load(codes, first + 96, 32)
            store(out, at + 64 * half, (a & 15) | ((c & 15) << 4))
            store(out, at + 64 * half + 32, (b & 15) | ((e & 15) << 4))
            high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)
            store(out, at + 128 + 32 * half, high)
        store(out, at + 192, load(scales, 16 * block, 16))
        store_bytes(out, at + 208, d[block], 2)
