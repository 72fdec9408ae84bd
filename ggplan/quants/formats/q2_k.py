"""q2_K: superblocks of sixteen sub-blocks of 16 weights, weight = (d scale) code - (dmin min).

Bytes of a block (84)

     0   scales  sixteen: the scale in the lower four bits, the min in the upper
    16   qs      the codes, from 0 to 3
    80   d       half
    82   dmin    half

Each half of the superblock, 128 weights, has 32 bytes of qs. Byte i of these has weights i, 32 + i, 64 + i
and 96 + i, from the lowest two bits up.

From llama.cpp's `ggml/src/ggml-common.h` (block_q2_K) and `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ggplan.quants.codecs import Rows
from ggplan.quants.formats.fields import (
    Affine,
    Bytes,
    F32Array,
    affine_weights,
    half_at,
    memory_of,
    split_bits,
)
from ggplan.quants.kernels import I64, U8s, U16s, kernel
from ggplan.quants.memory import load, store, store_bytes
from ggplan.quants.searches import affine
from ggplan.quants.searches.superblock import Superblocks, encode_superblocks

_RULES = affine.Rules(16, 3, 15, first=-0.5, step=0.1, trials=16)
_WITH_IMPORTANCE = affine.Rules(16, 3, 15, first=-0.9, step=0.05, trials=37, energy=1)
_BYTES = 84


def encode(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 84 bytes for 256 weights, as ggml does; the arguments are those of `encode_superblocks`."""
    encode_superblocks(search, pack, rows, importance, out)


def encode_best(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 84 bytes for 256 weights, with less error than ggml's."""
    from ggplan.quants.searches import best_affine

    encode_superblocks(partial(best_affine.improve, search, _RULES), pack, rows, importance, out)


def encode_near(found: Bytes, rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """The same, beginning with blocks (n, 84) that were found for weights a little different."""
    from ggplan.quants.searches import best_affine

    encode_superblocks(partial(best_affine.improve_near, unpack(found), _RULES), pack, rows, importance, out)


def search(given: Superblocks) -> Affine:
    """The fields that ggml gives superblocks."""
    return affine.search(_RULES, _WITH_IMPORTANCE, given)


def decode(blocks: Bytes, out: F32Array) -> None:
    """The weights of blocks (n, 84)."""
    affine_weights(unpack(blocks), out)


def unpack(blocks: Bytes) -> Affine:
    """The fields of blocks (n, 84)."""
    scales, mins = blocks[:, :16] & np.uint8(15), blocks[:, :16] >> np.uint8(4)
    return Affine(half_at(blocks, 80), half_at(blocks, 82), scales, mins, split_bits(blocks[:, 16:80], 32, 2))


def pack(fields: Affine, blocks: Bytes) -> None:
    """Write blocks (n, 84)."""
    _pack(len(blocks), *memory_of(fields), blocks)


@kernel
def _pack(count: I64, d: U16s, dmin: U16s, scales: U8s, mins: U8s, codes: U8s, out: U8s) -> None:
    for block in range(count):
        at = block * _BYTES
        store(out, at, load(scales, 16 * block, 16) | (load(mins, 16 * block, 16) << 4))
        for half in range(2):
            first = 256 * block + 128 * half
            byte = load(codes, first, 32)
            for k in range(1, 4):
                byte = byte | (load(codes, first + 32 * k, 32) << (2 * k))
            store(out, at + 16 + 32 * half, byte)
        store_bytes(out, at + 80, d[block], 2)
        store_bytes(out, at + 82, dmin[block], 2)
