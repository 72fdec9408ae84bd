"""q4_1 and q5_1 with less error than ggml's: weight = d * level + m, in blocks of 32.

A trial lays the levels over a part of the range of the weights, or a little
more: the range's lower and upper end move in by steps of their own. Under a trial, weights are t v + low, and
least squares over the levels q nearest to v gives v = a q + b, which moves t and low. What error that leaves
follows from sums alone. The best fit of all, rounded to halves, is taken where its error, as a decoder works
it out, is less than ggml's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.formats.fields import Blocks
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.kernels import F32, I64, F32s, I32s, U8s, Weights, inline, kernel, scratch
from ggplan.quants.memory import floats_at, load, load_weights, store
from ggplan.quants.searches.best import as_half, to_beat, weigh_blocks
from ggplan.quants.searches.blocks import GROUP, Weighted, load_blocks
from ggplan.quants.vector import integer_of, lane, maximum, minimum, rounded, select, splat

_SIZE = 32
_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITY = np.float32(np.inf)
_SINGULAR = np.float32(1e-5)


def improve(given: Weighted, found: Blocks, highest: int) -> None:
    """Make fields better, with codes up to `highest`."""
    # The ends' first place and step, as parts of a level, and the number of places of each.
    first, step, places = (0.15, 0.5, 2) if given.columns is None else (-0.4, 0.2, 9)
    _refine(
        given.weights, given.n_blocks, given.columns, given.per_row, scratch((2 * _SIZE + 2) * GROUP),
        highest, first, step, places, found.scales.view(np.int32), found.codes,
    )  # fmt: skip


@kernel
def _refine(
    weights: Weights, count: I64, columns: F32s, per_row: I64, room: F32s,
    highest: F32, first_place: F32, step: F32, places: I64, scales: I32s, codes: U8s,
) -> None:  # fmt: skip
    tile = room
    errors = floats_at(tile, _SIZE * GROUP)
    lows = floats_at(errors, _SIZE * GROUP)
    inverses = floats_at(lows, GROUP)
    done = -1
    for number in range((count + GROUP - 1) // GROUP):
        first = min(number * GROUP, count - GROUP)
        load_blocks(weights, first, _SIZE, tile)
        done = weigh_blocks(columns, per_row, first, _SIZE, errors, done)
        default = load(scales, first, GROUP)
        d, m, better = _search(tile, errors, highest, first_place, step, places, default)
        store(scales, first, select(better, halves_of(d) | (halves_of(m) << 16), default))
        store(lows, 0, m)
        store(inverses, 0, _ONE / d)
        for r in range(GROUP):
            if lane(better, r):
                start = (first + r) * _SIZE
                level = _levels(load_weights(weights, start, _SIZE), inverses[r], lows[r], highest)
                store(codes, start, integer_of(level))


@inline
def _levels(values: Any, inverse: Any, low: Any, highest: Any) -> Any:
    """The nearest levels, float32."""
    return maximum(minimum(rounded((values - low) * inverse), highest), _ZERO)


@inline
def _search(tile: Any, weight: Any, highest: Any, first: Any, step: Any, places: Any, default: Any) -> Any:
    """Find d and m, halves, of each block of a tile, and the lanes where they are better than `default`."""
    smallest = load(tile, 0, GROUP)
    largest = smallest
    for at in range(GROUP, _SIZE * GROUP, GROUP):
        x = load(tile, at, GROUP)
        smallest = minimum(x, smallest)
        largest = maximum(x, largest)
    sum_w = splat(_ZERO, GROUP)
    sum_x = splat(_ZERO, GROUP)
    sum_x2 = splat(_ZERO, GROUP)
    for at in range(0, _SIZE * GROUP, GROUP):
        x = load(tile, at, GROUP) - smallest
        w = load(weight, at, GROUP)
        sum_w = sum_w + w
        sum_x = sum_x + w * x
        sum_x2 = sum_x2 + w * x * x
    level = (largest - smallest) / highest
    found = splat(_ZERO, GROUP)
    found_low = smallest
    least = splat(_INFINITY, GROUP)
    for trial in range(places * places - 1):  # not both ends at their last place
        in_from_below = level * (first + step * np.float32(trial // places))
        low = smallest + in_from_below
        high = largest - level * (first + step * np.float32(trial % places))
        scale = (high - low) / highest
        inverse = highest / (high - low)
        sum_q = splat(_ZERO, GROUP)
        sum_q2 = splat(_ZERO, GROUP)
        sum_vq = splat(_ZERO, GROUP)
        for at in range(0, _SIZE * GROUP, GROUP):
            v = (load(tile, at, GROUP) - low) * inverse
            q = maximum(minimum(rounded(v), highest), _ZERO)
            wq = load(weight, at, GROUP) * q
            sum_q = sum_q + wq
            sum_q2 = sum_q2 + wq * q
            sum_vq = sum_vq + wq * v
        sum_v = (sum_x - in_from_below * sum_w) * inverse
        sum_v2 = (sum_x2 - in_from_below * (sum_x + sum_x - in_from_below * sum_w)) * inverse * inverse
        # v = q + r: the fit to r is small, and so are its errors of rounding.
        sum_rq = sum_vq - sum_q2
        sum_r = sum_v - sum_q
        change, shift = _solve(sum_w, sum_q, sum_q2, sum_r, sum_rq)
        sum_r2 = sum_v2 - sum_vq - sum_rq
        error = (sum_r2 - change * sum_rq - shift * sum_r) * scale * scale
        better = error < least
        least = select(better, error, least)
        found = select(better, scale + change * scale, found)
        found_low = select(better, low + shift * scale, found_low)

    default_d = floats_of(default & 0xFFFF)
    default_m = floats_of((default >> 16) & 0xFFFF)
    d = as_half(found)
    m = as_half(found_low)
    least = to_beat(_error(tile, weight, highest, default_d, default_m))
    return d, m, _error(tile, weight, highest, d, m) < least


@inline
def _error(tile: Any, weight: Any, highest: Any, d: Any, m: Any) -> Any:
    """The weighted squared error of each block with scale d and minimum m, as by a decoder."""
    inverse = _ONE / d
    error = splat(_ZERO, GROUP)
    for at in range(0, _SIZE * GROUP, GROUP):
        x = load(tile, at, GROUP)
        r = x - (d * _levels(x, inverse, m, highest) + m)
        error = error + load(weight, at, GROUP) * r * r
    return error


@inline
def _solve(sum_w: Any, sum_q: Any, sum_q2: Any, sum_r: Any, sum_rq: Any) -> Any:
    """The factor and the shift of q that fit r best."""
    determinant = sum_w * sum_q2 - sum_q * sum_q
    solvable = determinant > _SINGULAR * sum_w * sum_q2
    factor = (sum_w * sum_rq - sum_q * sum_r) / determinant
    shift = (sum_q2 * sum_r - sum_q * sum_rq) / determinant
    return select(solvable, factor, _ZERO), select(solvable, shift, _ZERO)
