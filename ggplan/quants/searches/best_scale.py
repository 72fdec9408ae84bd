"""Blocks of one scale with less error than ggml's: weight = d * level.

    type             weights    levels
    q4_0, q5_0       32         -8 to 7, -16 to 15
    q8_0             32         -127 to 127
    iq4_nl           32         iq4_nl's sixteen
    tq1_0, tq2_0     256        -1, 0, 1
    q2_0             64         -1, 0, 1, 2
    q1_0             128        -1, 1

As soon as d is known, every weight takes the nearest level, so d is all there is to search. Trial k puts the
weight of the largest magnitude at level first + step k, or at its negative where levels are not the same on
both sides. For the levels that this gives, the best d follows by least squares (see `best_symmetric`), and so
does the error that it leaves. The best d of all, rounded to a half, is taken where its error, as a decoder
works it out, is less than ggml's.

ggml's ternary encoders and q2_0 make the largest weight a level. That is right for weights that are trained
to three values; of others, most would become zero. Here d falls to where the error is least, and q2_0 has a
use for its fourth level. q1_0's d, the mean of |x|, is the best there is without an importance matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.formats.fields import Blocks
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.kernels import F32, I64, F32s, U8s, U16s, Weights, inline, kernel, scratch
from ggplan.quants.memory import floats_at, load, load_weights, store
from ggplan.quants.searches.best import EVEN, IQ4, SIGNS, as_half, nearest_level, to_beat, weigh_blocks
from ggplan.quants.searches.blocks import GROUP, Weighted, load_blocks
from ggplan.quants.searches.direct import ternary_codes
from ggplan.quants.searches.ggml import find_extreme
from ggplan.quants.searches.iq4 import nearest_index
from ggplan.quants.vector import integer_of, lane, maximum, minimum, rounded, select, splat

_ZERO = np.float32(0)
_ONE = np.float32(1)


class ScaleTrials(NamedTuple):
    """The levels at which the largest weight is tried.

    Attributes
    ----------
    first, step, trials
        As in the module's text.
    """

    first: float
    step: float
    trials: int


def improver(
    improve: Callable[..., None],
    lowest: int,
    highest: int,
    plain: ScaleTrials,
    with_importance: ScaleTrials | None = None,
    zero: int | None = None,
) -> Callable[[Weighted, Blocks], None]:
    """What makes fields better.

    Parameters
    ----------
    improve
        A kernel of this module.
    lowest, highest
        The levels.
    plain, with_importance
        The trials without and with importance, where they differ.
    zero
        The code of level 0; -lowest if not given.
    """
    offset = -lowest if zero is None else zero
    guided = plain if with_importance is None else with_importance

    def fields(given: Weighted, found: Blocks) -> None:
        size = found.codes.shape[1]
        first, step, trials = plain if given.columns is None else guided
        improve(
            given.weights, given.n_blocks, given.columns, given.per_row, scratch((2 * size + 3) * GROUP),
            size, lowest, highest, first, step, trials, offset, found.scales.view(np.uint16), found.codes,
        )  # fmt: skip

    return fields


def _kernel(kind: int) -> Callable[..., None]:
    """The kernel of a kind of levels."""

    def improve(
        weights: Weights, count: I64, columns: F32s, per_row: I64, room: F32s,
        size: I64, lowest: I64, highest: I64, first_trial: F32, step: F32, trials: I64, zero: I64,
        d: U16s, codes: U8s,
    ) -> None:  # fmt: skip
        tile = room
        errors = floats_at(room, size * GROUP)
        inverses = floats_at(room, 2 * size * GROUP)
        levels = (np.float32(lowest), np.float32(highest))
        done = -1
        for number in range((count + GROUP - 1) // GROUP):
            first = min(number * GROUP, count - GROUP)
            load_blocks(weights, first, size, tile)
            done = weigh_blocks(columns, per_row, first, size, errors, done)
            scale = _best_scale(tile, errors, size, kind, levels, first_trial, step, trials)
            default = floats_of(load(d, first, GROUP))
            least = to_beat(_error(tile, errors, size, kind, levels, default))
            better = _error(tile, errors, size, kind, levels, scale) < least
            store(d, first, select(better, halves_of(scale), load(d, first, GROUP)))
            if kind != SIGNS:
                inverse = _ONE / scale
                store(inverses, 0, select(scale == _ZERO, _ZERO, inverse) if kind == IQ4 else inverse)
                for r in range(GROUP):
                    if lane(better, r):
                        for i in range((first + r) * size, (first + r + 1) * size, 32):
                            store(codes, i, _codes(weights, i, inverses[r], kind, levels, zero))

    improve.__qualname__ = f"improve_scale_{kind}"
    return kernel(improve)


even, iq4, signs = _kernel(EVEN), _kernel(IQ4), _kernel(SIGNS)


@inline
def _codes(weights: Any, start: Any, inverse: Any, kind: Any, levels: Any, zero: Any) -> Any:
    """The codes of 32 weights."""
    if kind == IQ4:
        return nearest_index(load_weights(weights, start, 32) * inverse)
    lowest, highest = levels
    if lowest == -_ONE and highest == _ONE:
        return ternary_codes(weights, start, inverse)
    value = rounded(load_weights(weights, start, 32) * inverse)
    return integer_of(maximum(minimum(value, highest), lowest)) + zero


@inline
def _best_scale(
    tile: Any, errors: Any, size: Any, kind: Any, levels: Any, first: Any, step: Any, trials: Any
) -> Any:
    """Find d, a half, of each block of a tile."""
    lowest, highest = levels
    _, magnitude = find_extreme(tile, 0, size, GROUP)
    found = splat(_ZERO, GROUP)
    most = splat(_ZERO, GROUP)
    sides = 1 if lowest == -highest else 2
    for k in range(sides * trials):
        level = first + step * np.float32(k // sides)
        level = -level if k % sides else level
        inverse = level / magnitude
        sum_vq = splat(_ZERO, GROUP)
        sum_q2 = splat(_ZERO, GROUP)
        for at in range(0, size * GROUP, GROUP):
            value = load(tile, at, GROUP) * inverse
            q = nearest_level(value, kind, lowest, highest)
            wq = load(errors, at, GROUP) * q
            sum_vq = sum_vq + wq * value
            sum_q2 = sum_q2 + wq * q
        # What least squares take off the sum of squares, in units of the largest magnitude.
        change = sum_vq / (sum_q2 * level)
        gain = change * (sum_vq / level)
        better = gain > most
        most = select(better, gain, most)
        found = select(better, change * magnitude, found)
    return as_half(found)


@inline
def _error(tile: Any, errors: Any, size: Any, kind: Any, levels: Any, d: Any) -> Any:
    """The weighted squared error of each block with scale d, each weight worked out as by a decoder."""
    lowest, highest = levels
    inverse = _ONE / d
    error = splat(_ZERO, GROUP)
    for at in range(0, size * GROUP, GROUP):
        x = load(tile, at, GROUP)
        r = x - d * nearest_level(x * inverse, kind, lowest, highest)
        error = error + load(errors, at, GROUP) * r * r
    return error
