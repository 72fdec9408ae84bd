"""The search of best efforts for iq3_*, iq2_* and iq1_*: scales, and with them points of the grid.

    iq3, iq2    weight = d (2 s + 1) unit (sign point)      unit 1, 1/4 or 1/8; s from 0 to 15
    iq1         weight = d (2 s + 1) (point +- 1/8)         s from 0 to 7

ggml rounds weights one by one, and where that gives no point of the grid tries some that are near. It chooses
signs before, by what they cost where all levels are free, and once the scales are rounded it does not search
the points again. Here, for any scale, a group gets the best of all points with the best of all signs or
shifts (see `best_points`), and scales are found with that:

1. Fit: find the best real scale of each sub-block, of trials that give the largest weight about the highest
   value, and then by least squares under the points of the best.
2. Round together: try many d. The s nearest to a scale is best, and a deviation ds from the fit costs
   sum(w q^2) ds^2, q the point.
3. Choose: with d fixed, try the s found and its neighbours, and search all points again for each.
   Scales that cannot be the best, by what others leave, are not searched, here and in 1 (`best_trials`).
4. Solve: with s and points fixed, d follows by least squares. Back to 3, until nothing moves; then the d
   that follows from the best is stored, a little larger in some types.

More trials, more d or more rounds take two thousandths off the error at most.

Superblocks whose error does not become less than that of ggml's fields (see `best`) keep those. In the others
sub-blocks of zeros are where they belong, where ggml's iq3_s lets indices and signs move up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.formats.fields import Grid, memory_of
from ggplan.quants.half import halves_of
from ggplan.quants.kernels import F32, I64, F32s, I32s, U8s, U16s, Weights, inline, kernel, scratch
from ggplan.quants.memory import floats_at, integers_at, load, store
from ggplan.quants.searches.best import as_half, load_both, to_beat, weighed
from ggplan.quants.searches.best_memory import CHOICE_ROOM, MEMORY_ROOM, choice_in, keep, memory_in, place_of
from ggplan.quants.searches.best_points import EVEN, FREE, SHIFTED, Points, find_odd, point_steps, points_of
from ggplan.quants.searches.best_trials import (
    BATCH_ROOM,
    CELL_ROOM,
    JOB_ROOM,
    STAGES,
    TRIALS,
    add_eights,
    batch_in,
    cells_in,
    fill_batch,
    fill_eights,
    jobs_in,
    keep_choices,
    keep_eights,
    list_chosen,
    list_eights,
    list_middle,
    list_moved,
    list_neighbours,
    list_trial,
    look_at,
    note_eights,
    note_levels,
    note_trials,
    trial_scale,
)
from ggplan.quants.searches.superblock import (
    SHIFT,
    SUPERBLOCK,
    TILE,
    Superblocks,
    first_superblock,
    load_tile,
    position,
)
from ggplan.quants.vector import (
    WIDTH,
    add_runs,
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
_UNITS = 24


class Rules(NamedTuple):
    """What differs between types with the same kind of groups.

    Attributes
    ----------
    size
        Weights in a sub-block.
    highest
        The highest s.
    first, step
        Trial k is the scale that makes first + step k of the largest weight.
    unit
        What d (2 s + 1) is multiplied by.
    stored
        How many times as large as the best d is stored. Where that is not 1, all that counts at last is
        whether the block is still better than the default's.
    rounds
        How often to choose.
    together
        Whether a sub-block has one shift, not one for each group.
    """

    size: Any
    highest: Any
    first: Any
    step: Any
    unit: Any = 1
    stored: Any = 1
    rounds: Any = 3
    together: Any = False


# Where a search's memory has the best choice, another, the best real scales: float32 [16 sub_block + lane],
# and 256 numbers on what moving them costs; then what `best_trials` works on.
_KEPT = MEMORY_ROOM
_TRIAL = _KEPT + CHOICE_ROOM
_FITS = _TRIAL + CHOICE_ROOM
_CELLS = _FITS + 2 * 16 * TILE
_JOBS = _CELLS + CELL_ROOM
_BATCH = _JOBS + JOB_ROOM
_ROOM = _BATCH + BATCH_ROOM


def improve(
    kernel: Callable[..., None],
    grid: str,
    rules: Rules,
    search: Callable[[Superblocks], Grid],
    weights_of: Callable[[Grid, NDArray[np.float32]], None],
    given: Superblocks,
) -> Grid:
    """What `search` finds, improved by one of the kernels below with the name of a grid."""
    found = search(given)
    before = np.empty((given.n, SUPERBLOCK), np.float32)
    with np.errstate(all="ignore"):  # ggml's scales may be infinite
        weights_of(found, before)
    kernel(
        *weighed(given)[:-1], scratch(_ROOM), before, *rules, STAGES, *points_of(grid),
        *memory_of(found), found.signs.shape[1],
    )  # fmt: skip
    return found


def _kernel(name: str, grid: str, group: int, kind: int) -> Callable[..., None]:
    """The kernel for a grid with groups of so many weights, and a kind of search."""
    search_points, error_of_levels, sums_of_points = point_steps(grid, group, kind)
    search_even_points = search_points
    if kind == EVEN:  # eights whose signs are even already
        search_even_points = point_steps(grid, group, FREE).search_points

    @inline
    def search_eight(
        points: Any, rules: Any, batch: Any, scale: Any, odd: Any, choosing: Any, chosen: Any
    ) -> Any:
        if kind != EVEN or odd:
            return search_points(points, rules, batch, 0, scale, choosing, chosen)
        return search_even_points(points, rules, batch, 0, scale, choosing, chosen)

    n_groups = SUPERBLOCK // group

    def search(
        weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, memory: F32s,
        before: F32s, size: I64, highest: I64, first_trial: F32, step: F32, unit: F32, stored: F32,
        rounds: I64, together: I64, stages: I32s, values: F32s, starts: I32s, lower: I32s,
        keys: I32s, index_of: I32s,
        d_bits: U16s, scales: U8s, indices: U16s, signs: U8s, n_signs: I64,
    ) -> None:  # fmt: skip
        rules = Rules(size, highest, first_trial, step, unit, stored, rounds, together)
        points = Points(values, starts, lower, keys, index_of)
        tile = memory_in(memory)
        kept, trial = choice_in(integers_at(memory, _KEPT)), choice_in(integers_at(memory, _TRIAL))
        fits = floats_at(memory, _FITS)
        cells, jobs = cells_in(floats_at(memory, _CELLS)), jobs_in(floats_at(memory, _JOBS))
        batch, chosen = batch_in(floats_at(memory, _BATCH), tile)
        n_scales = SUPERBLOCK // size
        for number in range((count + TILE - 1) // TILE):
            first = first_superblock(number, count)
            load_both(weights, columns, per_row, skipped, first, size, tile)
            if kind == EVEN:
                find_odd(tile)
            default_error = to_beat(_error(tile, before, first, size))
            least = default_error
            best_d = splat(_ZERO, TILE)
            any_better = best_d < _ZERO
            moving = ~any_better
            d = best_d
            next_d = best_d
            look_at(tile, size, TILE * n_scales, cells)
            turn = 0
            while turn < 2 + rules.rounds:
                searching = turn <= rules.rounds
                unit_d = d * rules.unit
                store(cells.units, 0, unit_d)
                store(cells.moving, 0, select(moving, splat(1, TILE), 0))
                n_stages = 0
                if searching:
                    # At first the real scale is searched, then its integer; then points are chosen for it.
                    n_stages = 3 if turn else TRIALS + 1
                for stage in range(n_stages):
                    choosing = stage != 1 if turn else stage == TRIALS
                    if turn == 0 and choosing:
                        n_jobs = list_chosen(cells, rules, TILE * n_scales, jobs)
                    elif turn == 0:
                        n_jobs = list_trial(cells, rules, stage, stages, TILE * n_scales, jobs)
                    elif stage == 0:
                        n_jobs = list_middle(cells, trial.levels, TILE * n_scales, jobs)
                    elif stage == 1:
                        n_jobs = list_neighbours(cells, rules, trial.levels, TILE * n_scales, jobs)
                    else:
                        n_jobs = list_moved(cells, trial.levels, TILE * n_scales, jobs)
                    if kind == SHIFTED:
                        for job in range(0, n_jobs, WIDTH):
                            fill_batch(tile, size, jobs, job, n_jobs, batch)
                            scale = load(jobs.scales, job, WIDTH)
                            if turn == 0 and not choosing:
                                error = error_of_levels(points, rules, batch, 0, scale)
                            else:
                                error = search_points(points, rules, batch, 0, scale, choosing, chosen)
                            store(jobs.errors, job, error)
                            if choosing:
                                keep_choices(chosen, size, group, jobs, job, n_jobs, trial)
                    else:
                        for odd in range(2 if kind == EVEN else 1):
                            n_eights = list_eights(tile, size, jobs, n_jobs, kind == EVEN, odd == 1)
                            for eight in range(0, n_eights, WIDTH):
                                fill_eights(tile, jobs, eight, n_eights, batch)
                                scale = load(jobs.eight_scales, eight, WIDTH)
                                error = search_eight(points, rules, batch, scale, odd, choosing, chosen)
                                note_eights(error, jobs, eight, n_eights, batch.minima)
                                if choosing:
                                    keep_eights(chosen, group, jobs, eight, n_eights, trial)
                        add_eights(size, jobs, n_jobs)
                    if turn:
                        note_levels(cells, jobs, n_jobs, stage)
                    elif not choosing:
                        note_trials(cells, jobs, n_jobs)
                error = splat(_ZERO, TILE)
                sum_rq = splat(_ZERO, TILE)
                sum_q2 = splat(_ZERO, TILE)
                for at in range(0, n_scales * TILE, WIDTH):
                    integer = float_of(2 * load(trial.levels, at, WIDTH) + 1)
                    scale = repeat(unit_d, WIDTH) * integer
                    if turn == 0:
                        scale = trial_scale(cells, rules, at)
                    part, part_rq, part_q2 = sums_of_points(points, rules, tile, at, scale, trial)
                    if turn == 0:
                        store(fits, at, scale + select(part_q2 > _ZERO, part_rq / part_q2, _ZERO))
                        store(fits, 16 * TILE + at, part_q2)
                    else:
                        error = add_runs(error, part)
                        sum_rq = add_runs(sum_rq, part_rq * integer)
                        sum_q2 = add_runs(sum_q2, part_q2 * integer * integer)
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
                    keep(better, trial, kept)
                    d = as_half(d + sum_rq / (sum_q2 * rules.unit))
                    if turn > 1:
                        moving = better
                    if searching and (turn == rules.rounds or not any_lane(moving)):
                        turn = rules.rounds
                        moving = any_better
                        d = as_half(next_d * rules.stored)
                        keep(any_better, kept, trial)
                turn = turn + 1
            halves = halves_of(best_d)
            for r in range(TILE):
                if lane(any_better, r):
                    n = first + r
                    d_bits[n] = lane(halves, r)
                    for j in range(n_scales):
                        scales[n_scales * n + j] = kept.levels[TILE * j + r]
                    for g in range(n_groups):
                        index = index_of[kept.keys[place_of(group * g, size, group) + r]]
                        indices[n_groups * n + g] = index
                    for g in range(n_signs):
                        at = place_of(SUPERBLOCK // n_signs * g, size, 8)
                        signs[n_signs * n + g] = kept.marks[at + r]

    search.__qualname__ = name
    return kernel(search)


fours = _kernel("fours", "iq3_s", 4, FREE)
even_fours = _kernel("even_fours", "iq3_xxs", 4, EVEN)
eights = _kernel("eights", "iq2_s", 8, FREE)
even_eights = _kernel("even_eights", "iq2_xs", 8, EVEN)
fewer_even_eights = _kernel("fewer_even_eights", "iq2_xxs", 8, EVEN)
shifted_eights = _kernel("shifted_eights", "iq1_s", 8, SHIFTED)  # and iq1_m


@inline
def _error(tile: Any, before: Any, first: Any, size: Any) -> Any:
    """The error of sixteen superblocks that are read as `before` has them, from number `first` on."""
    load_tile(before, first, size, tile.columns)
    error = splat(_ZERO, TILE)
    for i in range(SUPERBLOCK):
        at = position(i // size, i % size, size)
        residue = load(tile.weights, at, TILE) - load(tile.columns, at, TILE)
        error = error + load(tile.errors, at, TILE) * residue * residue
    return error


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
