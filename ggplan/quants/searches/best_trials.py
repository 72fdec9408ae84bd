"""Which scales are worth a search of all points: those that bounds do not rule out already.

For points q the error of a sub-block is a parabola of its scale s, and all parabolas meet where s is 0:

    error(s) = A - 2 B s + C s^2        A = sum w x^2, B = sum w x q, C = sum w q^2

so (error(s) - A) / s is a line, and what the best points leave is the lowest of many lines, which is concave.
Between two scales it is nowhere below the straight line between the two values there. Where that is above the
least error known, no search is needed, and its result cannot change. A lower bound may stand for a value.

The trials of a sub-block are taken in an order that parts the widest gaps first, so half of them are ruled
out, and nearly all of the neighbours of a scale that was chosen. What is left is put together from all
sub-blocks of a tile, `WIDTH` at a time (`Jobs`), since lanes that only wait cost as much as others. Eights do
not depend on each other but for a shift that they share, so elsewhere they are put together one by one: those
whose number of negative weights must be made even take twice the time of the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.kernels import inline
from ggplan.quants.memory import floats_at, integers_at, load, store
from ggplan.quants.searches.best_memory import CHOICE_ROOM, Memory, choice_in
from ggplan.quants.searches.superblock import SUPERBLOCK, TILE
from ggplan.quants.vector import WIDTH, absolute, float_of, maximum, select, splat

TRIALS = 12
_CELLS = SUPERBLOCK // 16 * TILE
_ZERO = np.float32(0)
_ONE = np.float32(1)
_FOUR = np.float32(4)
_INFINITY = np.float32(np.inf)
_ROUNDING = np.float32(2.0**-17)
"""What sums of float32 may be wrong by, in parts of A: less than a tenth of it."""
_SMALLEST = np.float32(2.0**-140)
"""What they may be wrong by at least: some hundred steps of the smallest numbers."""

# The trials in order, each with the two it lies between; the first three have none.
STAGES: NDArray[np.int32] = np.array(
    [
        *((5, 0, 0), (0, 0, 0), (11, 0, 0), (3, 0, 5), (7, 5, 11), (4, 3, 5)),
        *((6, 5, 7), (2, 0, 3), (1, 0, 2), (9, 7, 11), (8, 7, 9), (10, 9, 11)),
    ],
    np.int32,
)
UNBOUNDED = 3


class Cells(NamedTuple):
    """What is known of the sub-blocks of a tile; all but `lines` are [16 sub_block + lane].

    Attributes
    ----------
    energies, largest
        float32: A, and the largest magnitude.
    lines
        float32 [256 trial + cell]: (error - A) / s of a trial, or a lower bound.
    least
        float32: the least error of a trial; then that of the level in the middle.
    others
        float32 [256 k + cell]: the errors of the level below it and the one above.
    best
        int32: the trial with the least error.
    units
        float32 [lane]: d of superblocks.
    moving
        int32 [lane]: 1 for superblocks that are still searched.
    """

    energies: Any
    largest: Any
    lines: Any
    least: Any
    others: Any
    best: Any
    units: Any
    moving: Any


class Jobs(NamedTuple):
    """Searches to be done.

    Attributes
    ----------
    cells, tags
        int32: the sub-block, and what its error is that of.
    scales, errors
        float32: the scale, and what was found.
    eights, places
        int32: groups of eight weights that are searched one by one, `size / 8` times the search plus their
        place in its sub-block; and where their first weight is in a tile.
    eight_scales
        float32: the scale of each.
    eight_errors
        float32 [eight]: what was found.
    """

    cells: Any
    tags: Any
    scales: Any
    errors: Any
    eights: Any
    places: Any
    eight_scales: Any
    eight_errors: Any


_MOST = 2 * _CELLS + WIDTH
_CELL_SIZES = (_CELLS, _CELLS, TRIALS * _CELLS, _CELLS, 2 * _CELLS, _CELLS, TILE, TILE)
_CELL_PLACES = tuple(sum(_CELL_SIZES[:n]) for n in range(len(_CELL_SIZES) + 1))
_MOST_EIGHTS = 2 * SUPERBLOCK // 8 * TILE + WIDTH
CELL_ROOM, JOB_ROOM = _CELL_PLACES[-1], 4 * _MOST + 4 * _MOST_EIGHTS
BATCH_ROOM = 68 * WIDTH + CHOICE_ROOM


@inline
def cells_in(room: Any) -> Any:
    """Part memory of `CELL_ROOM` numbers."""
    return Cells(
        room,
        floats_at(room, _CELL_PLACES[1]),
        floats_at(room, _CELL_PLACES[2]),
        floats_at(room, _CELL_PLACES[3]),
        floats_at(room, _CELL_PLACES[4]),
        integers_at(room, _CELL_PLACES[5]),
        floats_at(room, _CELL_PLACES[6]),
        integers_at(room, _CELL_PLACES[7]),
    )


@inline
def jobs_in(room: Any) -> Any:
    """Part memory of `JOB_ROOM` numbers."""
    return Jobs(
        integers_at(room, 0),
        integers_at(room, _MOST),
        floats_at(room, 2 * _MOST),
        floats_at(room, 3 * _MOST),
        integers_at(room, 4 * _MOST),
        integers_at(room, 4 * _MOST + _MOST_EIGHTS),
        floats_at(room, 4 * _MOST + 2 * _MOST_EIGHTS),
        floats_at(room, 4 * _MOST + 3 * _MOST_EIGHTS),
    )


@inline
def batch_in(room: Any, memory: Any) -> Any:
    """`WIDTH` sub-blocks in `BATCH_ROOM` numbers, with the rest of a search's memory; and a choice."""
    batch = Memory(
        room,
        floats_at(room, 32 * WIDTH),
        memory.columns,
        floats_at(room, 64 * WIDTH),
        memory.parts,
        memory.other_parts,
        memory.halves,
        memory.minima,
        memory.least,
    )
    return batch, choice_in(integers_at(room, 68 * WIDTH))


@inline
def look_at(memory: Any, size: Any, n_cells: Any, cells: Any) -> None:
    """Begin with the sub-blocks of a tile."""
    for at in range(0, n_cells, WIDTH):
        energy = splat(_ZERO, WIDTH)
        largest = splat(_ZERO, WIDTH)
        for i in range(size * at, size * (at + WIDTH), WIDTH):
            x = load(memory.weights, i, WIDTH)
            energy = energy + load(memory.errors, i, WIDTH) * x * x
            largest = maximum(largest, absolute(x))
        store(cells.energies, at, energy)
        store(cells.largest, at, largest)
        store(cells.least, at, splat(_INFINITY, WIDTH))
        store(cells.best, at, splat(-1, WIDTH))


@inline
def fill_batch(memory: Any, size: Any, jobs: Any, first: Any, count: Any, batch: Any) -> None:
    """Gather the sub-blocks of jobs from number `first` on; lanes beyond `count` get the first one."""
    for r in range(WIDTH):
        cell = jobs.cells[first + r if first + r < count else first]
        inside = cell % WIDTH
        start = size * (cell - inside) + inside
        for i in range(size):
            batch.weights[WIDTH * i + r] = memory.weights[start + WIDTH * i]
            batch.errors[WIDTH * i + r] = memory.errors[start + WIDTH * i]
        start = size // 8 * (cell - inside) + inside
        for i in range(size // 8):
            batch.flips[WIDTH * i + r] = memory.flips[start + WIDTH * i]


@inline
def keep_choices(found: Any, size: Any, group: Any, jobs: Any, first: Any, count: Any, choice: Any) -> None:
    """Put what was chosen for the sub-blocks of jobs where it belongs."""
    for r in range(min(WIDTH, count - first)):
        cell = jobs.cells[first + r]
        inside = cell % WIDTH
        start = size // group * (cell - inside) + inside
        for g in range(size // group):
            choice.keys[start + WIDTH * g] = found.keys[WIDTH * g + r]
        start = size // 8 * (cell - inside) + inside
        for g in range(size // 8):
            choice.marks[start + WIDTH * g] = found.marks[WIDTH * g + r]


@inline
def list_eights(memory: Any, size: Any, jobs: Any, count: Any, parted: Any, odd: Any) -> Any:
    """List the eights of jobs; where `parted`, those whose signs are odd, or even. Returns how many."""
    found = 0
    for j in range(count):
        cell = jobs.cells[j]
        inside = cell % WIDTH
        for e in range(size // 8):
            place = (size * (cell - inside)) + 8 * WIDTH * e + inside
            is_odd = memory.flips[(place - inside) // 8 + inside] > _ZERO
            jobs.eights[found] = size // 8 * j + e
            jobs.places[found] = place
            jobs.eight_scales[found] = jobs.scales[j]
            if not parted or is_odd == odd:
                found += 1
    return found


@inline
def fill_eights(memory: Any, jobs: Any, first: Any, count: Any, batch: Any) -> None:
    """Gather eights from number `first` on; lanes beyond `count` get the first one."""
    for r in range(WIDTH):
        start = jobs.places[first + r if first + r < count else first]
        for i in range(8):
            batch.weights[WIDTH * i + r] = memory.weights[start + WIDTH * i]
            batch.errors[WIDTH * i + r] = memory.errors[start + WIDTH * i]
    store(batch.flips, 0, splat(_FOUR, WIDTH))


@inline
def keep_eights(found: Any, group: Any, jobs: Any, first: Any, count: Any, choice: Any) -> None:
    """Put what was chosen for eights where it belongs."""
    for r in range(min(WIDTH, count - first)):
        place = jobs.places[first + r]
        inside = place % WIDTH
        for g in range(8 // group):
            choice.keys[(place - inside) // group + inside + WIDTH * g] = found.keys[WIDTH * g + r]
        choice.marks[(place - inside) // 8 + inside] = found.marks[r]


@inline
def note_eights(errors: Any, jobs: Any, first: Any, count: Any, room: Any) -> None:
    """Note the errors of eights from number `first` on."""
    store(room, 0, errors)
    for r in range(min(WIDTH, count - first)):
        jobs.eight_errors[jobs.eights[first + r]] = room[r]


@inline
def add_eights(size: Any, jobs: Any, count: Any) -> None:
    """Add up the errors of jobs."""
    for j in range(count):
        total = _ZERO
        for e in range(size // 8):
            total = total + jobs.eight_errors[size // 8 * j + e]
        jobs.errors[j] = total


@inline
def list_trial(cells: Any, rules: Any, stage: Any, stages: Any, n_cells: Any, jobs: Any) -> Any:
    """List the sub-blocks whose trial of a stage is to be searched; returns how many."""
    k, low, high = stages[3 * stage], stages[3 * stage + 1], stages[3 * stage + 2]
    share = rules.first + np.float32(k) * rules.step
    low_share = rules.first + np.float32(low) * rules.step
    high_share = rules.first + np.float32(high) * rules.step
    # Where its scale, largest / share, lies between those of the other two.
    part = (_ONE / share - _ONE / high_share) / (_ONE / low_share - _ONE / high_share)
    count = 0
    for at in range(0, n_cells, WIDTH):
        scale = load(cells.largest, at, WIDTH) / share
        needed = scale == scale
        if stage >= UNBOUNDED:
            high_line = load(cells.lines, _CELLS * high + at, WIDTH)
            line = high_line + part * (load(cells.lines, _CELLS * low + at, WIDTH) - high_line)
            energy = load(cells.energies, at, WIDTH)
            store(cells.lines, _CELLS * k + at, line)
            needed = ~(
                energy + scale * line - (energy * _ROUNDING + _SMALLEST) > load(cells.least, at, WIDTH)
            )
        store(jobs.errors, 0, select(needed, _ONE, splat(_ZERO, WIDTH)))
        store(jobs.errors, WIDTH, scale)
        for r in range(WIDTH):
            if jobs.errors[r] > _ZERO:
                jobs.cells[count] = at + r
                jobs.tags[count] = k
                jobs.scales[count] = jobs.errors[WIDTH + r]
                count += 1
    return count


@inline
def note_trials(cells: Any, jobs: Any, count: Any) -> None:
    """Note the errors of trials; the first of several with the least error is the best."""
    for j in range(count):
        cell, k, error = jobs.cells[j], jobs.tags[j], jobs.errors[j]
        least = cells.least[cell]
        if error < least or (error == least and k < cells.best[cell]):
            cells.least[cell] = error
            cells.best[cell] = k
        cells.lines[_CELLS * k + cell] = (error - cells.energies[cell]) / jobs.scales[j]


@inline
def list_middle(cells: Any, levels: Any, n_cells: Any, jobs: Any) -> Any:
    """List the sub-blocks that move, with the scales of their levels."""
    count = 0
    for cell in range(n_cells):
        if cells.moving[cell % TILE]:
            jobs.cells[count] = cell
            jobs.tags[count] = 1
            jobs.scales[count] = cells.units[cell % TILE] * np.float32(2 * levels[cell] + 1)
            count += 1
    return count


@inline
def list_neighbours(cells: Any, rules: Any, levels: Any, n_cells: Any, jobs: Any) -> Any:
    """List the levels beside those that were searched."""
    count = 0
    for cell in range(n_cells):
        if cells.moving[cell % TILE]:
            cells.others[cell] = _INFINITY
            cells.others[_CELLS + cell] = _INFINITY
            for k in range(0, 3, 2):
                level = levels[cell] + k - 1
                scale = cells.units[cell % TILE] * np.float32(2 * level + 1)
                if 0 <= level <= rules.highest and not (bound(cells, rules, cell, scale) > cells.least[cell]):
                    jobs.cells[count] = cell
                    jobs.tags[count] = k
                    jobs.scales[count] = scale
                    count += 1
    return count


@inline
def bound(cells: Any, rules: Any, cell: Any, scale: Any) -> Any:
    """A lower bound of the error of a scale, from the trials on both sides of it."""
    largest = cells.largest[cell]
    share = largest / scale
    place = (share - rules.first) / rules.step
    if not (place >= _ZERO and place < np.float32(TRIALS - 1)):
        return -_INFINITY
    low = int(place)
    low_scale = largest / (rules.first + np.float32(low) * rules.step)
    high_scale = largest / (rules.first + np.float32(low + 1) * rules.step)
    low_line, high_line = cells.lines[_CELLS * low + cell], cells.lines[_CELLS * (low + 1) + cell]
    part = (scale - high_scale) / (low_scale - high_scale)
    energy = cells.energies[cell]
    return energy + scale * (high_line + part * (low_line - high_line)) - (energy * _ROUNDING + _SMALLEST)


@inline
def list_moved(cells: Any, levels: Any, n_cells: Any, jobs: Any) -> Any:
    """Move levels to a neighbour that is better, the lower one of equals; list those that moved."""
    count = 0
    for cell in range(n_cells):
        if cells.moving[cell % TILE]:
            middle, below, above = cells.least[cell], cells.others[cell], cells.others[_CELLS + cell]
            moved = 0
            least = _INFINITY
            if below < least:
                moved = -1
                least = below
            if middle < least:
                moved = 0
                least = middle
            if above < least:
                moved = 1
            if moved != 0:
                levels[cell] += moved
                jobs.cells[count] = cell
                jobs.scales[count] = cells.units[cell % TILE] * np.float32(2 * levels[cell] + 1)
                count += 1
    return count


@inline
def list_chosen(cells: Any, rules: Any, n_cells: Any, jobs: Any) -> Any:
    """List all sub-blocks with the scales of their best trials."""
    for at in range(0, n_cells, WIDTH):
        store(jobs.scales, at, trial_scale(cells, rules, at))
        for r in range(WIDTH):
            jobs.cells[at + r] = at + r
    return n_cells


@inline
def trial_scale(cells: Any, rules: Any, at: Any) -> Any:
    """The scales of the best trials; zero where all errors were beyond float32."""
    k = load(cells.best, at, WIDTH)
    scale = load(cells.largest, at, WIDTH) / (rules.first + float_of(k) * rules.step)
    return select(k < 0, _ZERO, scale)


@inline
def note_levels(cells: Any, jobs: Any, count: Any, stage: Any) -> None:
    """Note the errors of levels."""
    for j in range(count):
        if stage == 0:
            cells.least[jobs.cells[j]] = jobs.errors[j]
        if stage == 1:
            cells.others[_CELLS * (jobs.tags[j] // 2) + jobs.cells[j]] = jobs.errors[j]
