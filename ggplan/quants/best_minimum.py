"""q4_1 and q5_1 with less error than ggml's: weight = d * level + m, in blocks of 32.

Blocks are those of `blocks32`. A trial lays the levels over a part of the range of the weights, or a little
more: the range's lower and upper end move in by steps of their own. Under a trial, weights are t v + low, and
least squares over the levels q nearest to v gives v = a q + b, which moves t and low. What error that leaves
follows from sums alone. The best fit of all, rounded to halves, is taken where its error, as a decoder works
it out, is less than ggml's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import blocks32
from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.best import (
    as_half,
    gather_block_weights,
    gather_blocks,
    half_at,
    to_beat,
)
from ggplan.quants.codecs import Rows
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.layout32 import flat, store_quants
from ggplan.quants.memory import load, load_weights, new_floats, new_integers, store, store_bytes
from ggplan.quants.vector import WIDTH, integer_of, lane, maximum, minimum, rounded, select, splat

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_SIZE = 32
_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITY = np.float32(np.inf)
_SINGULAR = np.float32(1e-5)


def encode_q4_1(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 20)."""
    blocks32.encode_q4_1(rows, importance, out)
    _encode(rows, importance, 15, out)


def encode_q5_1(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 24)."""
    blocks32.encode_q5_1(rows, importance, out)
    _encode(rows, importance, 31, out)


def _encode(rows: Rows, importance: F32Array | None, highest: int, out: Bytes) -> None:
    columns = np.empty(0, np.float32) if importance is None else importance
    # The ends' first place and step, as parts of a level, and the number of places of each.
    first, step, places = (0.15, 0.5, 2) if importance is None else (-0.4, 0.2, 9)
    _refine(flat(rows), flat(columns), out.reshape(-1), highest, np.float32(first), np.float32(step), places)


@kernel
def _refine(
    weights: Any, importance: Any, out: Any, highest: Any, first_place: Any, step: Any, places: Any
) -> None:
    block_bytes = 20 if highest == 15 else 24
    tile = new_floats(_SIZE * WIDTH)
    weight = new_floats(_SIZE * WIDTH)
    scratch = new_floats(_SIZE * WIDTH)
    lows = new_floats(WIDTH)
    inverses = new_floats(WIDTH)
    halves = new_integers(WIDTH)
    units = new_integers(2 * WIDTH)
    total = weights.size // _SIZE
    for at in range(0, _SIZE * WIDTH, WIDTH):
        store(weight, at, splat(_ONE, WIDTH))
    for first in range(0, total, WIDTH):
        count = min(WIDTH, total - first)
        gather_blocks(weights, first, count, total, scratch, _SIZE, tile)
        if importance.size > 0:
            gather_block_weights(importance, first, count, scratch, _SIZE, weight)
        for r in range(WIDTH):
            at = (first + min(r, count - 1)) * block_bytes
            units[r] = half_at(out, at)
            units[WIDTH + r] = half_at(out, at + 2)
        d, m, better = _search(tile, weight, np.float32(highest), first_place, step, places, units)
        store(lows, 0, m)
        store(inverses, 0, _ONE / d)
        store(halves, 0, halves_of(d) | (halves_of(m) << 16))
        for r in range(count):
            if lane(better, r):
                at = (first + r) * block_bytes
                start = (first + r) * _SIZE
                store_bytes(out, at, halves[r], 4)
                low = _levels(load_weights(weights, start, 16), inverses[r], lows[r], np.float32(highest))
                high = _levels(
                    load_weights(weights, start + 16, 16), inverses[r], lows[r], np.float32(highest)
                )
                store_quants(out, at + 4, integer_of(low), integer_of(high), highest)


@inline
def _levels(values: Any, inverse: Any, low: Any, highest: Any) -> Any:
    """The nearest levels, float32."""
    return maximum(minimum(rounded((values - low) * inverse), highest), _ZERO)


@inline
def _search(tile: Any, weight: Any, highest: Any, first: Any, step: Any, places: Any, units: Any) -> Any:
    """Find d and m, halves, of each block of a tile, and the lanes where they are better than `units`."""
    smallest = load(tile, 0, WIDTH)
    largest = smallest
    for at in range(WIDTH, _SIZE * WIDTH, WIDTH):
        x = load(tile, at, WIDTH)
        smallest = minimum(x, smallest)
        largest = maximum(x, largest)
    sum_w = splat(_ZERO, WIDTH)
    sum_x = splat(_ZERO, WIDTH)
    sum_x2 = splat(_ZERO, WIDTH)
    for at in range(0, _SIZE * WIDTH, WIDTH):
        x = load(tile, at, WIDTH) - smallest
        w = load(weight, at, WIDTH)
        sum_w = sum_w + w
        sum_x = sum_x + w * x
        sum_x2 = sum_x2 + w * x * x
    level = (largest - smallest) / highest
    found = splat(_ZERO, WIDTH)
    found_low = smallest
    least = splat(_INFINITY, WIDTH)
    for trial in range(places * places - 1):  # not both ends at their last place
        in_from_below = level * (first + step * np.float32(trial // places))
        low = smallest + in_from_below
        high = largest - level * (first + step * np.float32(trial % places))
        scale = (high - low) / highest
        inverse = highest / (high - low)
        sum_q = splat(_ZERO, WIDTH)
        sum_q2 = splat(_ZERO, WIDTH)
        sum_vq = splat(_ZERO, WIDTH)
        for at in range(0, _SIZE * WIDTH, WIDTH):
            v = (load(tile, at, WIDTH) - low) * inverse
            q = maximum(minimum(rounded(v), highest), _ZERO)
            wq = load(weight, at, WIDTH) * q
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

    default_d = floats_of(load(units, 0, WIDTH))
    default_m = floats_of(load(units, WIDTH, WIDTH))
    d = as_half(found)
    m = as_half(found_low)
    least = to_beat(_error(tile, weight, highest, default_d, default_m))
    return d, m, _error(tile, weight, highest, d, m) < least


@inline
def _error(tile: Any, weight: Any, highest: Any, d: Any, m: Any) -> Any:
    """The weighted squared error of each block with scale d and minimum m, as by a decoder."""
    inverse = _ONE / d
    error = splat(_ZERO, WIDTH)
    for at in range(0, _SIZE * WIDTH, WIDTH):
        x = load(tile, at, WIDTH)
        r = x - (d * _levels(x, inverse, m, highest) + m)
        error = error + load(weight, at, WIDTH) * r * r
    return error


@inline
def _solve(sum_w: Any, sum_q: Any, sum_q2: Any, sum_r: Any, sum_rq: Any) -> Any:
    """The factor and the shift of q that fit r best."""
    determinant = sum_w * sum_q2 - sum_q * sum_q
    solvable = determinant > _SINGULAR * sum_w * sum_q2
    factor = (sum_w * sum_rq - sum_q * sum_r) / determinant
    shift = (sum_q2 * sum_r - sum_q * sum_rq) / determinant
    return select(solvable, factor, _ZERO), select(solvable, shift, _ZERO)
