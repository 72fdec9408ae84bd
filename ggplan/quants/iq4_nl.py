"""Encoder of iq4_nl: 32 weights, one scale, and four-bit indices into sixteen uneven levels.

    d:f16 qs:u8[16]     weight j = d LEVELS[qs[j] & 15], weight j + 16 = d LEVELS[qs[j] >> 4]

The search: put the weight of the largest magnitude at level -127 x (120 .. 134) / 127, fifteen ways, and
once at +127; give each weight the level nearest to x / d; keep the d = sum(w q x) / sum(w q q) that explains
most, by (sum w q x)^2 / sum(w q q). The importance w is x^2, or with an imatrix
qw sqrt(2 sum(x^2) / 32 + x^2). From llama.cpp b11434, `quantize_row_iq4_nl_impl` in
`ggml/src/ggml-quants.c`, with a "superblock" of one block and ntry = 7.

Finding the nearest of sixteen levels for each of fifteen scales is what makes ggml slow here. But the scales
lie within 134 / 120 = 1.117 of each other, and neighbouring thresholds (midpoints of levels) of one sign at
least 1.235 apart: as the scale grows, a weight crosses at most one threshold. So its two possible terms are
worked out once, and a candidate costs one multiplication, one comparison, two choices and two additions. The
sums are the same floats in the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.decode import IQ4_NL_LEVELS
from ggplan.quants.layout32 import LANES, TILE_SIZE, fill_tile, flat, store_half
from ggplan.quants.memory import load, load_weights, new_floats, store
from ggplan.quants.search import NOTHING
from ggplan.quants.vector import absolute, any_lane, maximum, minimum, select, splat, square_root

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)

_LEVELS = np.array(IQ4_NL_LEVELS, np.float32)
_THRESHOLDS = (_LEVELS[1:] + _LEVELS[:-1]) / np.float32(2)


def encode(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 18)."""
    columns = np.empty(0, np.float32) if importance is None else importance
    _encode(flat(rows), flat(columns), out.reshape(-1))


@kernel
def _encode(weights: Any, importance: Any, out: Any) -> None:
    tile = new_floats(TILE_SIZE)
    errors = new_floats(TILE_SIZE)
    scratch = new_floats(TILE_SIZE)
    terms = new_floats(5 * TILE_SIZE)
    scales = new_floats(LANES)
    blocks = weights.size // 32
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        fill_tile(weights, first, count, blocks, scratch, tile)
        if importance.size > 0:
            fill_tile(importance, first, count, importance.size // 32, scratch, errors)
            _weigh_by_importance(tile, errors)
        else:
            weigh_by_square(tile, errors)
        store(scales, 0, best_scales(tile, errors, terms))
        for lane in range(count):
            write_block(weights, (first + lane) * 32, scales[lane], out, (first + lane) * 18)


@inline
def weigh_by_square(tile: Any, errors: Any) -> None:
    """Let the error of a weight count its square."""
    for at in range(0, TILE_SIZE, LANES):
        x = load(tile, at, LANES)
        store(errors, at, x * x)


@inline
def _weigh_by_importance(tile: Any, errors: Any) -> None:
    """Turn the importance of columns in `errors` into that of weights."""
    energy = splat(_ZERO, LANES)
    for at in range(0, TILE_SIZE, LANES):
        x = load(tile, at, LANES)
        energy = energy + x * x
    energy = energy * np.float32(2 / 32)
    for at in range(0, TILE_SIZE, LANES):
        x = load(tile, at, LANES)
        store(errors, at, load(errors, at, LANES) * square_root(energy + x * x))


@inline
def best_scales(tile: Any, errors: Any, terms: Any) -> Any:
    """The scale of each block of a tile, given how much an error of each weight counts.

    `terms` is scratch memory for `5 * TILE_SIZE` float32.
    """
    extreme = splat(_ZERO, LANES)
    largest = splat(_ZERO, LANES)
    for at in range(0, TILE_SIZE, LANES):
        x = load(tile, at, LANES)
        larger = absolute(x) > largest
        largest = select(larger, absolute(x), largest)
        extreme = select(larger, x, extreme)

    # The scale at +127, in full; and for the others the terms below and above the one threshold.
    inverse = _ONE / (extreme / np.float32(127))
    widest = np.float32(-134) / extreme
    narrowest = np.float32(-120) / extreme
    sum_qx = splat(_ZERO, LANES)
    sum_qq = splat(_ZERO, LANES)
    for at in range(0, TILE_SIZE, LANES):
        x = load(tile, at, LANES)
        w = load(errors, at, LANES)
        q = _nearest_level(inverse * x)
        sum_qx = sum_qx + w * q * x
        sum_qq = sum_qq + w * q * q
        one_end = _nearest_level(widest * x)
        other_end = _nearest_level(narrowest * x)
        below = minimum(one_end, other_end)
        above = maximum(one_end, other_end)
        store(terms, 5 * at, (below + above) * _HALF)
        store(terms, 5 * at + LANES, w * below * x)
        store(terms, 5 * at + 2 * LANES, w * above * x)
        store(terms, 5 * at + 3 * LANES, w * below * below)
        store(terms, 5 * at + 4 * LANES, w * above * above)
    scale = select(sum_qq > _ZERO, sum_qx / sum_qq, _ZERO)
    best = scale * sum_qx

    for level in range(-134, -119, 5):
        inverse_0 = np.float32(level) / extreme
        inverse_1 = np.float32(level + 1) / extreme
        inverse_2 = np.float32(level + 2) / extreme
        inverse_3 = np.float32(level + 3) / extreme
        inverse_4 = np.float32(level + 4) / extreme
        qx_0 = qx_1 = qx_2 = qx_3 = qx_4 = splat(_ZERO, LANES)
        qq_0 = qq_1 = qq_2 = qq_3 = qq_4 = splat(_ZERO, LANES)
        for at in range(0, TILE_SIZE, LANES):
            x = load(tile, at, LANES)
            qx_0, qq_0 = _add_term(qx_0, qq_0, inverse_0 * x, terms, 5 * at)
            qx_1, qq_1 = _add_term(qx_1, qq_1, inverse_1 * x, terms, 5 * at)
            qx_2, qq_2 = _add_term(qx_2, qq_2, inverse_2 * x, terms, 5 * at)
            qx_3, qq_3 = _add_term(qx_3, qq_3, inverse_3 * x, terms, 5 * at)
            qx_4, qq_4 = _add_term(qx_4, qq_4, inverse_4 * x, terms, 5 * at)
        scale, best = _improve(scale, best, qx_0, qq_0)
        scale, best = _improve(scale, best, qx_1, qq_1)
        scale, best = _improve(scale, best, qx_2, qq_2)
        scale, best = _improve(scale, best, qx_3, qq_3)
        scale, best = _improve(scale, best, qx_4, qq_4)
    return select(largest < NOTHING, _ZERO, scale)


@inline
def _add_term(sum_qx: Any, sum_qq: Any, scaled: Any, terms: Any, at: Any) -> Any:
    """Add a weight's terms, on whichever side of its threshold `scaled` is."""
    above = scaled >= load(terms, at, LANES)
    qx = select(above, load(terms, at + 2 * LANES, LANES), load(terms, at + LANES, LANES))
    qq = select(above, load(terms, at + 4 * LANES, LANES), load(terms, at + 3 * LANES, LANES))
    return sum_qx + qx, sum_qq + qq


@inline
def _improve(scale: Any, best: Any, sum_qx: Any, sum_qq: Any) -> Any:
    better = (sum_qq > _ZERO) & (sum_qx * sum_qx > best * sum_qq)
    if any_lane(better):
        candidate = sum_qx / sum_qq
        scale = select(better, candidate, scale)
        best = select(better, candidate * sum_qx, best)
    return scale, best


@inline
def _nearest_level(scaled: Any) -> Any:
    """The level nearest to each lane, the upper one at a midpoint; 113 for a nan."""
    level = splat(_LEVELS[0], LANES)
    for i in range(15):
        level = select(scaled < _THRESHOLDS[i], level, _LEVELS[i + 1])
    return level


@inline
def write_block(weights: Any, start: Any, scale: Any, out: Any, at: Any) -> None:
    """Write 32 weights' block of the given scale."""
    store_half(out, at, scale)
    inverse = np.float32(_ONE / scale) if scale != _ZERO else _ZERO
    low = nearest_index(load_weights(weights, start, 16) * inverse)
    high = nearest_index(load_weights(weights, start + 16, 16) * inverse)
    store(out, at + 2, low | (high << 4))


@inline
def nearest_index(scaled: Any) -> Any:
    """The index of the level nearest to each of 16 lanes, as int32."""
    index = splat(0, 16)
    for i in range(15):
        index = select(scaled < _THRESHOLDS[i], index, i + 1)
    return index
