"""The search of best efforts for iq3_*, iq2_* and iq1_*: scales, and with them points of the grid.

    iq3, iq2    weight = d (2 s + 1) unit (sign point)      unit 1, 1/4 or 1/8; s from 0 to 15
    iq1         weight = d (2 s + 1) (point +- 1/8)         s from 0 to 7

1. Fit: find the best real scale of each sub-block, of trials that give the largest weight about the highest
   value, and then by least squares under the points of the best.
2. Round together: try many d. The s nearest to a scale is best, and a deviation ds from the fit costs
   sum(w q^2) ds^2, q the point.
3. Choose: with d fixed, try the s found and its neighbours, and search all points anew for each.
4. Solve: with s and points fixed, d follows by least squares. Back to 3, until nothing moves; then the d
   that follows from the best is stored, a little larger in some types.

More trials, more d or more rounds take two thousandths off the error at most.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.best import as_half, gather_tile, gather_weights, to_beat
from ggplan.quants.best_points import (
    EVEN,
    FREE,
    SHIFTED,
    error_of_levels,
    find_odd,
    least_error,
    new_choice,
    new_memory,
    place_of,
    sums_of_points,
    take_points,
)
from ggplan.quants.memory import load, new_floats, store
from ggplan.quants.superblock import SHIFT, SUPERBLOCK, TILE, position
from ggplan.quants.vector import (
    WIDTH,
    absolute,
    any_lane,
    float_of,
    integer_of,
    lane,
    maximum,
    minimum,
    repeat,
    select,
    splat,
)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_HALF = np.float32(0.5)
_INFINITY = np.float32(np.inf)
_TRIALS = 12
_UNITS = 24


class Rules(NamedTuple):
    """What differs between types with the same kind of groups.

    Attributes
    ----------
    size
        Weights in a sub-block.
    highest
        The highest s.
    together
        Whether a sub-block has one shift, not one for each group.
    rounds
        How often to choose.
    unit
        What d (2 s + 1) is multiplied by; float32.
    stored
        How many times as large as the best d is stored; float32. Where that is not 1, all that counts at last
        is whether the block is still better than the default's.
    first, step
        Trial k is the scale that makes first + step k of the largest weight; float32.
    """

    size: int
    highest: int
    together: bool
    rounds: int
    unit: np.float32
    stored: np.float32
    first: np.float32
    step: np.float32


@kernel
def refine_fours(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    """For iq3_s; the arguments are those of `_refine_superblocks`."""
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 4, FREE)


@kernel
def refine_even_fours(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    """For iq3_xxs; the arguments are those of `_refine_superblocks`."""
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 4, EVEN)


@kernel
def refine_eights(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    """For iq2_s; the arguments are those of `_refine_superblocks`."""
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 8, FREE)


@kernel
def refine_even_eights(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    """For iq2_xs and iq2_xxs; the arguments are those of `_refine_superblocks`."""
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 8, EVEN)


@kernel
def refine_shifted_eights(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    """For iq1_m and iq1_s; the arguments are those of `_refine_superblocks`."""
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 8, SHIFTED)


@inline
def _refine_superblocks(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
    group: Any,
    kind: Any,
) -> None:
    """Search all superblocks of `decoded`.

    Parameters
    ----------
    weights, importance
        All rows; the columns' importance, or empty.
    skipped
        Superblocks of `weights` before the first of `decoded`.
    decoded
        What the default's blocks are read as.
    points, rules
        The grid, and the rules of the type.
    found, better
        Filled for each superblock: what the search found, keys for indices, and whether it is better. Signs
        of iq1 are 1 where a shift is down.
    group, kind
        Weights in a group; the kind of the search. Constants.
    """
    size = rules.size
    scratch = new_floats(SUPERBLOCK * TILE)
    before = new_floats(SUPERBLOCK * TILE)
    memory = new_memory(group)
    kept = new_choice(group)
    trial = new_choice(group)
    total = decoded.size // SUPERBLOCK
    for first in range(0, total, TILE):
        count = min(TILE, total - first)
        gather_tile(weights, skipped + first, count, weights.size // SUPERBLOCK, scratch, size, memory.tile)
        gather_weights(importance, skipped + first, count, scratch, size, memory.weight)
        gather_tile(decoded, first, count, total, scratch, size, before)
        error = splat(_ZERO, TILE)
        for i in range(SUPERBLOCK):
            at = position(i // size, i % size, size)
            residue = load(memory.tile, at, TILE) - load(before, at, TILE)
            error = error + load(memory.weight, at, TILE) * residue * residue
        if kind == EVEN:
            find_odd(memory)
        d, is_better = _refine(points, rules, memory, group, kind, to_beat(error), trial, kept)
        for r in range(count):
            better[first + r] = lane(is_better, r)
            found.scales[first + r] = lane(d, r)
            for j in range(SUPERBLOCK // size):
                found.levels[first + r, j] = kept.levels[j * TILE + r]
            for n in range(SUPERBLOCK // group):
                found.indices[first + r, n] = kept.keys[place_of(n * group, size, group) + r]
            for n in range(SUPERBLOCK // 8):
                found.signs[first + r, n] = kept.marks[place_of(n * 8, size, 8) + r]


@inline
def _refine(
    points: Any, rules: Any, memory: Any, group: Any, kind: Any, default_error: Any, trial: Any, kept: Any
) -> Any:
    """Improve sixteen superblocks; return d and the lanes in which it is, with `kept`, better."""
    size = rules.size
    least = default_error
    best_d = splat(_ZERO, TILE)
    any_better = best_d < _ZERO
    moving = ~any_better
    d = best_d
    next_d = best_d
    fits = new_floats(2 * 16 * TILE)
    sums = new_floats(3 * WIDTH)
    turn = 0
    while turn < 2 + rules.rounds:
        searching = turn <= rules.rounds
        unit_d = repeat(d * rules.unit, WIDTH)
        error = splat(_ZERO, TILE)
        sum_rq = splat(_ZERO, TILE)
        sum_q2 = splat(_ZERO, TILE)
        for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
            # At first the real scale is searched, then its integer.
            largest = _largest_magnitude(memory.tile, size * at, size)
            middle = load(trial.levels, at, WIDTH)
            level = middle
            scale = splat(_ZERO, WIDTH)
            lowest = splat(_INFINITY, WIDTH)
            n_trials = 3 if turn else _TRIALS
            for k in range(n_trials if searching else 0):
                this = maximum(minimum(middle + (k - 1), rules.highest), 0)
                this_scale = unit_d * float_of(2 * this + 1)
                if turn == 0:
                    this_scale = largest / (rules.first + np.float32(k) * rules.step)
                if turn == 0 and kind == SHIFTED:
                    this_error = error_of_levels(points, rules, memory, at, this_scale)
                else:
                    this_error = least_error(points, rules, memory, group, kind, at, this_scale)
                better = this_error < lowest
                lowest = select(better, this_error, lowest)
                scale = select(better, this_scale, scale)
                level = select(better, this, level)
            if turn:
                scale = unit_d * float_of(2 * level + 1)
            if searching:
                take_points(points, rules, memory, group, kind, at, scale, trial)
            part, part_rq, part_q2 = sums_of_points(points, rules, memory, group, kind, at, scale, trial)
            if turn == 0:
                store(fits, at, scale + select(part_q2 > _ZERO, part_rq / part_q2, _ZERO))
                store(fits, 16 * TILE + at, part_q2)
            else:
                store(trial.levels, at, level)
                integer = float_of(2 * level + 1)
                store(sums, 0, part)
                store(sums, WIDTH, part_rq * integer)
                store(sums, 2 * WIDTH, part_q2 * integer * integer)
                for i in range(0, WIDTH, TILE):
                    error = error + load(sums, i, TILE)
                    sum_rq = sum_rq + load(sums, WIDTH + i, TILE)
                    sum_q2 = sum_q2 + load(sums, 2 * WIDTH + i, TILE)
        if turn == 0:
            d = _round_together(fits, rules, trial.levels)
        else:
            # A lane that has stopped stays so, whatever its neighbours do.
            better = (error < least) & moving
            if not searching and rules.stored != _ONE:
                better = error < default_error
                any_better = better
            any_better = any_better | better
            least = select(better, error, least)
            next_d = select(better, d + sum_rq / (sum_q2 * rules.unit), next_d)
            best_d = select(better, d, best_d)
            _keep(better, trial.levels, kept.levels, SUPERBLOCK // size)
            _keep(better, trial.keys, kept.keys, SUPERBLOCK // group)
            _keep(better, trial.marks, kept.marks, SUPERBLOCK // 8)
            d = as_half(d + sum_rq / (sum_q2 * rules.unit))
            if turn > 1:
                moving = better
            if searching and (turn == rules.rounds or not any_lane(moving)):
                turn = rules.rounds
                moving = any_better
                d = as_half(next_d * rules.stored)
                _keep(any_better, kept.levels, trial.levels, SUPERBLOCK // size)
                _keep(any_better, kept.keys, trial.keys, SUPERBLOCK // group)
                _keep(any_better, kept.marks, trial.marks, SUPERBLOCK // 8)
        turn = turn + 1
    return best_d, any_better


@inline
def _keep(better: Any, trial: Any, kept: Any, count: Any) -> None:
    for at in range(0, count * TILE, TILE):
        store(kept, at, select(better, load(trial, at, TILE), load(kept, at, TILE)))


@inline
def _largest_magnitude(tile: Any, start: Any, size: Any) -> Any:
    largest = splat(_ZERO, WIDTH)
    for at in range(start, start + size * WIDTH, WIDTH):
        largest = maximum(largest, absolute(load(tile, at, WIDTH)))
    return largest


@inline
def _round_together(fits: Any, rules: Any, levels: Any) -> Any:
    """Find d, a half, and the s whose products come closest to `fits`."""
    count = SUPERBLOCK // rules.size
    highest = np.float32(2 * rules.highest + 1)
    largest = splat(_ZERO, TILE)
    for j in range(count):
        largest = maximum(largest, load(fits, j * TILE, TILE))
    best = largest / highest
    least = splat(_INFINITY, TILE)
    for k in range(_UNITS):
        share = highest * (np.float32(0.65) + np.float32(k) * np.float32(0.02))
        d = largest / share
        inverse = share / largest
        cost = splat(_ZERO, TILE)
        for j in range(count):
            scale = load(fits, j * TILE, TILE)
            ds = d * (_TWO * _nearest_level(scale * inverse, rules) + _ONE) - scale
            cost = cost + load(fits, (16 + j) * TILE, TILE) * ds * ds
        better = cost < least
        least = select(better, cost, least)
        best = select(better, d, best)
    d = as_half(best / rules.unit)
    inverse = _ONE / (d * rules.unit)
    for j in range(count):
        store(levels, j * TILE, integer_of(_nearest_level(load(fits, j * TILE, TILE) * inverse, rules)))
    return d


@inline
def _nearest_level(steps: Any, rules: Any) -> Any:
    """s, for which 2 s + 1 is nearest, float32."""
    highest = np.float32(rules.highest)
    return maximum(minimum((steps - _ONE) * _HALF + SHIFT, SHIFT + highest), SHIFT) - SHIFT
