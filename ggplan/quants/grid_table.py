"""A grid's neighbours in vectors, and the choice of the best of them.

The neighbours of a key (see `neighbours`) fill whole vectors of words for `point_errors`: one error is
computed per lane. The best is the one with the least error, the first of several.

ggml ends the process where it finds all neighbours' errors infinite or nan; here the first one is taken.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline
from ggplan.quants.grid_lanes import POINTS_AT_ONCE, REGISTER, TERMS, point_errors
from ggplan.quants.memory import load
from ggplan.quants.neighbours import NO_KEY, grid_neighbours
from ggplan.quants.vector import first_lane, minimum, select, smallest_lane

_LARGEST = np.finfo(np.float32).max
_INFINITY = np.float32(np.inf)


class SearchTable(NamedTuple):
    """A grid and its neighbours, all arrays are read-only.

    Attributes
    ----------
    index_of
        int32 (keys,): the index of a point; negative for other keys.
    neighbours_of
        int32 (keys,): 0 for a point; for any other key 256 times the first of its neighbours' vectors, plus
        their number.
    fields
        int32: vectors of `POINTS_AT_ONCE` neighbours, the last filled up with its last neighbour. Each is
        what `point_errors` takes.
    keys
        int32: their keys.
    values
        float32 (32,): what the levels of `point_errors`' terms stand for.
    lane_numbers
        float32 (POINTS_AT_ONCE,): 0, 1, 2...
    """

    index_of: NDArray[np.int32]
    neighbours_of: NDArray[np.int32]
    fields: NDArray[np.int32]
    keys: NDArray[np.int32]
    values: NDArray[np.float32]
    lane_numbers: NDArray[np.float32]


@cache
def search_table(name: str) -> SearchTable:
    """The table of a grid, by its name in `ggplan.quants.grids`."""
    found = grid_neighbours(name)
    size = found.points.shape[1]
    points = found.points.astype(np.int32)
    n_levels = TERMS // size
    place = n_levels * (np.arange(size) % (REGISTER // n_levels))
    fields = ((points + place).astype(np.uint32) << (4 * np.arange(size, dtype=np.uint32))).sum(axis=1)
    keys = (points << (found.bits * np.arange(size))).sum(axis=1)

    off = np.flatnonzero((found.index_of < 0) & (found.index_of != NO_KEY))
    starts = ~found.index_of[off]
    counts = found.lists[starts].astype(np.intp)
    n_vectors = -(-counts // POINTS_AT_ONCE)
    firsts = n_vectors.cumsum() - n_vectors
    neighbours_of = np.zeros(found.index_of.size, np.int32)
    neighbours_of[off] = firsts << 8 | n_vectors
    owner = np.arange(off.size).repeat(n_vectors * POINTS_AT_ONCE)
    number = np.arange(owner.size) - firsts[owner] * POINTS_AT_ONCE
    neighbours = found.lists[starts[owner] + 1 + np.minimum(number, counts[owner] - 1)]

    table = SearchTable(
        found.index_of,
        neighbours_of,
        fields.astype(np.uint32)[neighbours].view(np.int32),
        keys.astype(np.int32)[neighbours],
        np.tile(2 * np.arange(n_levels, dtype=np.float32) + 1, size),
        np.arange(POINTS_AT_ONCE, dtype=np.float32),
    )
    for array in table:
        array.flags.writeable = False
    return table


@inline
def best_neighbour(table: Any, listed: Any, terms: Any, group: Any) -> Any:
    """The key of the neighbour with the least error, the first of several."""
    at = (listed >> 8) * POINTS_AT_ONCE
    count = listed & 255
    least = minimum(point_errors(terms, load(table.fields, at, POINTS_AT_ONCE), group), _LARGEST)
    if count == 1:
        return table.keys[at + first_lane(least == smallest_lane(least))]
    place = load(table.lane_numbers, 0, POINTS_AT_ONCE)
    for n in range(1, count):
        here = load(table.fields, at + n * POINTS_AT_ONCE, POINTS_AT_ONCE)
        errors = point_errors(terms, here, group)
        less = errors < least
        least = select(less, errors, least)
        place = select(
            less, load(table.lane_numbers, 0, POINTS_AT_ONCE) + np.float32(n * POINTS_AT_ONCE), place
        )
    place = select(least == smallest_lane(least), place, _INFINITY)
    return table.keys[at + int(smallest_lane(place))]
