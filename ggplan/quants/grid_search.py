"""The search of iq2_*, iq3_*: for each sub-block a scale, for each of its groups a point of the grid.

The magnitudes of a sub-block are divided by trial scales. For each, the weights of a group are rounded to
levels by themselves; where these are no point of the grid, the best of the neighbours is taken (see
`neighbours`), the one with the least weighted error under the trial scale. Of the trials, that with the
largest (sum w x q)^2 / (sum w q^2) wins, q = 2 level + 1, and its quotient of sums becomes the scale. Groups
whose winning point was a neighbour are then searched once more under that scale (`Rules.again`), and the
scale follows from the sums again.

All but the choice of neighbours runs in lanes, each a sub-block of its own, `WIDTH` of them side by side.
The trials do not depend on each other, so that first all are rounded; then one group after the other has
the levels of all its trials settled, with lanes for neighbours; then all are judged.

From llama.cpp b11434, `ggml/src/ggml-quants.c`: what quantize_row_iq2_*_impl and quantize_row_iq3_*_impl
have in common.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline
from ggplan.quants.grid_lanes import TERMS, stretch
from ggplan.quants.grid_table import best_neighbour
from ggplan.quants.memory import floats_at, integers_at, load, new_floats, pointers, store, transpose
from ggplan.quants.superblock import (
    SUPERBLOCK,
    TILE,
    first_superblock,
    load_tile,
    nearest,
    position,
    sum_of_squares,
)
from ggplan.quants.vector import (
    WIDTH,
    any_lane,
    float_of,
    lane,
    maximum,
    minimum,
    repeat,
    select,
    splat,
    square_root,
)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)

# In a key, whether the levels as rounded were no point.
_OFF = 1 << 16

# Which groups are searched again under the scale found.
NEIGHBOURS, WITH_NEIGHBOURS, ALL = range(3)


class Rules(NamedTuple):
    """What differs between types with the same groups and sub-blocks.

    Attributes
    ----------
    even
        Whether the number of negative weights in eight must be even.
    energy, background
        The error of x weighs qw sqrt(energy ms + x^2), or background energy ms + x^2 without importance qw,
        ms being the mean square of the superblock's weights; float32.
    nothing
        A sub-block whose largest magnitude is below this is nothing, float32.
    step, reach
        Trials are step * k apart, k from -reach to reach; float32, int.
    again
        Which groups are searched again: `NEIGHBOURS`, those that have got a neighbour; `WITH_NEIGHBOURS`, all
        of a sub-block that has one, or for which no trial was any good; `ALL`.
    """

    even: bool
    energy: np.float32
    background: np.float32
    nothing: np.float32
    step: np.float32
    reach: int
    again: int


class Found(NamedTuple):
    """What is found for n superblocks.

    Attributes
    ----------
    indices
        uint16 (n, groups).
    signs
        uint8 (n, 32): a bit for each weight, set where it is negative.
    levels
        int8 (n, sub-blocks): those of the scales, from 0 to 15; -1 for a sub-block of nothing, whose indices
        and signs are 0.
    scales
        float32 (n,): the superblock's scale d. scale = d (2 level + 1).
    """

    indices: NDArray[np.uint16]
    signs: NDArray[np.uint8]
    levels: NDArray[np.int8]
    scales: NDArray[np.float32]


class Memory(NamedTuple):
    """What a search works on: sixteen superblocks, and `WIDTH` of their sub-blocks.

    Attributes
    ----------
    tile, columns
        The weights, and the importance of their columns.
    sub_blocks
        float32 [WIDTH i + lane]: the magnitudes, then as many weights of their errors.
    lanes
        float32 [2 size lane + i]: the same.
    trials
        float32 [WIDTH trial + lane]: the scales tried.
    points
        int32 [stride trial + WIDTH group + lane]: the keys of rounded levels, then of points.
    best
        int32 [WIDTH group + lane]: the keys of the best trial.
    scales
        float32 [16 sub_block + lane]; -1 for a sub-block of nothing.
    keys
        int32 [position(sub_block, group, groups) + lane]: the points found.
    signs
        int32 [position(sub_block, eight, size // 8) + lane]: a bit for each of eight weights.
    """

    tile: Any
    columns: Any
    sub_blocks: Any
    lanes: Any
    trials: Any
    points: Any
    best: Any
    scales: Any
    keys: Any
    signs: Any


_MOST_TRIALS = 31
_SIZES = Memory(
    tile=SUPERBLOCK * TILE,
    columns=SUPERBLOCK * TILE,
    sub_blocks=2 * 32 * WIDTH,
    lanes=2 * 32 * WIDTH,
    trials=_MOST_TRIALS * WIDTH,
    points=_MOST_TRIALS * (8 * WIDTH + TILE),
    best=8 * WIDTH,
    scales=SUPERBLOCK // 16 * TILE,
    keys=SUPERBLOCK // 4 * TILE,
    signs=SUPERBLOCK // 8 * TILE,
)
_PLACES = Memory(*accumulate(_SIZES[:-1], initial=0))

# How many numbers of four bytes take all of `Memory`, whatever the type.
ROOM = sum(_SIZES)


@inline
def search_superblocks(
    source: Any,
    importance: Any,
    skipped: Any,
    table: Any,
    rules: Any,
    found: Any,
    size: Any,
    group: Any,
    highest: Any,
) -> None:
    """Fill `found` for all superblocks of `source`, at least sixteen.

    Parameters
    ----------
    source
        Whole superblocks of weights.
    importance
        As `encode_superblocks` gives it; `skipped` superblocks come before the first of `source`.
    size, group
        The weights of a sub-block and of a group, constants.
    highest
        The highest value of a point, which trials give the largest magnitude, more or less; float32.
    """
    table = pointers(table)
    found = pointers(found)
    room = new_floats(ROOM)
    count = source.size // SUPERBLOCK
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        memory = memory_in(room)
        energy = load_superblocks(source, importance, skipped, first, size, memory)
        for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
            weigh(importance, energy, rules, at, size, memory)
            largest = split_signs(rules, at, size, memory)
            nothing = largest < rules.nothing
            scale = largest / highest
            search_scales(table, rules, at, size, group, nothing, scale, largest, highest, memory)
        write_found(table, rules, first, size, group, memory, found)


@inline
def memory_in(room: Any) -> Any:
    """Part an array of `ROOM` numbers. Pointers do not keep it alive: a loop does that parts it each time."""
    return Memory(
        floats_at(room, _PLACES.tile),
        floats_at(room, _PLACES.columns),
        floats_at(room, _PLACES.sub_blocks),
        floats_at(room, _PLACES.lanes),
        floats_at(room, _PLACES.trials),
        integers_at(room, _PLACES.points),
        integers_at(room, _PLACES.best),
        floats_at(room, _PLACES.scales),
        integers_at(room, _PLACES.keys),
        integers_at(room, _PLACES.signs),
    )


@inline
def _stride(size: Any, group: Any) -> Any:
    """From one trial to the next in `Memory.points`: no power of two, for the cache's sake."""
    return size // group * WIDTH + TILE


@inline
def load_superblocks(source: Any, importance: Any, skipped: Any, first: Any, size: Any, memory: Any) -> Any:
    """Load sixteen superblocks and their importance; return the sums of their squares."""
    load_tile(source, first, size, memory.tile)
    if importance.size > 0:
        per_row = importance.size // SUPERBLOCK - (TILE - 1)
        load_tile(importance, (skipped + first) % per_row, size, memory.columns)
    return sum_of_squares(memory.tile, size)


@inline
def weigh(importance: Any, energy: Any, rules: Any, at: Any, size: Any, memory: Any) -> None:
    """Weigh the errors of the sub-blocks at `at`, whose superblocks have these sums of squares."""
    mean = repeat(energy * rules.energy / np.float32(SUPERBLOCK), WIDTH)
    background = splat(_ZERO, WIDTH)
    if rules.background > _ZERO:
        background = rules.background * mean
    for i in range(size):
        x = load(memory.tile, size * at + WIDTH * i, WIDTH)
        weight = background + x * x
        if importance.size > 0:
            weight = load(memory.columns, size * at + WIDTH * i, WIDTH) * square_root(mean + x * x)
        store(memory.sub_blocks, WIDTH * (size + i), weight)


@inline
def split_signs(rules: Any, at: Any, size: Any, memory: Any) -> Any:
    """Part the sub-blocks at `at` into magnitudes and signs; return the largest magnitudes.

    Where the number of negative weights in eight must be even and is not, the one that counts least gets the
    other sign, and a negative magnitude.
    """
    for first in range(0, size, 8):
        signs = splat(0, WIDTH)
        odd = splat(0, WIDTH)
        least = splat(_ZERO, WIDTH)
        least_bit = splat(1, WIDTH)
        for i in range(first, first + 8):
            x = load(memory.tile, size * at + WIDTH * i, WIDTH)
            bit = splat(1 << (i - first), WIDTH)
            negative = x < _ZERO
            store(memory.sub_blocks, WIDTH * i, select(negative, -x, x))
            signs = signs | select(negative, bit, 0)
            odd = odd ^ select(negative, splat(1, WIDTH), 0)
            loss = load(memory.sub_blocks, WIDTH * (size + i), WIDTH) * x * x
            if i == first:
                least = loss
            less = loss < least
            least = select(less, loss, least)
            least_bit = select(less, bit, least_bit)
        if rules.even:
            flipped = select(odd == 1, least_bit, 0)
            signs = signs ^ flipped
            for i in range(first, first + 8):
                x = load(memory.sub_blocks, WIDTH * i, WIDTH)
                store(memory.sub_blocks, WIDTH * i, select((flipped & (1 << (i - first))) != 0, -x, x))
        store(memory.signs, (size * at + WIDTH * first) // 8, signs)
    largest = load(memory.sub_blocks, 0, WIDTH)
    for i in range(1, size):
        largest = maximum(largest, load(memory.sub_blocks, WIDTH * i, WIDTH))
    return largest


@inline
def search_scales(
    table: Any,
    rules: Any,
    at: Any,
    size: Any,
    group: Any,
    nothing: Any,
    scale: Any,
    largest: Any,
    middle: Any,
    memory: Any,
) -> None:
    """Find scales and points of the sub-blocks at `at`.

    Parameters
    ----------
    nothing
        Lanes to leave out.
    scale
        What to take where no trial is any good.
    largest, middle
        Trial k is the scale largest / (middle + step * k).
    """
    groups = size // group
    stride = _stride(size, group)
    for start in range(0, WIDTH, TILE):
        for i in range(0, 2 * size, TILE):
            source, target = WIDTH * i + start, 2 * size * start + i
            transpose(memory.sub_blocks, source, WIDTH, memory.lanes, target, 2 * size)
    for g in range(groups):
        store(memory.best, WIDTH * g, splat(_OFF if rules.again == WITH_NEIGHBOURS else 0, WIDTH))

    best = splat(_ZERO, WIDTH)
    chosen = ~nothing
    last = nothing & chosen
    count = 2 * rules.reach + 1
    for turn in range(2):
        for trial in range(count):
            inverse = np.float32(middle + np.float32(np.float32(trial - rules.reach) * rules.step)) / largest
            tried = _ONE / inverse
            if turn == 1:
                inverse = _ONE / scale
                tried = scale
            store(memory.trials, WIDTH * trial, tried)
            inverse = select(chosen, inverse, _ZERO)
            _round(memory.sub_blocks, inverse, size, group, memory.points, stride * trial)
        if turn == 1:
            for g in range(groups):
                kept = load(memory.best, WIDTH * g, WIDTH)
                these = chosen if rules.again != NEIGHBOURS else chosen & (kept >= _OFF)
                rounded = load(memory.points, WIDTH * g, WIDTH)
                store(memory.points, WIDTH * g, select(these, rounded, kept & (_OFF - 1)))
        _settle(table, memory, count, size, group)
        for trial in range(count):
            sum_qx, sum_q2 = _sums(memory, stride * trial, size, group)
            better = chosen & (sum_q2 > _ZERO) & (last | (sum_qx * sum_qx > best * sum_q2))
            taken = better | last
            if any_lane(taken):
                scale = select(better, sum_qx / sum_q2, scale)
                best = select(better, scale * sum_qx, best)
                for g in range(groups):
                    point = load(memory.points, stride * trial + WIDTH * g, WIDTH)
                    kept = load(memory.best, WIDTH * g, WIDTH)
                    store(memory.best, WIDTH * g, select(taken, point, kept))
        off = splat(_OFF if rules.again == ALL else 0, WIDTH)
        for g in range(groups):
            off = off | load(memory.best, WIDTH * g, WIDTH)
        chosen = chosen & (scale > _ZERO) & (off >= _OFF)
        if not any_lane(chosen):
            break
        last = chosen | ~chosen
        count = 1

    negative = scale < _ZERO
    scale = select(negative, -scale, scale)
    store(memory.scales, at, select(nothing, -_ONE, scale))
    for g in range(groups):
        key = load(memory.best, WIDTH * g, WIDTH) & (_OFF - 1)
        store(memory.keys, groups * at + WIDTH * g, select(nothing, 0, key))
    for g in range(size // 8):
        signs = load(memory.signs, size // 8 * at + WIDTH * g, WIDTH)
        signs = select(negative, ~signs, signs)
        store(memory.signs, size // 8 * at + WIDTH * g, select(nothing, 0, signs))


@inline
def _round(magnitudes: Any, inverse: Any, size: Any, group: Any, keys: Any, at: Any) -> None:
    """Round each magnitude by itself and write the groups' keys to `keys[at:]`."""
    bits = 2 if group == 8 else 3
    highest = 2 if group == 8 else 7
    for g in range(size // group):
        key = splat(0, WIDTH)
        for i in range(group):
            x = load(magnitudes, WIDTH * (group * g + i), WIDTH)
            level = nearest(_HALF * (inverse * x - _ONE))
            key = key | (maximum(minimum(level, highest), 0) << (bits * i))
        store(keys, at + WIDTH * g, key)


@inline
def _sums(memory: Any, at: Any, size: Any, group: Any) -> Any:
    """The sums of weight * magnitude * q and weight * q * q for the points in `memory.points[at:]`."""
    bits = 2 if group == 8 else 3
    sum_qx = splat(_ZERO, WIDTH)
    sum_q2 = splat(_ZERO, WIDTH)
    for g in range(size // group):
        key = load(memory.points, at + WIDTH * g, WIDTH)
        for i in range(group):
            q = float_of(((key >> (bits * i)) & ((1 << bits) - 1)) * 2 + 1)
            weight = load(memory.sub_blocks, WIDTH * (size + group * g + i), WIDTH)
            sum_qx = sum_qx + weight * load(memory.sub_blocks, WIDTH * (group * g + i), WIDTH) * q
            sum_q2 = sum_q2 + weight * q * q
    return sum_qx, sum_q2


@inline
def _settle(table: Any, memory: Any, count: Any, size: Any, group: Any) -> None:
    """Replace the keys of all trials that are no point by the best neighbour's, with `_OFF` set."""
    stride = _stride(size, group)
    values = load(table.values, 0, TERMS)
    for g in range(size // group):
        for r in range(WIDTH):
            magnitudes = stretch(load(memory.lanes, 2 * size * r + group * g, group))
            roots = stretch(square_root(load(memory.lanes, 2 * size * r + size + group * g, group)))
            for trial in range(count):
                at = stride * trial + WIDTH * g + r
                listed = table.neighbours_of[memory.points[at]]
                if listed != 0:
                    error = memory.trials[WIDTH * trial + r] * values - magnitudes
                    memory.points[at] = _OFF | best_neighbour(table, listed, roots * error * error, group)


@inline
def write_found(table: Any, rules: Any, first: Any, size: Any, group: Any, memory: Any, found: Any) -> None:
    """Round a tile's scales and write all that was found for it."""
    largest = splat(_ZERO, TILE)
    for j in range(SUPERBLOCK // size):
        largest = maximum(largest, load(memory.scales, TILE * j, TILE))
    zero = largest == _ZERO
    d = select(zero, _ZERO, largest / np.float32(31))
    inverse = _ONE / d
    for j in range(SUPERBLOCK // size):
        scale = load(memory.scales, TILE * j, TILE)
        level = maximum(minimum(nearest(_HALF * (inverse * scale - _ONE)), 15), 0)
        level = select(scale < _ZERO, -1, select(zero, 0, level))
        for lane_number in range(TILE):
            found.levels[(first + lane_number) * (SUPERBLOCK // size) + j] = lane(level, lane_number)
    groups = size // group
    for lane_number in range(TILE):
        found.scales[first + lane_number] = lane(d, lane_number)
        # Without a scale, types with an even number of negative weights get no points either.
        left_out = rules.even and lane(zero, lane_number)
        first_group = (first + lane_number) * (SUPERBLOCK // group)
        for n in range(SUPERBLOCK // group):
            key = memory.keys[position(n // groups, n % groups, groups) + lane_number]
            found.indices[first_group + n] = 0 if left_out else table.index_of[key]
        for n in range(SUPERBLOCK // 8):
            signs = memory.signs[position(n * 8 // size, n % (size // 8), size // 8) + lane_number]
            found.signs[(first + lane_number) * (SUPERBLOCK // 8) + n] = 0 if left_out else signs
