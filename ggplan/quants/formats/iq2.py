"""iq2_s, iq2_xs and iq2_xxs: superblocks of 256 weights, 32 points of a grid of eight weights.

Bytes of a block

    iq2_s (82)                       iq2_xs (74)                     iq2_xxs (66)

     0  d       half                 d   the same                    d   the same
     2  qs      the lower eight      qs  16 bits for each point:     qs  for each sub-block four indices
                bits of indices          nine of index, above            and a word of signs and scale,
    34  signs   a bit for each           them seven signs                as in iq3_xxs
                weight, in order
    66  qh      their upper two      scales, as in iq2_s, at 66
                bits, in order
    74  scales  sixteen of four bits, the even one's the lower half of a byte

    weight = (d (0.5 + scale) / 4) (sign point)

The brackets are ggml's order of operations. Sub-blocks have 16 weights, in iq2_xxs 32. The grids and how an
eighth sign follows from seven are in `grids`.

From llama.cpp b11434, `ggml/src/ggml-common.h` (block_iq2_s, block_iq2_xs, block_iq2_xxs) and
`ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ggplan.quants.codecs import Rows
from ggplan.quants.formats.fields import Bytes, F32Array, Grid, half_at, join_bits, put_half, split_bits
from ggplan.quants.formats.grids import even_signs, multiply, signed
from ggplan.quants.formats.iq3 import join_words, split_words
from ggplan.quants.searches import best_grids, grid_rules, grids
from ggplan.quants.searches.superblock import encode_superblocks

_HALF = np.float32(0.5)
_QUARTER = np.float32(0.25)


def unpack_iq2_s(blocks: Bytes) -> Grid:
    """The fields of blocks (n, 82)."""
    indices = split_bits(blocks[:, 66:74], 1, 2).astype(np.uint16) << np.uint16(8)
    indices |= blocks[:, 2:34]
    return Grid(half_at(blocks, 0), split_bits(blocks[:, 74:], 1, 4), indices, blocks[:, 34:66])


def pack_iq2_s(fields: Grid, blocks: Bytes) -> None:
    """Write blocks (n, 82)."""
    put_half(blocks, 0, fields.d)
    blocks[:, 2:34] = fields.indices & 255
    blocks[:, 34:66] = fields.signs
    blocks[:, 66:74] = join_bits((fields.indices >> 8).astype(np.uint8), 1, 2)
    blocks[:, 74:] = join_bits(fields.scales, 1, 4)


def unpack_iq2_xs(blocks: Bytes) -> Grid:
    """The fields of blocks (n, 74)."""
    words = np.ascontiguousarray(blocks[:, 2:66]).view("<u2")
    return Grid(
        half_at(blocks, 0),
        split_bits(blocks[:, 66:], 1, 4),
        words & np.uint16(511),
        even_signs()[words >> 9],
    )


def pack_iq2_xs(fields: Grid, blocks: Bytes) -> None:
    """Write blocks (n, 74)."""
    put_half(blocks, 0, fields.d)
    words = fields.indices | (fields.signs & 127).astype("<u2") << 9
    blocks[:, 2:66] = words.view(np.uint8)
    blocks[:, 66:] = join_bits(fields.scales, 1, 4)


def unpack_iq2_xxs(blocks: Bytes) -> Grid:
    """The fields of blocks (n, 66)."""
    pairs = np.ascontiguousarray(blocks[:, 2:]).reshape(-1, 8, 8)
    scales, sign_bytes = split_words(pairs[:, :, 4:].reshape(-1, 32))
    indices = pairs[:, :, :4].reshape(-1, 32).astype(np.uint16)
    return Grid(half_at(blocks, 0), scales, indices, sign_bytes)


def pack_iq2_xxs(fields: Grid, blocks: Bytes) -> None:
    """Write blocks (n, 66)."""
    put_half(blocks, 0, fields.d)
    words = join_words(fields).reshape(-1, 8, 4)
    indices = fields.indices.astype(np.uint8).reshape(-1, 8, 4)
    blocks[:, 2:] = np.concatenate((indices, words), axis=2).reshape(-1, 64)


def _weights_of(name: str, fields: Grid, out: F32Array) -> None:
    """What a reader makes of blocks, (n, 256)."""
    scale = fields.d[:, np.newaxis].astype(np.float32) * (_HALF + fields.scales) * _QUARTER
    multiply(scale, signed(name, fields), out)


weights_of_iq2_s = partial(_weights_of, "iq2_s")
weights_of_iq2_xs = partial(_weights_of, "iq2_xs")
weights_of_iq2_xxs = partial(_weights_of, "iq2_xxs")

_search_iq2_s = partial(grids.search, grids.eights, "iq2_s", grid_rules.IQ2_S)
_search_iq2_xs = partial(grids.search, grids.eights, "iq2_xs", grid_rules.IQ2_XS)
_search_iq2_xxs = partial(grids.search, grids.fitted_eights, "iq2_xxs", grid_rules.IQ2_XXS)

# The d with the least error makes weights too small on the whole, by as much as the error is large, and so
# what comes out of a layer: see `formats.iq1`. It costs some hundredths of the error to store it larger.
_BEST_S = best_grids.Rules(size=16, highest=15, unit=0.125, first=32, step=3.2, stored=1.03)
_BEST_XS = _BEST_S._replace(stored=1.06)
_BEST_XXS = _BEST_XS._replace(size=32)
_improve_iq2_s = partial(
    best_grids.improve, best_grids.eights, "iq2_s", _BEST_S, _search_iq2_s, weights_of_iq2_s
)
_improve_iq2_xs = partial(
    best_grids.improve, best_grids.even_eights, "iq2_xs", _BEST_XS, _search_iq2_xs, weights_of_iq2_xs
)
_improve_iq2_xxs = partial(
    best_grids.improve,
    best_grids.fewer_even_eights,
    "iq2_xxs",
    _BEST_XXS,
    _search_iq2_xxs,
    weights_of_iq2_xxs,
)


def decode_iq2_s(blocks: Bytes, out: F32Array) -> None:
    """The weights (n, 256) of blocks (n, 82)."""
    weights_of_iq2_s(unpack_iq2_s(blocks), out)


def decode_iq2_xs(blocks: Bytes, out: F32Array) -> None:
    """The weights (n, 256) of blocks (n, 74)."""
    weights_of_iq2_xs(unpack_iq2_xs(blocks), out)


def decode_iq2_xxs(blocks: Bytes, out: F32Array) -> None:
    """The weights (n, 256) of blocks (n, 66)."""
    weights_of_iq2_xxs(unpack_iq2_xxs(blocks), out)


def encode_iq2_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 82 bytes for 256 weights, as ggml does; the arguments are those of `encode_superblocks`."""
    encode_superblocks(_search_iq2_s, pack_iq2_s, rows, importance, out)


def encode_iq2_xs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 74 bytes for 256 weights, as ggml does."""
    encode_superblocks(_search_iq2_xs, pack_iq2_xs, rows, importance, out)


def encode_iq2_xxs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 66 bytes for 256 weights, as ggml does."""
    encode_superblocks(_search_iq2_xxs, pack_iq2_xxs, rows, importance, out)


def encode_best_iq2_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write blocks with less error than ggml's."""
    encode_superblocks(_improve_iq2_s, pack_iq2_s, rows, importance, out)


def encode_best_iq2_xs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write blocks with less error than ggml's."""
    encode_superblocks(_improve_iq2_xs, pack_iq2_xs, rows, importance, out)


def encode_best_iq2_xxs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write blocks with less error than ggml's."""
    encode_superblocks(_improve_iq2_xxs, pack_iq2_xxs, rows, importance, out)
