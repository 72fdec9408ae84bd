"""iq1_s and iq1_m: superblocks of 256 weights, 32 points of a grid of eight weights, shifted by an eighth.

Bytes of a block

    iq1_s (50): eight sub-blocks of 32 weights       iq1_m (56): sixteen sub-blocks of 16 weights

     0  d    half                                     0  qs      the same
     2  qs   the lower eight bits of indices         32  qh      half a byte for each point, the even
    34  qh   sixteen bits for each sub-block: four               one's the lower: three bits of an index,
             times three bits of an index, from                  and a bit that is set where the shift is
             the lowest up, then three bits of a                 -1/8
             scale, and a bit that is set where      48  scales  four words of 16 bits: four scales of
             the shift is -1/8                                   three bits, and four bits of d, the
                                                                 lowest first

    weight = (d (1 + 2 scale)) (point +- 1/8)

The brackets are ggml's order of operations. The grid, that of both types, is in `grids`. In fields `signs`
are shifts: eight in iq1_s, 32 in iq1_m.

From llama.cpp b11434, `ggml/src/ggml-common.h` (block_iq1_s, block_iq1_m) and `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.codecs import Rows
from ggplan.quants.formats.fields import Bytes, F32Array, Grid, half_at, join_bits, put_half, split_bits
from ggplan.quants.formats.grids import grid, look_up, multiply
from ggplan.quants.searches import best_grids, iq1
from ggplan.quants.searches.superblock import encode_superblocks

_SHIFT = np.float32(0.125)


def unpack_iq1_s(blocks: Bytes) -> Grid:
    """The fields of blocks (n, 50)."""
    words = _words(blocks[:, 34:])
    indices = _fields_of_3_bits(words) << np.uint16(8)
    indices |= blocks[:, 2:34]
    return Grid(
        half_at(blocks, 0), (words >> 12 & 7).astype(np.uint8), indices, (words >> 15).astype(np.uint8)
    )


def pack_iq1_s(fields: Grid, blocks: Bytes) -> None:
    """Write blocks (n, 50)."""
    put_half(blocks, 0, fields.d)
    blocks[:, 2:34] = fields.indices & 255
    words: NDArray[np.uint16] = fields.scales.astype("<u2") << np.uint16(12)
    words |= fields.signs.astype("<u2") << np.uint16(15)
    for i in range(4):
        words |= fields.indices[:, i::4] >> 8 << (3 * i)
    blocks[:, 34:] = words.view(np.uint8)


def unpack_iq1_m(blocks: Bytes) -> Grid:
    """The fields of blocks (n, 56)."""
    high = split_bits(blocks[:, 32:48], 1, 4)
    indices = (high & 7).astype(np.uint16) << np.uint16(8)
    indices |= blocks[:, :32]
    words = _words(blocks[:, 48:])
    d = np.bitwise_or.reduce(words >> 12 << (4 * np.arange(4, dtype=np.uint16)), axis=1)
    return Grid(d.view(np.float16), _fields_of_3_bits(words).astype(np.uint8), indices, high >> np.uint8(3))


def pack_iq1_m(fields: Grid, blocks: Bytes) -> None:
    """Write blocks (n, 56)."""
    blocks[:, :32] = fields.indices & 255
    blocks[:, 32:48] = join_bits((fields.indices >> 8).astype(np.uint8) | fields.signs << np.uint8(3), 1, 4)
    d = fields.d.view(np.uint16)[:, np.newaxis]
    words: NDArray[np.uint16] = (d >> (4 * np.arange(4, dtype=np.uint16)) << 12).astype("<u2")
    for i in range(4):
        words |= fields.scales[:, i::4].astype(np.uint16) << (3 * i)
    blocks[:, 48:] = words.view(np.uint8)


def weights_of(fields: Grid, out: F32Array) -> None:
    """What a reader makes of blocks of either type, (n, 256)."""
    shift = np.where(fields.signs, -_SHIFT, _SHIFT)
    points = look_up(grid("iq1_s"), fields.indices).reshape(*shift.shape, -1) + shift[:, :, np.newaxis]
    scale = fields.d[:, np.newaxis].astype(np.float32) * (1 + 2 * fields.scales).astype(np.float32)
    multiply(scale, points, out)


_search_iq1_s = partial(iq1.search, iq1.iq1_s)
_search_iq1_m = partial(iq1.search, iq1.iq1_m)

# The d with the least error makes weights too small on the whole, by as much as the error is large, and so
# what comes out of a layer. On a small model iq1_m then had a third more KL divergence than ggml's blocks,
# with a sixth less error. So d is stored as much larger as ggml stores it.
# The points of iq1 are two thousand, and ggml's encoders are fast: one round has to do.
_BEST_S = best_grids.Rules(size=32, highest=7, first=0.85, step=0.15, stored=1.125, rounds=1, together=True)
_BEST_M = best_grids.Rules(size=16, highest=7, first=0.85, step=0.15, stored=1.1125, rounds=1)
_improve_iq1_s = partial(
    best_grids.improve, best_grids.shifted_eights, "iq1_s", _BEST_S, _search_iq1_s, weights_of
)
_improve_iq1_m = partial(
    best_grids.improve, best_grids.shifted_eights, "iq1_s", _BEST_M, _search_iq1_m, weights_of
)


def decode_iq1_s(blocks: Bytes, out: F32Array) -> None:
    """The weights (n, 256) of blocks (n, 50)."""
    weights_of(unpack_iq1_s(blocks), out)


def decode_iq1_m(blocks: Bytes, out: F32Array) -> None:
    """The weights (n, 256) of blocks (n, 56)."""
    weights_of(unpack_iq1_m(blocks), out)


def encode_iq1_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 50 bytes for 256 weights, as ggml does, with an importance matrix.

    The arguments are those of `encode_superblocks`.
    """
    encode_superblocks(_search_iq1_s, pack_iq1_s, rows, importance, out)


def encode_iq1_m(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 56 bytes for 256 weights, as ggml does."""
    encode_superblocks(_search_iq1_m, pack_iq1_m, rows, importance, out)


def encode_best_iq1_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write blocks with less error than ggml's."""
    encode_superblocks(_improve_iq1_s, pack_iq1_s, rows, importance, out)


def encode_best_iq1_m(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write blocks with less error than ggml's."""
    encode_superblocks(_improve_iq1_m, pack_iq1_m, rows, importance, out)


def _words(packed: Bytes) -> NDArray[np.uint16]:
    return np.ascontiguousarray(packed).view("<u2")


def _fields_of_3_bits(words: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The four lowest numbers of three bits in each word: (n, 4 words)."""
    numbers = words[:, :, np.newaxis] >> (3 * np.arange(4, dtype=np.uint16)) & np.uint16(7)
    return numbers.reshape(len(words), -1)
