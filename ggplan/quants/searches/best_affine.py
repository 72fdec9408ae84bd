"""q2_K, q4_K and q5_K with less error than ggml's: weight = d * scale * level - dmin * min.

Four sets of numbers make a block: d and dmin, the integer scales and mins of sub-blocks, and the levels of
weights. For given scales and offsets each level follows by rounding; what to
search is the rest, and it takes turns:

1. Fit: the best real scale s and offset o of each sub-block by `ggml.affine_search`, then by least squares
   over the levels that these give. About the optimum the error is E(s, o) = E + A ds^2 - 2 B ds do + C do^2
   with A = sum w q^2, B = sum w q, C = sum w, while the levels stay.
2. Round together: try d and dmin in pairs around largest / highest; for each, every sub-block takes the scale
   above or below s / d, and the min that is best beside it. E tells what all that costs, without a
   look at the weights.
3. Choose: with d and dmin fixed, try the scales and mins around each sub-block's, and round all its weights
   again for each pair. Levels move against each other, so the error has many small valleys: a search only
   downhill would stay in the first. A scale that grows takes the min along, so that the middle of the range
   stays in place.
4. Solve: with integers and levels fixed, the error is quadratic in d and dmin; two equations. Back to 3.

The better of ggml's fields and of what 2 and 3 find goes through 4 and 3 until nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ggplan.quants.formats.fields import Affine, empty_affine, memory_of
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.kernels import I64, F32s, U8s, U16s, Weights, inline, kernel
from ggplan.quants.memory import floats_at, integers_at, load, store
from ggplan.quants.searches.affine import Rules, round_weights
from ggplan.quants.searches.best import as_half, load_both, to_beat, weighed
from ggplan.quants.searches.ggml import affine_search
from ggplan.quants.searches.superblock import (
    SHIFT,
    SUPERBLOCK,
    TILE,
    Superblocks,
    first_superblock,
    keep_better,
    load_small,
    position,
    store_codes,
    store_small,
    tile_in,
)
from ggplan.quants.vector import (
    WIDTH,
    absolute,
    add_runs,
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
_FIRST, _STEP, _TRIALS = np.float32(-0.9), np.float32(0.1), 19
_POLISHES = 2
_PAIRS = 12
_ROUNDS = 4

# How far from a sub-block's scale and min to look for better ones, each and the sum of both: at first far,
# then near. That leaves as much error as (5, 10) and then (3, 6), or 1 % less, in four fifths of the time.
# ggml itself takes twice as long with an importance matrix.
_NEAR = 2, 4
_FAR, _FAR_WITH_IMPORTANCE = (4, 8), (6, 10)
_BESIDE = 2, 3  # from integers that were the best ones of weights a little different
_SINGULAR = np.float32(1e-5)


def improve(search: Callable[[Superblocks], Affine], rules: Rules, given: Superblocks) -> Affine:
    """The better of the fields that `search` finds and of those found here, for each superblock."""
    n = SUPERBLOCK // rules.size
    before, proposed, after = search(given), empty_affine(given.n, n), empty_affine(given.n, n)
    shape = rules.size, rules.highest, rules.largest
    far = _FAR if given.columns is None else _FAR_WITH_IMPORTANCE
    counted = weighed(given)
    _propose(*counted, *shape, *memory_of(proposed)[:-1])
    _improve(*counted, *shape, *far, *_NEAR, *memory_of(before), *memory_of(proposed)[:-1], *memory_of(after))
    return after


def improve_near(found: Affine, rules: Rules, given: Superblocks) -> Affine:
    """Fields found for weights that have changed a little since: steps 3 and 4 alone."""
    n = SUPERBLOCK // rules.size
    after = empty_affine(given.n, n)
    shape = rules.size, rules.highest, rules.largest
    before = memory_of(found)
    _improve(*weighed(given), *shape, *_BESIDE, *_NEAR, *before, *before[:-1], *memory_of(after))
    return after


@kernel
def _propose(
    weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
    size: I64, highest: I64, largest: I64, d: U16s, dmin: U16s, scales: U8s, mins: U8s,
) -> None:  # fmt: skip
    """Steps 1 and 2."""
    tile = tile_in(room)
    n = SUPERBLOCK // size
    for number in range((count + TILE - 1) // TILE):
        first = first_superblock(number, count)
        load_both(weights, columns, per_row, skipped, first, size, tile)
        fits = tile.columns  # of which nothing else is made
        _fit(tile.weights, tile.errors, size, highest, tile.scratch, fits)
        unit, unit_min = _round_together(fits, n, largest, tile.scales, tile.mins)
        store(d, first, halves_of(unit))
        store(dmin, first, halves_of(unit_min))
        store_small(tile.scales, n, scales, first)
        store_small(tile.mins, n, mins, first)


@kernel
def _improve(
    weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
    size: I64, highest: I64, largest: I64, far: I64, far_together: I64, near: I64, near_together: I64,
    old_d: U16s, old_dmin: U16s, old_scales: U8s, old_mins: U8s, old_codes: U8s,
    new_d: U16s, new_dmin: U16s, new_scales: U8s, new_mins: U8s,
    d: U16s, dmin: U16s, scales: U8s, mins: U8s, codes: U8s,
) -> None:  # fmt: skip
    """Steps 3 and 4."""
    tile = tile_in(room)
    n = SUPERBLOCK // size
    for number in range((count + TILE - 1) // TILE):
        first = first_superblock(number, count)
        load_both(weights, columns, per_row, skipped, first, size, tile)
        load_small(old_scales, n, first, tile.scales)
        load_small(old_mins, n, first, tile.mins)
        proposed_scales, proposed_mins = _proposed(tile)
        load_small(new_scales, n, first, proposed_scales)
        load_small(new_mins, n, first, proposed_mins)
        unit, unit_min, better = _refine(
            tile, size, highest, largest, far, far_together, near, near_together,
            floats_of(load(old_d, first, TILE)), floats_of(load(old_dmin, first, TILE)),
            floats_of(load(new_d, first, TILE)), floats_of(load(new_dmin, first, TILE)),
        )  # fmt: skip
        for at in range(0, n * TILE, TILE):
            # Where a stored scale is zero, the weights get level 0.
            store(tile.fit.kept_scale, at, splat(_ZERO, TILE))
            store(tile.fit.kept_offset, at, splat(_ZERO, TILE))
        round_weights(tile, unit, unit_min, size, highest)
        store(d, first, select(better, halves_of(unit), load(old_d, first, TILE)))
        store(dmin, first, select(better, halves_of(unit_min), load(old_dmin, first, TILE)))
        store_small(tile.scales, n, scales, first)
        store_small(tile.mins, n, mins, first)
        store_codes(tile.levels, codes, first)
        keep_better(better, old_scales, scales, n, first)
        keep_better(better, old_mins, mins, n, first)
        keep_better(better, old_codes, codes, SUPERBLOCK, first)


@inline
def _proposed(tile: Any) -> Any:
    """Memory for proposed scales and mins, in that of `columns`."""
    return integers_at(tile.columns, 0), integers_at(tile.columns, SUPERBLOCK)


@inline
def _refine(
    tile: Any, size: Any, highest: Any, largest: Any, far: Any, far_together: Any, near: Any,
    near_together: Any, d: Any, dmin: Any, this_d: Any, this_dmin: Any,
) -> Any:  # fmt: skip
    """Improve sixteen superblocks.

    Parameters
    ----------
    tile
        Its scales and mins are what ggml's search found, and are improved.
    size, highest, largest
        Weights in a sub-block; the highest level; the largest scale and min.
    far, far_together, near, near_together
        How far to look for better integers, each and the sum of both, at first and then.
    d, dmin
        What ggml's search found.
    this_d, this_dmin
        What is proposed, beside the integers in `_proposed`.

    Returns
    -------
    tuple
        d, dmin, and the lanes in which the three are better than the default's.
    """
    count = SUPERBLOCK // size
    weights, errors, scales, mins = tile.weights, tile.errors, tile.scales, tile.mins
    new_scales, new_mins = _proposed(tile)
    least = splat(_INFINITY, TILE)
    default_error = least
    error = least
    moved = True
    for turn in range(2 + _ROUNDS):
        error, solved_d, solved_dmin = _measure(weights, errors, size, highest, d, dmin, scales, mins)
        if turn == 0:
            least = to_beat(error)
            default_error = least
        if turn == 1 + _ROUNDS or not moved:
            break
        if turn > 0:
            this_d, this_dmin = solved_d, solved_dmin
            _keep(d == d, count, scales, mins, new_scales, new_mins)
        this_error = _choose(
            weights, errors, size, highest, largest, this_d, this_dmin, new_scales, new_mins,
            near if turn else far, near_together if turn else far_together,
        )  # fmt: skip
        better = this_error < least
        moved = turn == 0 or any_lane(better)
        least = select(better, this_error, least)
        d = select(better, this_d, d)
        dmin = select(better, this_dmin, dmin)
        _keep(better, count, new_scales, new_mins, scales, mins)
    return d, dmin, error < default_error


@inline
def _keep(better: Any, count: Any, new_scales: Any, new_mins: Any, scales: Any, mins: Any) -> None:
    """Take the new integers in the lanes that are better."""
    for at in range(0, count * TILE, TILE):
        store(scales, at, select(better, load(new_scales, at, TILE), load(scales, at, TILE)))
        store(mins, at, select(better, load(new_mins, at, TILE), load(mins, at, TILE)))


@inline
def _choose(
    weights: Any, errors: Any, size: Any, highest: Any, largest: Any,
    d: Any, dmin: Any, scales: Any, mins: Any, radius: Any, together: Any,
) -> Any:  # fmt: skip
    """Move `scales` and `mins` to the best integers near them; return the error of superblocks.

    Each is looked for within `radius`, but not farther than `together` in both.
    """
    ceiling = SHIFT + np.float32(highest)
    wide_d = repeat(d, WIDTH)
    wide_dmin = repeat(dmin, WIDTH)
    mins_per_scale = select(
        wide_dmin > _ZERO, np.float32(highest) * _HALF * absolute(wide_d) / wide_dmin, _ZERO
    )
    mins_per_scale = minimum(mins_per_scale, np.float32(largest))
    total = splat(_ZERO, TILE)
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        start = size * at
        middle_scale = load(scales, at, WIDTH)
        middle_min = float_of(load(mins, at, WIDTH))
        best_scale = middle_scale
        best_min = load(mins, at, WIDTH)
        least = splat(_INFINITY, WIDTH)
        for step in range(-radius, radius + 1):
            this_scale = maximum(minimum(middle_scale + step, largest), 0)
            scale = wide_d * float_of(this_scale)
            inverse = _ONE / scale
            middle = middle_min + mins_per_scale * float_of(this_scale - middle_scale) + _HALF
            reach = min(radius, together - abs(step))
            for side in range(-reach, reach + 1):
                this_min = maximum(minimum(integer_of(middle) + side, largest), 0)
                offset = wide_dmin * float_of(this_min)
                error = splat(_ZERO, WIDTH)
                for i in range(0, size * WIDTH, WIDTH):
                    value = load(weights, start + i, WIDTH) + offset
                    level = maximum(minimum(value * inverse + SHIFT, ceiling), SHIFT) - SHIFT
                    residue = scale * level - value
                    error = error + load(errors, start + i, WIDTH) * residue * residue
                better = error < least
                least = select(better, error, least)
                best_scale = select(better, this_scale, best_scale)
                best_min = select(better, this_min, best_min)
        store(scales, at, best_scale)
        store(mins, at, best_min)
        total = add_runs(total, least)
    return total


@inline
def _fit(weights: Any, errors: Any, size: Any, highest: Any, scratch: Any, fits: Any) -> None:
    """Find each sub-block's real scale and offset, and what moving them costs: s, o, A, B and C in `fits`."""
    ceiling = SHIFT + np.float32(highest)
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        start = size * at
        scale, offset, _, _, sum_w = affine_search(
            weights,
            start,
            size,
            floats_at(errors, start),
            scratch,
            np.float32(highest),
            _FIRST,
            _STEP,
            _TRIALS,
            False,
        )
        sum_q = sum_w
        sum_q2 = sum_w
        for _ in range(_POLISHES):
            inverse = _ONE / scale
            sum_q = splat(_ZERO, WIDTH)
            sum_q2 = splat(_ZERO, WIDTH)
            sum_r = splat(_ZERO, WIDTH)
            sum_rq = splat(_ZERO, WIDTH)
            for i in range(0, size * WIDTH, WIDTH):
                value = load(weights, start + i, WIDTH) + offset
                q = maximum(minimum(value * inverse + SHIFT, ceiling), SHIFT) - SHIFT
                w = load(errors, start + i, WIDTH)
                wr = w * (value - scale * q)
                wq = w * q
                sum_q = sum_q + wq
                sum_q2 = sum_q2 + wq * q
                sum_r = sum_r + wr
                sum_rq = sum_rq + wr * q
            determinant = sum_w * sum_q2 - sum_q * sum_q
            solvable = determinant > _SINGULAR * sum_w * sum_q2
            scale = scale + select(solvable, (sum_w * sum_rq - sum_q * sum_r) / determinant, _ZERO)
            offset = offset + select(solvable, (sum_q * sum_rq - sum_q2 * sum_r) / determinant, _ZERO)
        store(fits, at, scale)
        store(fits, 16 * TILE + at, offset)
        store(fits, 32 * TILE + at, sum_q2)
        store(fits, 48 * TILE + at, sum_q)
        store(fits, 64 * TILE + at, sum_w)


@inline
def _assign(fits: Any, j: Any, d: Any, dmin: Any, inverse_d: Any, inverse_dmin: Any, largest: Any) -> Any:
    """The integers nearest to a fit, in the sense of its error: the scale, the min, what they cost."""
    scale = load(fits, j * TILE, TILE)
    offset = load(fits, (16 + j) * TILE, TILE)
    a = load(fits, (32 + j) * TILE, TILE)
    b = load(fits, (48 + j) * TILE, TILE)
    c = load(fits, (64 + j) * TILE, TILE)
    slope = b / c
    least = splat(_INFINITY, TILE)
    best_scale = splat(0, TILE)
    best_min = splat(0, TILE)
    below = maximum(minimum(scale * inverse_d, np.float32(largest)), _ZERO)
    for side in range(2):
        this_scale = minimum(integer_of(below) + side, largest)
        ds = d * float_of(this_scale) - scale
        value = (offset + slope * ds) * inverse_dmin
        value = maximum(minimum(value, np.float32(largest)), _ZERO)
        this_min = integer_of(value + _HALF)
        do = dmin * float_of(this_min) - offset
        cost = a * ds * ds - (b + b) * ds * do + c * do * do
        better = cost < least
        least = select(better, cost, least)
        best_scale = select(better, this_scale, best_scale)
        best_min = select(better, this_min, best_min)
    return best_scale, best_min, least


@inline
def _round_together(fits: Any, count: Any, largest: Any, scales: Any, mins: Any) -> Any:
    """Find d and dmin, both halves, and the integers whose products come closest to `fits`."""
    largest_scale = splat(_ZERO, TILE)
    largest_offset = splat(_ZERO, TILE)
    for j in range(count):
        largest_scale = maximum(load(fits, j * TILE, TILE), largest_scale)
        largest_offset = maximum(load(fits, (16 + j) * TILE, TILE), largest_offset)
    best_d = largest_scale / np.float32(largest)
    best_dmin = largest_offset / np.float32(largest)
    least = splat(_INFINITY, TILE)
    finest = np.float32(largest) + _ONE
    step = np.float32(np.float32(0.25) * finest / np.float32(_PAIRS))
    for k in range(_PAIRS):
        inverse_d = (finest - step * np.float32(k)) / largest_scale
        d = largest_scale / (finest - step * np.float32(k))
        for m in range(_PAIRS):
            inverse_dmin = (finest - step * np.float32(m)) / largest_offset
            dmin = largest_offset / (finest - step * np.float32(m))
            total = splat(_ZERO, TILE)
            for j in range(count):
                _, _, cost = _assign(fits, j, d, dmin, inverse_d, inverse_dmin, largest)
                total = total + cost
            better = total < least
            least = select(better, total, least)
            best_d = select(better, d, best_d)
            best_dmin = select(better, dmin, best_dmin)
    d = as_half(best_d)
    dmin = as_half(best_dmin)
    for j in range(count):
        scale, low, _ = _assign(fits, j, d, dmin, _ONE / d, _ONE / dmin, largest)
        store(scales, j * TILE, scale)
        store(mins, j * TILE, low)
    return d, dmin


@inline
def _measure(
    weights: Any, errors: Any, size: Any, highest: Any, d: Any, dmin: Any, scales: Any, mins: Any
) -> Any:
    """Look at superblocks as they stand.

    Returns their error, each weight worked out as by a decoder, and the d and dmin, as halves, that are best
    for these integers and levels.
    """
    ceiling = SHIFT + np.float32(highest)
    total = splat(_ZERO, TILE)
    a = splat(_ZERO, TILE)
    b = splat(_ZERO, TILE)
    c = splat(_ZERO, TILE)
    along_d = splat(_ZERO, TILE)
    along_dmin = splat(_ZERO, TILE)
    for j in range(SUPERBLOCK // size):
        integer_scale = float_of(load(scales, j * TILE, TILE))
        integer_min = float_of(load(mins, j * TILE, TILE))
        scale = d * integer_scale
        offset = dmin * integer_min
        inverse = _ONE / scale
        sum_w = splat(_ZERO, TILE)
        sum_q = splat(_ZERO, TILE)
        sum_q2 = splat(_ZERO, TILE)
        sum_r = splat(_ZERO, TILE)
        sum_r2 = splat(_ZERO, TILE)
        sum_rq = splat(_ZERO, TILE)
        for i in range(size):
            at = position(j, i, size)
            x = load(weights, at, TILE)
            w = load(errors, at, TILE)
            q = maximum(minimum((x + offset) * inverse + SHIFT, ceiling), SHIFT) - SHIFT
            r = x - (scale * q - offset)
            wr = w * r
            wq = w * q
            sum_w = sum_w + w
            sum_q = sum_q + wq
            sum_q2 = sum_q2 + wq * q
            sum_r = sum_r + wr
            sum_r2 = sum_r2 + wr * r
            sum_rq = sum_rq + wr * q
        total = total + sum_r2
        a = a + integer_scale * integer_scale * sum_q2
        b = b + integer_scale * integer_min * sum_q
        c = c + integer_min * integer_min * sum_w
        along_d = along_d + integer_scale * sum_rq
        along_dmin = along_dmin - integer_min * sum_r
    # a dd - b dm = along_d, c dm - b dd = along_dmin
    determinant = a * c - b * b
    solvable = determinant > _SINGULAR * a * c
    dd = select(solvable, (along_d * c + along_dmin * b) / determinant, along_d / a)
    dm = select(solvable, (along_dmin * a + along_d * b) / determinant, _ZERO)
    return total, as_half(d + dd), as_half(dmin + dm)
