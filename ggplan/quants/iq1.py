"""What iq1_s and iq1_m share: groups of eight weights of three levels, all of them shifted by an eighth.

    weight = scale (level + shift)        level -1, 0 or 1; shift 1/8 or -1/8

In keys of the grid (see `neighbours`) levels count from 0 to 2.

With the best scale for given levels the error is the less the larger sum_xq^2 / sum_q2 is: the sums of
importance * weight * (level + shift) and of importance * (level + shift)^2. ggml tries all levels that can
be best: with the weights in order, the first i1 get level -1, those from i2 on level 1, and running sums give
both sums of such a split. The levels of a group are mostly no point of the grid then, and make way for the
neighbour with the least error under the scale found. Last the scale is fitted anew.

Order
-----
Running sums are rounded, so bytes depend on the order of equal weights, of which bf16 has many: the opposite
order changes 2 to 5 in 100 blocks of a bf16 model. ggml sorts by C's `qsort`, which leaves that order open.
Here equal weights keep their order (zeros are equal whatever their signs), as they do in all releases of the
GNU C library, whose `qsort` merges arrays of this size. Other C libraries may give other bytes.

Where ggml gives up
-------------------
Products and squares of weights from about 1e9 on overflow. Where no neighbour has a finite error, ggml reads
weights beyond the group, of the tensor or of other memory, and mostly aborts; here the first neighbour is
taken. Where a scale is a nan ggml aborts; here the sub-block becomes zero.

From llama.cpp b11434, `ggml/src/ggml-quants.c`: quantize_row_iq1_s_impl, quantize_row_iq1_m_impl and
iq1_find_best_neighbour2.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline
from ggplan.quants.memory import load, store
from ggplan.quants.neighbours import grid_neighbours
from ggplan.quants.superblock import TILE
from ggplan.quants.vector import WIDTH, absolute, float_of, maximum, select, smallest_lane, splat

GROUP = 8
SHIFT = np.float32(0.125)
# What ggml begins its comparisons with.
LARGEST = np.finfo(np.float32).max

_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITY = np.float32(np.inf)
_PLACES = np.arange(TILE, dtype=np.float32)
_ALL_TWOS = 0xAAAA


@cache
def tables() -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """What `take_points` looks up, and the key of the grid's first point.

    index_of (65536,) is that of `GridNeighbours`; `lists` has each list of neighbours as their number and
    their keys, and at its end room to read sixteen of them at once.
    """
    found = grid_neighbours("iq1_s")
    keys = (found.points.astype(np.int32) << (2 * np.arange(GROUP, dtype=np.int32))).sum(
        axis=1, dtype=np.int32
    )
    lists = np.zeros(found.lists.size + TILE, np.int32)
    lists[: found.lists.size] = keys[found.lists % len(keys)]
    starts = ~found.index_of[(found.index_of < 0) & (found.index_of != np.iinfo(np.int32).min)]
    lists[starts] = found.lists[starts]
    lists.flags.writeable = False
    return found.index_of, lists, int(keys[0])


@inline
def largest_magnitude(values: Any, start: Any, size: Any) -> Any:
    """The largest magnitude of each lane's `size` values."""
    largest = splat(_ZERO, WIDTH)
    for i in range(size):
        largest = maximum(largest, absolute(load(values, start + WIDTH * i, WIDTH)))
    return largest


@inline
def rank(values: Any, start: Any, size: Any, ranks: Any) -> None:
    """Find how many of a lane's values come before each: smaller ones, and equal ones further left."""
    for i in range(size):
        x = load(values, start + WIDTH * i, WIDTH)
        before = splat(0, WIDTH)
        for j in range(i):
            before = select(load(values, start + WIDTH * j, WIDTH) <= x, before + 1, before)
        for j in range(i + 1, size):
            before = select(load(values, start + WIDTH * j, WIDTH) < x, before + 1, before)
        store(ranks, WIDTH * i, before)


@inline
def number_of(i1: Any, i2: Any, shifts: Any) -> Any:
    """One number for a split and up to three bits of shifts."""
    return 1024 * i1 + 8 * i2 + shifts


@inline
def write_keys(
    ranks: Any, size: Any, number: Any, found: Any, negative: Any, nothing: Any, keys: Any
) -> None:
    """Pack the levels of each group: of the split in `number`, turned around where the scale is negative.

    Where nothing is `found`, the key is `nothing`.
    """
    i1 = number >> 10
    i2 = (number >> 3) & 127
    for group in range(size // GROUP):
        key = splat(0, WIDTH)
        for i in range(GROUP):
            at = load(ranks, WIDTH * (GROUP * group + i), WIDTH)
            one = select(at >= i1, splat(1, WIDTH), 0)
            key = key + ((select(at >= i2, one + 1, one)) << (2 * i))
        key = select(negative, _ALL_TWOS - key, key)
        store(keys, WIDTH * group, select(found, key, nothing))


@inline
def level_of(key: Any, i: Any) -> Any:
    """Level i of a group, counted from -1, float32."""
    return float_of(((key >> (2 * i)) & 3) - 1)


@inline
def measure_levels(
    values: Any, start: Any, group: Any, weight: Any, weight_start: Any, scale: Any, shift: Any, errors: Any
) -> None:
    """Put the error of each level of weight i in lane r at `errors[WIDTH * (3 * i + level) + r]`."""
    for i in range(GROUP * group, GROUP * group + GROUP):
        x = load(values, start + WIDTH * i, WIDTH)
        w = load(weight, weight_start + WIDTH * i, WIDTH)
        for level in range(3):
            difference = scale * (shift + np.float32(np.float32(level) - _ONE)) - x
            store(errors, WIDTH * (3 * i + level), w * difference * difference)


@inline
def take_points(
    keys: Any, n_groups: Any, errors: Any, index_of: Any, lists: Any, indices: Any, moved: Any
) -> None:
    """Replace keys that are no points by those of the neighbours with the least errors; find all indices.

    The index of group k of sub-block s in lane r goes to `indices[16 (n_groups s + k) + r]`, and to
    `moved[16 s + r]` whether a key of the sub-block was replaced.
    """
    for at in range(WIDTH):
        moved[at] = 0
        for k in range(n_groups):
            key = keys[WIDTH * k + at]
            index = index_of[key]
            if index < 0:
                key = _nearest(lists, ~index, errors, WIDTH * 3 * GROUP * k + at)
                index = index_of[key]
                keys[WIDTH * k + at] = key
                moved[at] = 1
            indices[TILE * (n_groups * (at // TILE) + k) + at % TILE] = index


@inline
def _nearest(lists: Any, start: Any, errors: Any, at: Any) -> Any:
    """The neighbour with the least error, the first of several."""
    count = lists[start]
    places = load(_PLACES, 0, TILE)
    least = splat(LARGEST, TILE)
    best = splat(_ZERO, TILE)
    for n in range(0, count, TILE):
        neighbours = load(lists, start + 1 + n, TILE)
        total = splat(_ZERO, TILE)
        for i in range(GROUP):
            low = errors[at + WIDTH * 3 * i]
            middle = errors[at + WIDTH * (3 * i + 1)]
            high = errors[at + WIDTH * (3 * i + 2)]
            error = select(neighbours & (1 << (2 * i)) != 0, splat(middle, TILE), low)
            total = total + select(neighbours & (2 << (2 * i)) != 0, high, error)
        place = places + np.float32(n)
        better = (total < least) & (place < np.float32(count))
        least = select(better, total, least)
        best = select(better, place, best)
    first = smallest_lane(select(least == smallest_lane(least), best, _INFINITY))
    return lists[start + 1 + int(first)]
