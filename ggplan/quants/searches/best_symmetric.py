"""q3_K, q6_K and iq4_xs with less error than ggml's: weight = d * scale * level, of both signs.

The search is that of `best_affine` with one unknown less:

1. Fit: try the extreme weight of a sub-block at or near either end of the levels, which are one more below
   zero than above, or unevenly spaced. Under a trial scale t, weights are t (q + r), q the nearest level; a
   scale of t (1 + e) leaves t (r - e q), so that e = sum(w r q) / sum(w q^2) is best.
2. Round together: try d of either sign around largest / highest integer. The integer nearest to scale / d is
   best, and a deviation ds from the fit costs sum(w q^2) ds^2.
3. Choose: with d fixed, try the integers around, of either sign, and round all weights again for each.
4. Solve: with integers and levels fixed, d follows by least squares. Back to 3, until nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.formats.fields import Symmetric, empty_symmetric, memory_of
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.kernels import F32, I64, F32s, U8s, U16s, Weights, inline, kernel
from ggplan.quants.memory import integers_at, load, store
from ggplan.quants.searches.best import EVEN, IQ4, as_half, load_both, nearest_level, to_beat, weighed
from ggplan.quants.searches.ggml import find_extreme
from ggplan.quants.searches.iq4_xs import round_to_levels
from ggplan.quants.searches.superblock import (
    SHIFT,
    SUPERBLOCK,
    TILE,
    Superblocks,
    first_superblock,
    keep_better,
    load_signed,
    store_small,
    tile_in,
)
from ggplan.quants.searches.symmetric import round_weights, store_fields
from ggplan.quants.vector import (
    WIDTH,
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
_UNITS = 24
_ROUNDS = 3


class Rules(NamedTuple):
    """What differs between types.

    Attributes
    ----------
    size, lowest, lowest_scale
        Weights in a sub-block; the lowest level, 0 for iq4_xs; the lowest scale.
    first, step, trials
        The levels, but for their sign, that the extreme weight of a sub-block is tried at.
    wide, narrow
        How far from a rounded scale to look for a better one, at first and then.
    """

    size: int
    lowest: int
    lowest_scale: int
    first: float
    step: float
    trials: int
    wide: int
    narrow: int


def improve(search: Callable[[Superblocks], Symmetric], rules: Rules, given: Superblocks) -> Symmetric:
    """The better of the fields that `search` finds and of those found here, for each superblock."""
    n = SUPERBLOCK // rules.size
    before, proposed, after = search(given), empty_symmetric(given.n, n), empty_symmetric(given.n, n)
    propose, improve = _EVEN_KERNELS if rules.lowest else _IQ4_KERNELS
    shape, trials, radii = rules[:3], rules[3:6], rules[6:]
    counted = weighed(given)
    propose(*counted, *shape, *trials, *memory_of(proposed)[:-1])
    improve(*counted, *shape, *radii, *memory_of(before), *memory_of(proposed)[:-1], *memory_of(after))
    return after


def _kernels(kind: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Kernels of steps 1 and 2, and of steps 3 and 4, for a kind of levels."""

    @kernel
    def propose_symmetric(
        weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s, size: I64,
        lowest: I64, lowest_scale: I64, first_level: F32, step: F32, trials: I64, d: U16s, scales: U8s,
    ) -> None:  # fmt: skip
        tile = tile_in(room)
        n = SUPERBLOCK // size
        for number in range((count + TILE - 1) // TILE):
            first = first_superblock(number, count)
            load_both(weights, columns, per_row, skipped, first, size, tile)
            fits = tile.columns  # of which nothing else is made
            _fit(tile.weights, tile.errors, size, kind, lowest, first_level, step, trials, fits)
            store(d, first, halves_of(_round_together(fits, n, lowest_scale, tile.scales)))
            store_small(tile.scales, n, scales, first)

    @kernel
    def improve_symmetric(
        weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
        size: I64, lowest: I64, lowest_scale: I64, wide: I64, narrow: I64,
        old_d: U16s, old_scales: U8s, old_codes: U8s, new_d: U16s, new_scales: U8s,
        d: U16s, scales: U8s, codes: U8s,
    ) -> None:  # fmt: skip
        tile = tile_in(room)
        n = SUPERBLOCK // size
        for number in range((count + TILE - 1) // TILE):
            first = first_superblock(number, count)
            load_both(weights, columns, per_row, skipped, first, size, tile)
            load_signed(old_scales, n, first, tile.scales)
            load_signed(new_scales, n, first, _proposed(tile))
            unit, better = _refine(
                tile, size, kind, lowest, lowest_scale, wide, narrow,
                floats_of(load(old_d, first, TILE)), floats_of(load(new_d, first, TILE)),
            )  # fmt: skip
            if kind == IQ4:
                round_to_levels(tile, unit)
            else:
                for at in range(0, n * TILE, TILE):
                    # Where a stored scale is zero, the weights get level 0.
                    store(tile.fit.kept_scale, at, splat(_ZERO, TILE))
                    store(tile.fit.kept_offset, at, splat(_ZERO, TILE))
                round_weights(tile, tile.weights, unit, size, lowest, -lowest - 1, WIDTH)
            store_fields(
                tile, select(better, halves_of(unit), load(old_d, first, TILE)), n, first, d, scales, codes
            )
            keep_better(better, old_scales, scales, n, first)
            keep_better(better, old_codes, codes, SUPERBLOCK, first)

    return propose_symmetric, improve_symmetric


@inline
def _proposed(tile: Any) -> Any:
    """Memory for proposed scales, in that of `columns`."""
    return integers_at(tile.columns, 0)


@inline
def _refine(
    tile: Any,
    size: Any,
    kind: Any,
    lowest: Any,
    lowest_scale: Any,
    wide: Any,
    narrow: Any,
    d: Any,
    this_d: Any,
) -> Any:
    """Improve sixteen superblocks.

    Parameters
    ----------
    tile
        Its scales are what ggml's search found, and are improved.
    size, kind, lowest, lowest_scale
        Weights in a sub-block; the kind of levels and the lowest of even ones; the lowest scale.
    wide, narrow
        Those of `Rules`.
    d
        What ggml's search found.
    this_d
        What is proposed, beside the integers in `_proposed`.

    Returns
    -------
    tuple
        d, and the lanes in which it is, with `scales`, better than the default.
    """
    count = SUPERBLOCK // size
    weights, errors, scales = tile.weights, tile.errors, tile.scales
    new_scales = _proposed(tile)
    least = splat(_INFINITY, TILE)
    default_error = least
    error = least
    moved = True
    for turn in range(2 + _ROUNDS):
        error, change = _measure(weights, errors, size, kind, lowest, d, scales)
        if turn == 0:
            least = to_beat(error)
            default_error = least
        if turn == 1 + _ROUNDS or not moved:
            break
        if turn > 0:
            this_d = as_half(d + change)
            _keep(d == d, count, scales, new_scales)
        radius = narrow if turn else wide
        this_error = _choose(weights, errors, size, kind, lowest, lowest_scale, this_d, new_scales, radius)
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
def _measure(weights: Any, errors: Any, size: Any, kind: Any, lowest: Any, d: Any, scales: Any) -> Any:
    """The error of superblocks, each weight worked out as by a decoder, and the change of d that is best."""
    floor = np.float32(lowest)
    ceiling = -floor - _ONE
    wide_d = repeat(d, WIDTH)
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
            x = load(weights, i, WIDTH)
            w = load(errors, i, WIDTH)
            level = nearest_level(x * inverse, kind, floor, ceiling)
            residue = x - scale * level
            wr = w * residue
            q = integer * level
            part = part + wr * residue
            part_rq = part_rq + wr * q
            part_q2 = part_q2 + w * q * q
        total = add_runs(total, part)
        sum_rq = add_runs(sum_rq, part_rq)
        sum_q2 = add_runs(sum_q2, part_q2)
    return total, sum_rq / sum_q2


@inline
def _choose(
    weights: Any, errors: Any, size: Any, kind: Any, lowest: Any, lowest_scale: Any,
    d: Any, scales: Any, radius: Any,
) -> Any:  # fmt: skip
    """Move `scales` to the best integers within `radius` of them and their negatives; return the errors."""
    floor = np.float32(lowest)
    ceiling = -floor - _ONE
    wide_d = repeat(d, WIDTH)
    total = splat(_ZERO, TILE)
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
                    x = load(weights, i, WIDTH)
                    residue = scale * nearest_level(x * inverse, kind, floor, ceiling) - x
                    error = error + load(errors, i, WIDTH) * residue * residue
                better = error < least
                least = select(better, error, least)
                best = select(better, this, best)
        store(scales, at, best)
        total = add_runs(total, least)
    return total


@inline
def _fit(
    weights: Any,
    errors: Any,
    size: Any,
    kind: Any,
    lowest: Any,
    first: Any,
    step: Any,
    trials: Any,
    fits: Any,
) -> None:
    """Find each sub-block's best real scale, and what moving it costs, into `fits`."""
    floor = np.float32(lowest)
    ceiling = -floor - _ONE
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        extreme, _ = find_extreme(weights, size * at, size, WIDTH)
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
                value = load(weights, i, WIDTH) * inverse
                w = load(errors, i, WIDTH)
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


_EVEN_KERNELS = _kernels(EVEN)
_IQ4_KERNELS = _kernels(IQ4)
