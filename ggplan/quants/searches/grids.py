"""ggml's search for iq2_* and iq3_*: for each sub-block a scale, for each of its groups a point of the grid.

The magnitudes of a sub-block are divided by trial scales. For each, the weights of a group are rounded to
levels by themselves; where these are not a point of the grid, the best of the neighbours is taken (see
`neighbours`), the one with the least weighted error under the trial scale. Of the trials, that with the
largest (sum w x q)^2 / (sum w q^2) wins, q = 2 level + 1, and its quotient of sums becomes the scale. Groups
whose winning point was a neighbour are then searched once more under that scale (`Rules.again`), and the
scale follows from the sums again. Here is what differs between types:

    type      sub-block   error of x weighs                        highest value     searched again
    iq3_s     32          qw sqrt(2 ms + x^2), or x^2              15 +- 1.8         with neighbours
    iq3_xxs   32          qw sqrt(2 ms + x^2), or x^2              15 +- 3           neighbours
    iq2_s     16          qw sqrt(2 ms + x^2), or ms / 2 + x^2      5 +- 0.9         neighbours
    iq2_xs    16          qw sqrt(ms + x^2)                         5 +- 0.9         neighbours
    iq2_xxs   32          qw sqrt(ms + x^2)                         5 +- 0.6         all

qw is the importance of the column, ms the mean square of a superblock's 256 weights. Trial scales give the
largest magnitude a value about the highest of a point; in iq2_xxs it is not the largest magnitude, but three
times the scale that `quantize_scales` finds for levels from 0 to 4. Some types store d a little larger or
smaller than it was found. iq2_xs and iq2_xxs are never written without importance.

All but the choice of neighbours runs in lanes, each a sub-block of its own, `WIDTH` of them side by side.
The trials do not depend on each other: first all of them are rounded; then, group by group, those that are no
point get one, with lanes for neighbours; then all are compared.

From llama.cpp b11434, `ggml/src/ggml-quants.c`: quantize_row_iq2_*_impl and quantize_row_iq3_*_impl.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.formats.fields import Grid
from ggplan.quants.half import halves_of
from ggplan.quants.kernels import F32, I64, F32s, I32s, U16s, Weights, inline, kernel, scratch
from ggplan.quants.memory import floats_at, integers_at, load, store, transpose
from ggplan.quants.searches.ggml import quantize_scales
from ggplan.quants.searches.grid_points import (
    SearchTable,
    index_of,
    search_table,
)
from ggplan.quants.searches.grid_rules import ALL, NEIGHBOURS, WITH_NEIGHBOURS, Rules
from ggplan.quants.searches.grid_trials import GAP, OFF, stride, take_points
from ggplan.quants.searches.superblock import (
    SUPERBLOCK,
    TILE,
    Superblocks,
    first_superblock,
    load_tile,
    nearest,
    sum_of_squares,
)
from ggplan.quants.vector import (
    WIDTH,
    any_lane,
    float_of,
    maximum,
    minimum,
    repeat,
    select,
    splat,
    square_root,
)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_THREE = np.float32(3)
_HALF = np.float32(0.5)

# How many scales `fit` finds for a tile.
_FITS = SUPERBLOCK // 32 * TILE

# What stands for the scale of a sub-block of nothing.
_NO_SCALE = 255


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
    signs
        int32 [WIDTH eight + lane]: a bit for each of eight weights.
    found
        int32 [16 number + lane]: sixteen levels of scales, or eight and no more (`_NO_SCALE`: a sub-block of
        nothing); from `_SIGNS` on the signs of eight weights, from `_KEYS` on the keys of points.
    """

    tile: Any
    columns: Any
    sub_blocks: Any
    lanes: Any
    trials: Any
    points: Any
    best: Any
    scales: Any
    signs: Any
    found: Any


_MOST_TRIALS = 31
_SIGNS, _KEYS = 16, 16 + SUPERBLOCK // 8
_SIZES = Memory(
    tile=SUPERBLOCK * TILE,
    columns=SUPERBLOCK * TILE,
    sub_blocks=2 * 32 * WIDTH,
    lanes=2 * 32 * WIDTH,
    trials=_MOST_TRIALS * WIDTH,
    points=_MOST_TRIALS * (8 * WIDTH + GAP),
    best=8 * WIDTH,
    scales=SUPERBLOCK // 16 * TILE,
    signs=4 * WIDTH,
    found=(_KEYS + SUPERBLOCK // 4) * TILE,
)
_PLACES = Memory(*accumulate(_SIZES[:-1], initial=0))
_ROOM = sum(_SIZES)


def search(kernel: Callable[..., None], grid: str, rules: Rules, given: Superblocks) -> Grid:
    """The fields that ggml gives superblocks, by one of the kernels below and the name of a grid."""
    groups = 64 if kernel is fours else 32
    d = np.empty(given.n, np.float16)
    found = np.empty((given.n, _KEYS + groups), np.uint16)
    room = scratch(_ROOM)
    fits = None
    if kernel is fitted_eights:
        fits = np.empty((given.n + TILE - 1) // TILE * _FITS, np.float32)
        fit(*given[:-1], room, rules.even, rules.energy, fits)
    kernel(
        *given[:-1], room, fits, *rules, *search_table(grid), d.view(np.uint16), found, found.shape[1],
    )  # fmt: skip
    levels = found[:, :_SIGNS] if kernel is eights else found[:, : _SIGNS // 2]
    nothing = levels == _NO_SCALE
    scales = np.where(nothing, 0, levels).astype(np.uint8)
    fields = Grid(d, scales, index_of(grid)[found[:, _KEYS:]], found[:, _SIGNS:_KEYS].astype(np.uint8))
    if grid == "iq3_s":
        _close_gaps(fields, nothing)
    return fields


def _close_gaps(found: Grid, nothing: Any) -> None:
    """Move indices and signs up to where sub-blocks of nothing are, as ggml does for iq3_s.

    A reader finds them with the wrong scales, and indices with the wrong ninth bits, which are not moved.
    """
    gaps = np.flatnonzero(nothing.any(axis=1))
    order = nothing[gaps].argsort(axis=1, kind="stable")[:, :, np.newaxis]  # nothing last: it is all zeros
    indices = found.indices[gaps]
    moved: Any = np.take_along_axis((indices & 255).reshape(-1, 8, 8), order, axis=1)
    found.indices[gaps] = moved.reshape(-1, 64) | indices & 256
    moved = np.take_along_axis(found.signs[gaps].reshape(-1, 8, 4), order, axis=1)
    found.signs[gaps] = moved.reshape(-1, 32)


def _kernel(name: str, size: int, group: int, highest: int, is_fitted: bool = False) -> Callable[..., None]:
    """The kernel for sub-blocks of `size` weights and groups of `group`.

    Trials give the largest magnitude, or what follows from a fit, the `highest` value of a point.
    """
    middle = np.float32(highest)

    def search(
        weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s, fits: F32s,
        even: I64, energy: F32, background: F32, nothing: F32, step: F32, reach: I64, again: I64, stored: F32,
        neighbours_of: I32s, fields: I32s, keys: I32s, d: U16s, found: U16s, n_found: I64,
    ) -> None:  # fmt: skip
        rules = Rules(even, energy, background, nothing, step, reach, again, stored)
        table = SearchTable(neighbours_of, fields, keys)
        memory = _memory_in(room)
        for number in range((count + TILE - 1) // TILE):
            first = first_superblock(number, count)
            load_tile(weights, first, size, memory.tile)
            if per_row:
                load_tile(columns, (skipped + first) % per_row, size, memory.columns)
            squares = sum_of_squares(memory.tile, size)
            for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
                _weigh(per_row, squares, rules, at, size, memory)
                largest = _split_signs(rules, at, size, memory)
                left_out = largest < rules.nothing
                if is_fitted:
                    scale = load(fits, _FITS * number + at, WIDTH)
                    largest = scale * _THREE
                    left_out = left_out | (largest <= _ZERO)
                else:
                    scale = largest / middle
                _search_scales(table, rules, at, size, group, left_out, scale, largest, middle, memory)
            store(d, first, _round_scales(rules, SUPERBLOCK // size, n_found, memory))
            for n in range(0, n_found, TILE):
                transpose(memory.found, TILE * n, TILE, found, first * n_found + n, n_found)

    search.__qualname__ = name
    return kernel(search)


fours = _kernel("fours", 32, 4, 15)  # iq3_s and iq3_xxs
eights = _kernel("eights", 16, 8, 5)  # iq2_s and iq2_xs
fitted_eights = _kernel("fitted_eights", 32, 8, 5, is_fitted=True)  # iq2_xxs


@kernel
def fit(
    weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
    even: I64, energy: F32, fits: F32s,
) -> None:  # fmt: skip
    """The scales of sub-blocks of 32 weights, if there were no grid but all levels from 0 to 4.

    `fits` is float32 [_FITS tile + 16 sub_block + lane].
    """
    rules = Rules(even, energy, _ZERO, _ZERO, _ZERO, 0, 0, _ONE)
    memory = _memory_in(room)
    values = memory.lanes
    weight = floats_at(values, 32 * TILE)
    for number in range((count + TILE - 1) // TILE):
        first = first_superblock(number, count)
        load_tile(weights, first, 32, memory.tile)
        load_tile(columns, (skipped + first) % per_row, 32, memory.columns)
        squares = sum_of_squares(memory.tile, 32)
        for at in range(0, _FITS, WIDTH):
            _weigh(per_row, squares, rules, at, 32, memory)
            _split_signs(rules, at, 32, memory)
            for part in range(0, WIDTH, TILE):
                for i in range(32):
                    store(values, TILE * i, load(memory.sub_blocks, WIDTH * i + part, TILE))
                    store(weight, TILE * i, load(memory.sub_blocks, WIDTH * (32 + i) + part, TILE))
                scale = quantize_scales(values, weight, 32, np.float32(4), memory.points)
                store(fits, _FITS * number + at + part, scale)


@inline
def _memory_in(room: Any) -> Any:
    return Memory(
        floats_at(room, _PLACES.tile),
        floats_at(room, _PLACES.columns),
        floats_at(room, _PLACES.sub_blocks),
        floats_at(room, _PLACES.lanes),
        floats_at(room, _PLACES.trials),
        integers_at(room, _PLACES.points),
        integers_at(room, _PLACES.best),
        floats_at(room, _PLACES.scales),
        integers_at(room, _PLACES.signs),
        integers_at(room, _PLACES.found),
    )


@inline
def _weigh(per_row: Any, energy: Any, rules: Any, at: Any, size: Any, memory: Any) -> None:
    """Weigh the errors of the sub-blocks at `at`, whose superblocks have these sums of squares."""
    mean = repeat(energy * rules.energy / np.float32(SUPERBLOCK), WIDTH)
    background = splat(_ZERO, WIDTH)
    if rules.background > _ZERO:
        background = rules.background * mean
    for i in range(size):
        x = load(memory.tile, size * at + WIDTH * i, WIDTH)
        weight = background + x * x
        if per_row:
            weight = load(memory.columns, size * at + WIDTH * i, WIDTH) * square_root(mean + x * x)
        store(memory.sub_blocks, WIDTH * (size + i), weight)


@inline
def _split_signs(rules: Any, at: Any, size: Any, memory: Any) -> Any:
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
        store(memory.signs, WIDTH * first // 8, signs)
    largest = load(memory.sub_blocks, 0, WIDTH)
    for i in range(1, size):
        largest = maximum(largest, load(memory.sub_blocks, WIDTH * i, WIDTH))
    return largest


@inline
def _search_scales(
    table: Any, rules: Any, at: Any, size: Any, group: Any, nothing: Any, scale: Any, largest: Any,
    middle: Any, memory: Any,
) -> None:  # fmt: skip
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
    step = stride(size, group)
    for start in range(0, WIDTH, TILE):
        for i in range(0, 2 * size, TILE):
            source, target = WIDTH * i + start, 2 * size * start + i
            transpose(memory.sub_blocks, source, WIDTH, memory.lanes, target, 2 * size)
    for g in range(groups):
        store(memory.best, WIDTH * g, splat(OFF if rules.again == WITH_NEIGHBOURS else 0, WIDTH))

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
            _round(memory.sub_blocks, inverse, size, group, memory.points, step * trial)
        if turn == 1:
            for g in range(groups):
                kept = load(memory.best, WIDTH * g, WIDTH)
                these = chosen if rules.again != NEIGHBOURS else chosen & (kept >= OFF)
                rounded = load(memory.points, WIDTH * g, WIDTH)
                store(memory.points, WIDTH * g, select(these, rounded, kept & (OFF - 1)))
        take_points(table, memory, count, size, group)
        for trial in range(count):
            sum_qx, sum_q2 = _sums(memory, step * trial, size, group)
            better = chosen & (sum_q2 > _ZERO) & (last | (sum_qx * sum_qx > best * sum_q2))
            taken = better | last
            if any_lane(taken):
                scale = select(better, sum_qx / sum_q2, scale)
                best = select(better, scale * sum_qx, best)
                for g in range(groups):
                    point = load(memory.points, step * trial + WIDTH * g, WIDTH)
                    kept = load(memory.best, WIDTH * g, WIDTH)
                    store(memory.best, WIDTH * g, select(taken, point, kept))
        off = splat(OFF if rules.again == ALL else 0, WIDTH)
        for g in range(groups):
            off = off | load(memory.best, WIDTH * g, WIDTH)
        chosen = chosen & (scale > _ZERO) & (off >= OFF)
        if not any_lane(chosen):
            break
        last = chosen | ~chosen
        count = 1

    negative = scale < _ZERO
    scale = select(negative, -scale, scale)
    store(memory.scales, at, select(nothing, -_ONE, scale))
    for g in range(groups):
        key = load(memory.best, WIDTH * g, WIDTH) & (OFF - 1)
        store(memory.best, WIDTH * g, select(nothing, 0, key))
    for g in range(size // 8):
        signs = load(memory.signs, WIDTH * g, WIDTH)
        signs = select(negative, ~signs, signs)
        store(memory.signs, WIDTH * g, select(nothing, 0, signs))
    for part in range(0, WIDTH, TILE):
        j = (at + part) // TILE
        for g in range(groups):
            store(memory.found, TILE * (_KEYS + groups * j + g), load(memory.best, WIDTH * g + part, TILE))
        for g in range(size // 8):
            signs_of_part = load(memory.signs, WIDTH * g + part, TILE)
            store(memory.found, TILE * (_SIGNS + size // 8 * j + g), signs_of_part)


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
def _round_scales(rules: Any, count: Any, n_found: Any, memory: Any) -> Any:
    """Write the levels of a tile's scales; return the bits of d as halves."""
    largest = splat(_ZERO, TILE)
    for at in range(0, count * TILE, TILE):
        largest = maximum(largest, load(memory.scales, at, TILE))
    zero = largest == _ZERO
    d = select(zero, _ZERO, largest / np.float32(31))
    inverse = _ONE / d
    for at in range(0, count * TILE, TILE):
        scale = load(memory.scales, at, TILE)
        level = maximum(minimum(nearest(_HALF * (inverse * scale - _ONE)), 15), 0)
        store(memory.found, at, select(scale < _ZERO, _NO_SCALE, select(zero, 0, level)))
    if rules.even and any_lane(zero):
        # Without a scale, these types get no points either.
        for at in range(_SIGNS * TILE, n_found * TILE, TILE):
            store(memory.found, at, select(zero, 0, load(memory.found, at, TILE)))
    return halves_of(d * rules.stored)
