"""q3_K, q6_K and iq4_xs with less error than ggml's: weight = d * scale * level, of both signs.

Blocks are those of `q3_k`, `q6_k` and `iq4_xs`. The search is that of `best_affine` with one unknown less:

1. Fit: try the extreme weight of a sub-block at or near either end of the levels, which are one more below
   zero than above, or unevenly spaced. Under a trial scale t, weights are t (q + r), q the nearest level; a
   scale of t (1 + e) leaves t (r - e q), so that e = sum(w r q) / sum(w q^2) is best.
2. Round together: try d of either sign around largest / highest integer. The integer nearest to scale / d is
   best, and a deviation ds from the fit costs sum(w q^2) ds^2.
3. Choose: with d fixed, try the integers around, of either sign, and round all weights anew for each.
4. Solve: with integers and levels fixed, d follows by least squares. Back to 3, until nothing moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import iq4_xs, q3_k, q6_k
from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.best import (
    EVEN,
    IQ4,
    as_half,
    empty_fit,
    gather_tile,
    gather_weights,
    half_at,
    nearest_level,
    to_beat,
    write_better,
)
from ggplan.quants.codecs import Rows
from ggplan.quants.half import floats_of
from ggplan.quants.layout32 import flat
from ggplan.quants.memory import load, new_floats, new_integers, store
from ggplan.quants.search import find_extreme
from ggplan.quants.superblock import SHIFT, SUPERBLOCK, TILE, requantize
from ggplan.quants.vector import (
    WIDTH,
    any_lane,
    float_of,
    integer_of,
    maximum,
    minimum,
    repeat,
    select,
    splat,
)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_INFINITY = np.float32(np.inf)
_UNITS = 24
_ROUNDS = 3


def encode_q3_k(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 110 bytes for 256 weights."""
    q3_k.encode(rows, importance, out)
    columns = np.empty(0, np.float32) if importance is None else importance
    _refine_q3_k(flat(rows), flat(columns), 16, out.reshape(-1))


def encode_q6_k(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 210 bytes for 256 weights."""
    q6_k.encode(rows, importance, out)
    columns = np.empty(0, np.float32) if importance is None else importance
    _refine_q6_k(flat(rows), flat(columns), 16, out.reshape(-1))


def encode_iq4_xs(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 136 bytes for 256 weights."""
    iq4_xs.encode(rows, importance, out)
    columns = np.empty(0, np.float32) if importance is None else importance
    _refine_iq4_xs(flat(rows), flat(columns), 32, out.reshape(-1))


@kernel
def _refine_q3_k(weights: Any, importance: Any, size: Any, out: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(SUPERBLOCK * TILE)
    scratch = new_floats(SUPERBLOCK * TILE)
    scales = new_integers(16 * TILE)
    units = new_integers(TILE)
    levels = new_integers(SUPERBLOCK * TILE)
    block = new_integers(110 * TILE)
    blocks = np.empty(110 * TILE, np.uint8)
    fit = empty_fit()
    total = weights.size // SUPERBLOCK
    for first in range(0, total, TILE):
        count = min(TILE, total - first)
        gather_tile(weights, first, count, total, scratch, size, tile)
        gather_weights(importance, first, count, scratch, size, weight)
        for r in range(TILE):
            at = (first + min(r, count - 1)) * 110
            for j in range(16):
                low = (out[at + 96 + j % 8] >> (j // 8 * 4)) & 15
                high = (out[at + 104 + j % 4] >> (j // 4 * 2)) & 3
                scales[j * TILE + r] = np.int32(low | (high << 4)) - 32
            units[r] = half_at(out, at + 108)
        d, better = _refine(
            tile, weight, size, EVEN, -4, -32, units, scales, np.float32(2.5), np.float32(0.15), 16, 4, 3
        )
        if any_lane(better):
            q3_k.pack(tile, tile, d, scales, fit, levels, block)
            write_better(block, 110, better, count, blocks, out, first)


@kernel
def _refine_q6_k(weights: Any, importance: Any, size: Any, out: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(SUPERBLOCK * TILE)
    scratch = new_floats(SUPERBLOCK * TILE)
    scales = new_integers(16 * TILE)
    units = new_integers(TILE)
    levels = new_integers(SUPERBLOCK * TILE)
    block = new_integers(210 * TILE)
    blocks = np.empty(210 * TILE, np.uint8)
    fit = empty_fit()
    total = weights.size // SUPERBLOCK
    for first in range(0, total, TILE):
        count = min(TILE, total - first)
        gather_tile(weights, first, count, total, scratch, size, tile)
        gather_weights(importance, first, count, scratch, size, weight)
        for r in range(TILE):
            at = (first + min(r, count - 1)) * 210
            for j in range(16):
                scales[j * TILE + r] = np.int8(out[at + 192 + j])
            units[r] = half_at(out, at + 208)
        d, better = _refine(
            tile, weight, size, EVEN, -32, -128, units, scales, np.float32(29), np.float32(0.3), 13, 12, 3
        )
        if any_lane(better):
            q6_k.pack_scales(d, scales, block, fit)
            for j in range(16):
                requantize(tile, tile, fit, j, size, -32, 31, levels)
            q6_k.pack_levels(levels, block)
            write_better(block, 210, better, count, blocks, out, first)


@kernel
def _refine_iq4_xs(weights: Any, importance: Any, size: Any, out: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(SUPERBLOCK * TILE)
    scratch = new_floats(SUPERBLOCK * TILE)
    scales = new_integers(8 * TILE)
    units = new_integers(TILE)
    block = new_integers(136 * TILE)
    blocks = np.empty(136 * TILE, np.uint8)
    total = weights.size // SUPERBLOCK
    for first in range(0, total, TILE):
        count = min(TILE, total - first)
        gather_tile(weights, first, count, total, scratch, size, tile)
        gather_weights(importance, first, count, scratch, size, weight)
        for r in range(TILE):
            at = (first + min(r, count - 1)) * 136
            for j in range(8):
                low = (out[at + 4 + j // 2] >> (j % 2 * 4)) & 15
                high = (out[at + 2 + j // 4] >> (j % 4 * 2)) & 3
                scales[j * TILE + r] = np.int32(low | (high << 4)) - 32
            units[r] = half_at(out, at)
        d, better = _refine(
            tile, weight, size, IQ4, 0, -32, units, scales, np.float32(105), np.float32(5), 7, 2, 1
        )
        if any_lane(better):
            iq4_xs.pack(tile, d, scales, block)
            write_better(block, 136, better, count, blocks, out, first)


@inline
def _refine(
    tile: Any,
    weight: Any,
    size: Any,
    kind: Any,
    lowest: Any,
    lowest_scale: Any,
    units: Any,
    scales: Any,
    first: Any,
    step: Any,
    trials: Any,
    wide: Any,
    narrow: Any,
) -> Any:
    """Improve sixteen superblocks.

    Parameters
    ----------
    tile, weight
        The weights and what their errors count, laid out as `superblock` says.
    size, kind, lowest, lowest_scale
        Weights in a sub-block; the kind of levels and the lowest of even ones; the lowest scale.
    units, scales
        What the default encoder found: the bits of d, then the integers, which are improved.
    first, step, trials
        The levels, but for their sign, that the extreme weight of a sub-block is tried at.
    wide, narrow
        How far from a rounded scale to look for a better one, at first and then.

    Returns
    -------
    tuple
        d, and the lanes in which it is, with `scales`, better than the default.
    """
    count = SUPERBLOCK // size
    new_scales = new_integers(16 * TILE)
    fits = new_floats(2 * 16 * TILE)
    d = floats_of(load(units, 0, TILE))
    least = splat(_INFINITY, TILE)
    default_error = least
    error = least
    moved = True
    for turn in range(2 + _ROUNDS):
        error, change = _measure(tile, weight, size, kind, lowest, d, scales)
        if turn == 0:
            least = to_beat(error)
            default_error = least
        if turn == 1 + _ROUNDS or not moved:
            break
        if turn == 0:
            _fit(tile, weight, size, kind, lowest, first, step, trials, fits)
            this_d = _round_together(fits, count, lowest_scale, new_scales)
        else:
            this_d = as_half(d + change)
            _keep(d == d, count, scales, new_scales)
        radius = narrow if turn else wide
        this_error = _choose(tile, weight, size, kind, lowest, lowest_scale, this_d, new_scales, radius)
        better = this_error < least
        moved = turn == 0 or any_lane(better)
        least = select(better, this_error, least)
        d = select(better, this_d, d)
        _keep(better, count, new_scales, scales)
    return d, error < default_error


@inline
def _keep(better: Any, count: Any, new_scales: Any, scales: Any) -> None:
    """Take the new integers in the lanes that are better."""
    for at in range(0, count * TILE, TILE):
        store(scales, at, select(better, load(new_scales, at, TILE), load(scales, at, TILE)))


@inline
def _measure(tile: Any, weight: Any, size: Any, kind: Any, lowest: Any, d: Any, scales: Any) -> Any:
    """The error of superblocks, each weight worked out as by a decoder, and the change of d that is best."""
    floor = np.float32(lowest)
    ceiling = -floor - _ONE
    wide_d = repeat(d, WIDTH)
    sums = new_floats(3 * WIDTH)
    total = splat(_ZERO, TILE)
    sum_rq = splat(_ZERO, TILE)
    sum_q2 = splat(_ZERO, TILE)
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        integer = float_of(load(scales, at, WIDTH))
        scale = wide_d * integer
        inverse = _ONE / scale
        part = splat(_ZERO, WIDTH)
        part_rq = splat(_ZERO, WIDTH)
        part_q2 = splat(_ZERO, WIDTH)
        for i in range(size * at, size * (at + WIDTH), WIDTH):
            x = load(tile, i, WIDTH)
            w = load(weight, i, WIDTH)
            level = nearest_level(x * inverse, kind, floor, ceiling)
            residue = x - scale * level
            wr = w * residue
            q = integer * level
            part = part + wr * residue
            part_rq = part_rq + wr * q
            part_q2 = part_q2 + w * q * q
        store(sums, 0, part)
        store(sums, WIDTH, part_rq)
        store(sums, 2 * WIDTH, part_q2)
        for i in range(0, WIDTH, TILE):
            total = total + load(sums, i, TILE)
            sum_rq = sum_rq + load(sums, WIDTH + i, TILE)
            sum_q2 = sum_q2 + load(sums, 2 * WIDTH + i, TILE)
    return total, sum_rq / sum_q2


@inline
def _choose(
    tile: Any,
    weight: Any,
    size: Any,
    kind: Any,
    lowest: Any,
    lowest_scale: Any,
    d: Any,
    scales: Any,
    radius: Any,
) -> Any:
    """Move `scales` to the best integers within `radius` of them and their negatives; return the errors."""
    floor = np.float32(lowest)
    ceiling = -floor - _ONE
    wide_d = repeat(d, WIDTH)
    total = splat(_ZERO, TILE)
    errors = new_floats(WIDTH)
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        middle = load(scales, at, WIDTH)
        best = middle
        least = splat(_INFINITY, WIDTH)
        for sign in range(1, -2, -2):
            for k in range(-radius, radius + 1):
                this = maximum(minimum(middle * sign + k, -lowest_scale - 1), lowest_scale)
                scale = wide_d * float_of(this)
                inverse = _ONE / scale
                error = splat(_ZERO, WIDTH)
                for i in range(size * at, size * (at + WIDTH), WIDTH):
                    x = load(tile, i, WIDTH)
                    residue = scale * nearest_level(x * inverse, kind, floor, ceiling) - x
                    error = error + load(weight, i, WIDTH) * residue * residue
                better = error < least
                least = select(better, error, least)
                best = select(better, this, best)
        store(scales, at, best)
        store(errors, 0, least)
        for part in range(0, WIDTH, TILE):
            total = total + load(errors, part, TILE)
    return total


@inline
def _fit(
    tile: Any, weight: Any, size: Any, kind: Any, lowest: Any, first: Any, step: Any, trials: Any, fits: Any
) -> None:
    """Find each sub-block's best real scale, and what moving it costs, into `fits`."""
    floor = np.float32(lowest)
    ceiling = -floor - _ONE
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        extreme, _ = find_extreme(tile, size * at, size, WIDTH)
        best_scale = splat(_ZERO, WIDTH)
        best_q2 = splat(_ZERO, WIDTH)
        least = splat(_INFINITY, WIDTH)
        for k in range(2 * trials):
            level = first + step * np.float32(k // 2)
            level = level if k % 2 else -level
            inverse = level / extreme
            scale = extreme / level
            sum_r2 = splat(_ZERO, WIDTH)
            sum_rq = splat(_ZERO, WIDTH)
            sum_q2 = splat(_ZERO, WIDTH)
            for i in range(size * at, size * (at + WIDTH), WIDTH):
                value = load(tile, i, WIDTH) * inverse
                w = load(weight, i, WIDTH)
                q = nearest_level(value, kind, floor, ceiling)
                r = value - q
                wr = w * r
                sum_r2 = sum_r2 + wr * r
                sum_rq = sum_rq + wr * q
                sum_q2 = sum_q2 + w * q * q
            change = sum_rq / sum_q2
            error = (sum_r2 - change * sum_rq) * scale * scale
            better = error < least
            least = select(better, error, least)
            best_scale = select(better, scale + change * scale, best_scale)
            best_q2 = select(better, sum_q2, best_q2)
        store(fits, at, best_scale)
        store(fits, 16 * TILE + at, best_q2)


@inline
def _round_together(fits: Any, count: Any, lowest_scale: Any, scales: Any) -> Any:
    """Find d, a half, and the integers whose products come closest to `fits`."""
    extreme, _ = find_extreme(fits, 0, count, TILE)
    floor = np.float32(lowest_scale)
    ceiling = -floor - _ONE
    best = extreme / floor
    least = splat(_INFINITY, TILE)
    step = np.float32(np.float32(0.3) * -floor / np.float32(_UNITS))
    for k in range(2 * _UNITS):
        share = floor - _ONE + step * np.float32(k // 2)
        share = share if k % 2 else -share
        d = extreme / share
        inverse = share / extreme
        cost = splat(_ZERO, TILE)
        for j in range(count):
            scale = load(fits, j * TILE, TILE)
            integer = maximum(minimum(scale * inverse + SHIFT, SHIFT + ceiling), SHIFT + floor) - SHIFT
            ds = d * integer - scale
            cost = cost + load(fits, (16 + j) * TILE, TILE) * ds * ds
        better = cost < least
        least = select(better, cost, least)
        best = select(better, d, best)
    d = as_half(best)
    inverse = _ONE / d
    for j in range(count):
        value = load(fits, j * TILE, TILE) * inverse
        integer = maximum(minimum(value + SHIFT, SHIFT + ceiling), SHIFT + floor) - SHIFT
        store(scales, j * TILE, integer_of(integer))
    return d
