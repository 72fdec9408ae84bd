"""q4_K and q5_K: superblocks of eight sub-blocks of 32 weights, weight = (d scale) code - (dmin min).

Bytes of a q4_K block (144)                      q5_K (176)

    0   d       half                             the same
    2   dmin    half                             the same
    4   scales  eight scales and eight mins      the same
                of 6 bits, in 12 bytes
    16  qs      128 bytes of codes 0..15         qh   32 bytes: bit j of byte i is the fifth bit
    48                                           qs   of weight i of sub-block j; then as q4_K

Byte i of the k-th 32 bytes of qs has weight i of sub-block 2k in its lower half and of sub-block 2k + 1 in
its upper half. Of the 12 bytes of scales the first four have scales 0 to 3 and above them the upper two bits
of scales 4 to 7, the next four the same of the mins, the last four the lower four bits of scales 4 to 7 and
of mins 4 to 7.

From llama.cpp's `ggml/src/ggml-common.h` (block_q4_K, block_q5_K) and `ggml/src/ggml-quants.c`.
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

_RULES = affine.Rules(32, 15, 63, first=-1.0, step=0.1, trials=21)
_Q5_RULES = affine.Rules(32, 31, 63, first=-0.5, step=0.1, trials=16)
_WITH_IMPORTANCE = affine.Rules(32, 15, 63, first=-0.9, step=0.05, trials=37, energy=2)

_Q4_BYTES, _Q5_BYTES = 144, 176


def encode_q4_k(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 144 bytes for 256 weights, as ggml does; the arguments are those of `encode_superblocks`."""
    encode_superblocks(search_q4_k, pack, rows, importance, out)


def encode_q5_k(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 176 bytes for 256 weights, as ggml does; the arguments are those of `encode_superblocks`."""
    encode_superblocks(search_q5_k, pack, rows, importance, out)


def encode_best_q4_k(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 144 bytes for 256 weights, with less error than ggml's."""
    from ggplan.quants.searches import best_affine

    encode_superblocks(partial(best_affine.improve, search_q4_k, _RULES), pack, rows, importance, out)


def encode_best_q5_k(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 176 bytes for 256 weights, with less error than ggml's."""
    from ggplan.quants.searches import best_affine

    encode_superblocks(partial(best_affine.improve, search_q5_k, _Q5_RULES), pack, rows, importance, out)


def encode_near_q4_k(found: Bytes, rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """The same, beginning with blocks (n, 144) that were found for weights a little different."""
    from ggplan.quants.searches import best_affine

    fields = unpack_q4_k(found)
    encode_superblocks(partial(best_affine.improve_near, fields, _RULES), pack, rows, importance, out)


def encode_near_q5_k(found: Bytes, rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """The same, beginning with blocks (n, 176) that were found for weights a little different."""
    from ggplan.quants.searches import best_affine

    fields = unpack_q5_k(found)
    encode_superblocks(partial(best_affine.improve_near, fields, _Q5_RULES), pack, rows, importance, out)


def search_q4_k(given: Superblocks) -> Affine:
    """The fields that ggml gives superblocks."""
    return affine.search(_RULES, _WITH_IMPORTANCE, given)


def search_q5_k(given: Superblocks) -> Affine:
    """The fields that ggml gives superblocks."""
    return affine.search(_Q5_RULES, _WITH_IMPORTANCE._replace(highest=31), given)


def decode_q4_k(blocks: Bytes, out: F32Array) -> None:
    """The weights of blocks (n, 144)."""
    affine_weights(unpack_q4_k(blocks), out)


def decode_q5_k(blocks: Bytes, out: F32Array) -> None:
    """The weights of blocks (n, 176)."""
    affine_weights(unpack_q5_k(blocks), out)


def unpack_q4_k(blocks: Bytes) -> Affine:
    """The fields of blocks (n, 144)."""
    return _unpack(blocks, split_bits(blocks[:, 16:], 32, 4))


def unpack_q5_k(blocks: Bytes) -> Affine:
    """The fields of blocks (n, 176)."""
    codes = split_bits(blocks[:, 48:], 32, 4)
    codes |= split_bits(blocks[:, 16:48], 32, 1) << 4
    return _unpack(blocks, codes)


def pack(fields: Affine, blocks: Bytes) -> None:
    """Write blocks of either type, (n, 144) or (n, 176)."""
    _pack(len(blocks), blocks.shape[1], *memory_of(fields), blocks)


def _unpack(blocks: Bytes, codes: Bytes) -> Affine:
    near_scales, near_mins, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((near_scales & 63, (last & 15) | (near_scales >> 6 << 4)), axis=1)
    mins = np.concatenate((near_mins & 63, (last >> 4) | (near_mins >> 6 << 4)), axis=1)
    return Affine(half_at(blocks, 0), half_at(blocks, 2), scales, mins, codes)


@kernel
def _pack(
    count: I64, block_bytes: I64, d: U16s, dmin: U16s, scales: U8s, mins: U8s, codes: U8s, out: U8s
) -> None:
    for block in range(count):
        at = block * block_bytes
        store_bytes(out, at, d[block], 2)
        store_bytes(out, at + 2, dmin[block], 2)
        scale, low = load(scales, 8 * block + 4, 4), load(mins, 8 * block + 4, 4)
        store(out, at + 4, load(scales, 8 * block, 4) | ((scale >> 4) << 6))
        store(out, at + 8, load(mins, 8 * block, 4) | ((low >> 4) << 6))
        store(out, at + 12, (scale & 15) | ((low & 15) << 4))
        at += 16
        if block_bytes == _Q5_BYTES:
            bits = load(codes, 256 * block, 32) >> 4
            for j in range(1, 8):
                bits = bits | ((load(codes, 256 * block + 32 * j, 32) >> 4) << j)
            store(out, at, bits)
            at += 32
        for j in range(4):
            low = load(codes, 256 * block + 64 * j, 32) & 15
            store(out, at + 32 * j, low | (load(codes, 256 * block + 64 * j + 32, 32) << 4))
