"""iq3_s and iq3_xxs: superblocks of eight sub-blocks of 32 weights, 64 points of a grid of four weights.

Bytes of an iq3_s block (110)                          iq3_xxs (98)

      0   d       half                                 d       the same
      2   qs      the lower eight bits of 64 indices   qs      64 indices
     66   qh      their ninth bits, in order           words   32 bits for each sub-block: four times
     74   signs   a bit for each weight, in order              seven signs, from the lowest up, and
    106   scales  eight of four bits, the even                 above them the scale
                  one's the lower half of a byte

    iq3_s     weight = (d (1 + 2 scale)) (sign point)
    iq3_xxs   weight = (d (0.5 + scale) / 2) (sign point)

The brackets are ggml's order of operations. The grids and how an eighth sign follows from seven are in
`grids`.

From llama.cpp b11434, `ggml/src/ggml-common.h` (block_iq3_s, block_iq3_xxs) and `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.codecs import Rows
from ggplan.quants.formats.fields import (
    Bytes,
    F32Array,
    Grid,
    half_at,
    join_bits,
    join_single_bits,
    put_half,
    split_bits,
    split_single_bits,
)
from ggplan.quants.formats.grids import even_signs, multiply, signed
from ggplan.quants.searches import best_grids, grid_rules, grids
from ggplan.quants.searches.superblock import encode_superblocks

_HALF = np.float32(0.5)


def unpack_iq3_s(blocks: Bytes) -> Grid:
    """The fields of blocks (n, 110)."""
    indices = split_single_bits(blocks[:, 66:74]).astype(np.uint16) << np.uint16(8)
    indices |= blocks[:, 2:66]
    return Grid(half_at(blocks, 0), split_bits(blocks[:, 106:], 1, 4), indices, blocks[:, 74:106])


def pack_iq3_s(fields: Grid, blocks: Bytes) -> None:
    """Write blocks (n, 110)."""
    put_half(blocks, 0, fields.d)
    blocks[:, 2:66] = fields.indices & 255
    blocks[:, 66:74] = join_single_bits((fields.indices >> 8).astype(np.uint8))
    blocks[:, 74:106] = fields.signs
    blocks[:, 106:] = join_bits(fields.scales, 1, 4)


def weights_of_iq3_s(fields: Grid, out: F32Array) -> None:
    """What a reader makes of blocks, (n, 256)."""
    scale = fields.d[:, np.newaxis].astype(np.float32) * (1 + 2 * fields.scales)
    multiply(scale, signed("iq3_s", fields), out)


def decode_iq3_s(blocks: Bytes, out: F32Array) -> None:
    """The weights (n, 256) of blocks (n, 110)."""
    weights_of_iq3_s(unpack_iq3_s(blocks), out)


def unpack_iq3_xxs(blocks: Bytes) -> Grid:
    """The fields of blocks (n, 98)."""
    scales, sign_bytes = split_words(blocks[:, 66:])
    return Grid(half_at(blocks, 0), scales, blocks[:, 2:66].astype(np.uint16), sign_bytes)


def pack_iq3_xxs(fields: Grid, blocks: Bytes) -> None:
    """Write blocks (n, 98)."""
    put_half(blocks, 0, fields.d)
    blocks[:, 2:66] = fields.indices
    blocks[:, 66:] = join_words(fields)


def weights_of_iq3_xxs(fields: Grid, out: F32Array) -> None:
    """What a reader makes of blocks, (n, 256)."""
    scale = fields.d[:, np.newaxis].astype(np.float32) * (_HALF + fields.scales) * _HALF
    multiply(scale, signed("iq3_xxs", fields), out)


def decode_iq3_xxs(blocks: Bytes, out: F32Array) -> None:
    """The weights (n, 256) of blocks (n, 98)."""
    weights_of_iq3_xxs(unpack_iq3_xxs(blocks), out)


def split_words(words: Bytes) -> tuple[Bytes, Bytes]:
    """The scales (n, 8) and signs (n, 32) in words of signs and scale, bytes (n, 32)."""
    numbers = np.ascontiguousarray(words).view("<u4")
    sevens = numbers[:, :, np.newaxis] >> (7 * np.arange(4, dtype=np.uint32)) & 127
    return (numbers >> 28).astype(np.uint8), even_signs()[sevens].reshape(-1, 32)


def join_words(fields: Grid) -> Bytes:
    """The words of scales and signs."""
    words: NDArray[np.uint32] = fields.scales.astype("<u4") << np.uint32(28)
    for i in range(4):
        words |= (fields.signs[:, i::4] & 127).astype(np.uint32) << (7 * i)
    return words.view(np.uint8)


_search_iq3_s = partial(grids.search, grids.fours, "iq3_s", grid_rules.IQ3_S)
_search_iq3_xxs = partial(grids.search, grids.fours, "iq3_xxs", grid_rules.IQ3_XXS)
_improve_iq3_s = partial(
    best_grids.improve,
    best_grids.fours,
    "iq3_s",
    best_grids.Rules(size=32, highest=15, first=11.3, step=1.1),
    _search_iq3_s,
    weights_of_iq3_s,
)
_improve_iq3_xxs = partial(
    best_grids.improve,
    best_grids.even_fours,
    "iq3_xxs",
    best_grids.Rules(size=32, highest=15, unit=0.25, first=46, step=4.6),
    _search_iq3_xxs,
    weights_of_iq3_xxs,
)


def encode_iq3_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 110 bytes for 256 weights, as ggml does; the arguments are those of `encode_superblocks`."""
    encode_superblocks(_search_iq3_s, pack_iq3_s, rows, importance, out)


def encode_iq3_xxs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 98 bytes for 256 weights, as ggml does."""
    encode_superblocks(_search_iq3_xxs, pack_iq3_xxs, rows, importance, out)


def encode_best_iq3_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write blocks with less error than ggml's."""
    encode_superblocks(_improve_iq3_s, pack_iq3_s, rows, importance, out)


def encode_best_iq3_xxs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write blocks with less error than ggml's."""
    encode_superblocks(_improve_iq3_xxs, pack_iq3_xxs, rows, importance, out)
