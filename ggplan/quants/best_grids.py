"""iq3_*, iq2_* and iq1_* with less error than ggml's: an exact search of their grids.

Blocks are those of `encode_grids`, `iq1_s` and `iq1_m`, whose layouts `decode_grids` tells.

ggml rounds weights one by one, and where that gives no point of the grid tries some that are near. Signs it
settles before, by what they cost where all levels are free, and once the scales are rounded it never looks at
the points again. Here, for any scale, a group gets the best of all points with the best of all signs or
shifts (see `best_points`), and scales are found with that (see `best_grid_search`).

Sub-blocks of zeros are written in their place, where ggml's iq3_s lets indices and signs move up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ggplan.ggml_types import parse_type
from ggplan.quants import encode_grids, iq1_m, iq1_s
from ggplan.quants.best_grid_search import (
    Rules,
    refine_eights,
    refine_even_eights,
    refine_even_fours,
    refine_fours,
    refine_shifted_eights,
)
from ggplan.quants.best_points import points_of
from ggplan.quants.codecs import Rows, decoder
from ggplan.quants.grid_search import Found
from ggplan.quants.layout32 import flat
from ggplan.quants.superblock import SUPERBLOCK

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Superblocks that are searched before they are packed.
_PIECE = 256

_ONE = np.float32(1)
_QUARTER = np.float32(0.25)
_EIGHTH = np.float32(0.125)

# The d with the least error makes weights too small on the whole, by as much as the error is large, and so
# what comes out of a layer. On a small model iq1_m then had a third more KL divergence than ggml's blocks,
# with a sixth less error. ggml stores iq1's d an eighth and a ninth larger; so does this, and iq2's a little,
# at the cost of some hundredths of the error.
# The points of iq1 are two thousand, and ggml's encoders are fast: one round has to do.
_RULES = {
    "iq3_s": Rules(32, 15, False, 3, _ONE, _ONE, np.float32(11.3), np.float32(1.1)),
    "iq3_xxs": Rules(32, 15, False, 3, _QUARTER, _ONE, np.float32(46), np.float32(4.6)),
    "iq2_s": Rules(16, 15, False, 3, _EIGHTH, np.float32(1.03), np.float32(32), np.float32(3.2)),
    "iq2_xs": Rules(16, 15, False, 3, _EIGHTH, np.float32(1.06), np.float32(32), np.float32(3.2)),
    "iq2_xxs": Rules(32, 15, False, 3, _EIGHTH, np.float32(1.06), np.float32(32), np.float32(3.2)),
    "iq1_m": Rules(16, 7, False, 1, _ONE, np.float32(1.1125), np.float32(0.85), np.float32(0.15)),
    "iq1_s": Rules(32, 7, True, 1, _ONE, np.float32(1.125), np.float32(0.85), np.float32(0.15)),
}


def encode_iq3_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 110 bytes for 256 weights."""
    encode_grids.encode_iq3_s(rows, importance, out)
    _improve("iq3_s", refine_fours, encode_grids.pack_iq3_s, rows, importance, out)


def encode_iq3_xxs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 98 bytes for 256 weights."""
    encode_grids.encode_iq3_xxs(rows, importance, out)
    _improve("iq3_xxs", refine_even_fours, encode_grids.pack_iq3_xxs, rows, importance, out)


def encode_iq2_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 82 bytes for 256 weights."""
    encode_grids.encode_iq2_s(rows, importance, out)
    _improve("iq2_s", refine_eights, encode_grids.pack_iq2_s, rows, importance, out)


def encode_iq2_xs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 74 bytes for 256 weights."""
    encode_grids.encode_iq2_xs(rows, importance, out)
    _improve("iq2_xs", refine_even_eights, encode_grids.pack_iq2_xs, rows, importance, out)


def encode_iq2_xxs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 66 bytes for 256 weights."""
    encode_grids.encode_iq2_xxs(rows, importance, out)
    _improve("iq2_xxs", refine_even_eights, encode_grids.pack_iq2_xxs, rows, importance, out)


def encode_iq1_m(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 56 bytes for 256 weights."""
    iq1_m.encode(rows, importance, out)
    _improve("iq1_m", refine_shifted_eights, _pack_iq1_m, rows, importance, out)


def encode_iq1_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 50 bytes for 256 weights."""
    iq1_s.encode(rows, importance, out)
    _improve("iq1_s", refine_shifted_eights, _pack_iq1_s, rows, importance, out)


def _improve(
    name: str,
    refine: Callable[..., None],
    pack: Callable[[Found, Bytes], None],
    rows: Rows,
    importance: F32Array | None,
    out: Bytes,
) -> None:
    """Improve the default's blocks in `out`, a piece of them at a time."""
    rules, decode = _RULES[name], decoder(parse_type(name))
    points, index_of = points_of("iq1_s" if name == "iq1_m" else name)
    group = 8 if len(points.values) == 3 else 4
    weights = flat(rows)
    columns = flat(np.empty(0, np.float32) if importance is None else importance)
    count = weights.size // SUPERBLOCK
    blocks = out.reshape(count, -1) if count else out
    for first in range(0, count, _PIECE):
        these = blocks[first : first + _PIECE]
        n = len(these)
        decoded = np.empty((n, SUPERBLOCK), np.float32)
        found = Found(
            np.empty((n, SUPERBLOCK // group), np.uint16),
            np.empty((n, SUPERBLOCK // 8), np.uint8),
            np.empty((n, SUPERBLOCK // rules.size), np.int8),
            np.empty(n, np.float32),
        )
        better = np.empty(n, np.uint8)
        with np.errstate(all="ignore"):  # ggml's scales may be infinite
            decode(these, decoded)
        refine(weights, columns, first, decoded.reshape(-1), points, rules, found, better)
        packed = np.empty_like(these)
        pack(found._replace(indices=index_of[found.indices]), packed)
        these[better != 0] = packed[better != 0]


def _pack_iq1_s(found: Found, blocks: Bytes) -> None:
    blocks[:, :2] = found.scales.astype("<f2")[:, np.newaxis].view(np.uint8)
    blocks[:, 2:34] = found.indices.astype(np.uint8)
    words = found.levels.astype(np.uint16) << 12 | found.signs[:, ::4].astype(np.uint16) << 15
    for g in range(4):
        words |= found.indices[:, g::4] >> 8 << (3 * g)
    blocks[:, 34:] = words.astype("<u2").view(np.uint8)


def _pack_iq1_m(found: Found, blocks: Bytes) -> None:
    blocks[:, :32] = found.indices.astype(np.uint8)
    high = (found.indices >> 8).astype(np.uint8) | found.signs << 3
    blocks[:, 32:48] = high[:, ::2] | high[:, 1::2] << 4
    d = found.scales.astype(np.float16).view(np.uint16)
    words = d[:, np.newaxis] >> (4 * np.arange(4, dtype=np.uint16)) << 12
    for j in range(4):
        words |= found.levels[:, j::4].astype(np.uint16) << (3 * j)
    blocks[:, 48:] = words.astype("<u2").view(np.uint8)
