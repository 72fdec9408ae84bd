"""ggml's search for the scale of 32 weights under the sixteen levels of iq4_nl and iq4_xs.

Put the weight of the largest magnitude at level -127 x (120 .. 134) / 127, fifteen ways, and once at +127;
give each weight the level nearest to x / d; keep the d = sum(w q x) / sum(w q q) that explains most, by
(sum w q x)^2 / sum(w q q). An error counts w = x^2, or with an importance matrix
w = importance * sqrt(2 sum(x^2) / 32 + x^2). From llama.cpp b11434, `quantize_row_iq4_nl_impl` in
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

from ggplan.quants.formats.levels import IQ4_LEVELS
from ggplan.quants.half import halves_of
from ggplan.quants.kernels import inline
from ggplan.quants.memory import floats_at, load, load_weights, shorts_at, store
from ggplan.quants.searches.blocks import GROUP, load_blocks
from ggplan.quants.searches.ggml import NOTHING, find_extreme
from ggplan.quants.vector import any_lane, bits_of, maximum, minimum, select, splat, square_root

_TILE = 32 * GROUP
TERMS_ROOM = 5 * _TILE
"""How many numbers of four bytes `best_scales` keeps its terms in."""

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)

_THRESHOLDS = (IQ4_LEVELS[1:] + IQ4_LEVELS[:-1]) / np.float32(2)


@inline
def iq4_nl(given: Any, first: Any, scales: Any, codes: Any) -> None:
    """Scales of iq4_nl; weights are rounded by the scale before it becomes a half."""
    tile = given.room
    errors = floats_at(tile, _TILE)
    load_blocks(given.weights, first, 32, tile)
    if given.per_row > 0:
        load_blocks(given.columns, first % given.per_row, 32, errors)
        _weigh_by_importance(tile, errors)
    else:
        weigh_by_square(tile, errors)
    scale = best_scales(tile, errors, floats_at(tile, 2 * _TILE))
    store(shorts_at(scales, 0), 0, halves_of(scale))
    store(given.room, 0, select(scale == _ZERO, _ZERO, _ONE / scale))


@inline
def iq4_nl_codes(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """Codes of iq4_nl."""
    x = load_weights(given.weights, 32 * (first + k), 32)
    store(codes, 0, nearest_index(x * given.room[k]))


@inline
def weigh_by_square(tile: Any, errors: Any) -> None:
    """Let the error of a weight count its square."""
    for at in range(0, _TILE, GROUP):
        x = load(tile, at, GROUP)
        store(errors, at, x * x)


@inline
def _weigh_by_importance(tile: Any, errors: Any) -> None:
    """Turn the importance of columns in `errors` into that of weights."""
    energy = splat(_ZERO, GROUP)
    for at in range(0, _TILE, GROUP):
        x = load(tile, at, GROUP)
        energy = energy + x * x
    energy = energy * np.float32(2 / 32)
    for at in range(0, _TILE, GROUP):
        x = load(tile, at, GROUP)
        store(errors, at, load(errors, at, GROUP) * square_root(energy + x * x))


@inline
def best_scales(tile: Any, errors: Any, terms: Any) -> Any:
    """The scale of each block of a tile, given how much an error of each weight counts.

    `terms` is scratch memory, `TERMS_ROOM` float32.
    """
    extreme, largest = find_extreme(tile, 0, 32, GROUP)
    # The scale at +127, in full; and for the others the terms below and above the one threshold.
    inverse = _ONE / (extreme / np.float32(127))
    widest = np.float32(-134) / extreme
    narrowest = np.float32(-120) / extreme
    sum_qx = splat(_ZERO, GROUP)
    sum_qq = splat(_ZERO, GROUP)
    for at in range(0, _TILE, GROUP):
        x = load(tile, at, GROUP)
        w = load(errors, at, GROUP)
        q = _nearest_level(inverse * x)
        sum_qx = sum_qx + w * q * x
        sum_qq = sum_qq + w * q * q
        one_end = _nearest_level(widest * x)
        other_end = _nearest_level(narrowest * x)
        below = minimum(one_end, other_end)
        above = maximum(one_end, other_end)
        store(terms, 5 * at, (below + above) * _HALF)
        store(terms, 5 * at + GROUP, w * below * x)
        store(terms, 5 * at + 2 * GROUP, w * above * x)
        store(terms, 5 * at + 3 * GROUP, w * below * below)
        store(terms, 5 * at + 4 * GROUP, w * above * above)
    scale = select(sum_qq > _ZERO, sum_qx / sum_qq, _ZERO)
    best = scale * sum_qx

    for level in range(-134, -119, 5):
        inverse_0 = np.float32(level) / extreme
        inverse_1 = np.float32(level + 1) / extreme
        inverse_2 = np.float32(level + 2) / extreme
        inverse_3 = np.float32(level + 3) / extreme
        inverse_4 = np.float32(level + 4) / extreme
        qx_0 = qx_1 = qx_2 = qx_3 = qx_4 = splat(_ZERO, GROUP)
        qq_0 = qq_1 = qq_2 = qq_3 = qq_4 = splat(_ZERO, GROUP)
        for at in range(0, _TILE, GROUP):
            x = load(tile, at, GROUP)
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
    above = scaled >= load(terms, at, GROUP)
    qx = select(above, load(terms, at + 2 * GROUP, GROUP), load(terms, at + GROUP, GROUP))
    qq = select(above, load(terms, at + 4 * GROUP, GROUP), load(terms, at + 3 * GROUP, GROUP))
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
    level = splat(IQ4_LEVELS[0], GROUP)
    for i in range(15):
        level = select(scaled < _THRESHOLDS[i], level, IQ4_LEVELS[i + 1])
    return level


@inline
def nearest_index(scaled: Any) -> Any:
    """The index of the level nearest to each lane, as int32."""
    index = bits_of(scaled) & 0
    for i in range(15):
        index = select(scaled < _THRESHOLDS[i], index, i + 1)
    return index
