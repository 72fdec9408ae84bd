"""ggml's search for iq1_s and iq1_m: groups of eight weights of three levels, shifted by an eighth.

    weight = scale (level + shift)        level -1, 0 or 1; shift 1/8 or -1/8

In keys of the grid (see `neighbours`) levels count from 0 to 2.

For each sub-block the best of all splits of its weights into levels, with the best shifts, is found
(`iq1_splits`). The levels of a group are mostly no point of the grid then, and make way for the neighbour
with the least error under the scale found. Last the scale is fitted again.

                         iq1_s                        iq1_m
    sub-block            32 weights, one shift        16 weights, a shift for each group
    error of x weighs    qw sqrt(2 ms + x^2)          the same, or x^2 without importance
    d                    the largest scale is 15 d    is then fitted again to all 256 weights
    stored               1.125 d                      1.1125 d ("another fudge factor", says ggml)

qw is the importance of the column, ms the mean square of a superblock's 256 weights. iq1_s is never written
without importance: ggml's encoder aborts.

Where ggml gives up
-------------------
Products and squares of weights from about 1e9 on overflow. Where no neighbour has a finite error, ggml reads
weights beyond the group, of the tensor or of other memory, and mostly aborts; here the first neighbour is
taken. Where a scale is a nan ggml aborts; here the sub-block becomes zero.

From llama.cpp b11434, `ggml/src/ggml-quants.c`: quantize_row_iq1_s_impl, quantize_row_iq1_m_impl and
iq1_find_best_neighbour2.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.formats.fields import Grid
from ggplan.quants.half import halves_of
from ggplan.quants.kernels import I64, F32s, I32s, U16s, Weights, inline, kernel, scratch
from ggplan.quants.memory import floats_at, integers_at, load, store, transpose
from ggplan.quants.searches.grid_points import (
    SearchTable,
    best_neighbour,
    index_of,
    lane_numbers,
    search_table,
    stretch,
)
from ggplan.quants.searches.iq1_splits import (
    SHIFT,
    TERMS,
    add_up_m,
    add_up_s,
    best_split_m,
    best_split_s,
    rank,
)
from ggplan.quants.searches.superblock import (
    SUPERBLOCK,
    TILE,
    Superblocks,
    first_superblock,
    load_tile,
    nearest,
    position,
    sum_of_squares,
    weigh_by_importance,
)
from ggplan.quants.vector import WIDTH, absolute, any_lane, float_of, maximum, minimum, select, splat

GROUP = 8

# A sub-block whose largest weight is below this is taken for zero (GROUP_MAX_EPS_IQ1_S and _M).
_NOTHING_S, _NOTHING_M = np.float32(1e-12), np.float32(1e-7)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_HALF = np.float32(0.5)
_PER_WEIGHT = np.float32(1 / SUPERBLOCK)
_ALL_TWOS = 0xAAAA

# Numbers of a superblock: levels of sixteen scales, or of eight; shifts of 32 groups, 1 where down; points.
_DOWN, _KEYS, _ALL_FOUND = 16, 48, 80


class Memory(NamedTuple):
    """What a search works on: sixteen superblocks.

    Attributes
    ----------
    tile, weight
        The weights, and the importance of their columns, which makes way for what their errors weigh.
    ranks
        int32 [WIDTH i + lane]: how many of the sub-block's weights come before weight i.
    ordered, terms
        float32: sums for splits (`iq1_splits`).
    lanes
        float32 [2 size lane + i]: the weights of neighbouring sub-blocks, then what their errors weigh.
    scale, moved
        float32, int32 [lane]: of such sub-blocks; whether the levels of a group were no point.
    keys, shifts
        int32, float32 [position(sub_block, group, groups) + lane]: the levels of groups, then their points.
    scales
        float32 [16 sub_block + lane].
    found
        int32 [16 number + lane].
    """

    tile: Any
    weight: Any
    ranks: Any
    ordered: Any
    terms: Any
    lanes: Any
    scale: Any
    moved: Any
    keys: Any
    shifts: Any
    scales: Any
    found: Any


_SIZES = Memory(
    tile=SUPERBLOCK * TILE,
    weight=SUPERBLOCK * TILE,
    ranks=32 * WIDTH,
    ordered=64 * WIDTH,
    terms=33 * TERMS * WIDTH,
    lanes=64 * WIDTH,
    scale=WIDTH,
    moved=WIDTH,
    keys=32 * TILE,
    shifts=32 * TILE,
    scales=16 * TILE,
    found=_ALL_FOUND * TILE,
)
_PLACES = Memory(*accumulate(_SIZES[:-1], initial=0))


def search(kernel: Callable[..., None], given: Superblocks) -> Grid:
    """The fields that ggml gives superblocks, by one of the kernels below."""
    d = np.empty(given.n, np.float16)
    found = np.empty((given.n, _ALL_FOUND), np.uint16)
    kernel(
        *given[:-1], scratch(sum(_SIZES)), *search_table("iq1_s"), d.view(np.uint16), found
    )  # fmt: skip
    small = found[:, :_KEYS].astype(np.uint8)
    scales, shifts = small[:, :_DOWN], small[:, _DOWN:]
    if kernel is iq1_s:
        scales, shifts = scales[:, :8], shifts[:, ::4]
    return Grid(
        d,
        np.ascontiguousarray(scales),
        index_of("iq1_s")[found[:, _KEYS:]],
        np.ascontiguousarray(shifts),
    )


@kernel
def iq1_s(
    weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
    neighbours_of: I32s, fields: I32s, keys: I32s, d: U16s, found: U16s,
) -> None:  # fmt: skip
    """The fields of superblocks, each of eight sub-blocks."""
    table = SearchTable(neighbours_of, fields, keys)
    memory = _memory_in(room)
    for number in range((count + TILE - 1) // TILE):
        first = first_superblock(number, count)
        load_tile(weights, first, 32, memory.tile)
        load_tile(columns, (skipped + first) % per_row, 32, memory.weight)
        energy = sum_of_squares(memory.tile, 32) * _TWO * _PER_WEIGHT
        for at in range(0, 8 * TILE, WIDTH):
            values, weight = floats_at(memory.tile, 32 * at), floats_at(memory.weight, 32 * at)
            weigh_by_importance(values, weight, 0, 32, energy, weight)
            rank(values, 32, memory.ranks)
            add_up_s(values, weight, memory.ranks, memory.ordered, memory.terms)
            scale, split = best_split_s(memory.terms)
            is_found = (split >= 0) & (_largest(values, 32) >= _NOTHING_S) & (scale == scale)
            down = select(split & 1 != 0, splat(15, WIDTH), 0)
            _take_points(table, values, weight, at, 32, scale, split, is_found, down, memory)
        largest = _round_scales(8, memory)
        stored = halves_of(largest / np.float32(15) * np.float32(1.125))
        store(d, first, select(largest != _ZERO, stored, 0))
        _write(first, found, memory)


@kernel
def iq1_m(
    weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
    neighbours_of: I32s, fields: I32s, keys: I32s, d: U16s, found: U16s,
) -> None:  # fmt: skip
    """The fields of superblocks, each of sixteen sub-blocks."""
    table = SearchTable(neighbours_of, fields, keys)
    memory = _memory_in(room)
    for number in range((count + TILE - 1) // TILE):
        first = first_superblock(number, count)
        load_tile(weights, first, 16, memory.tile)
        if per_row:
            load_tile(columns, (skipped + first) % per_row, 16, memory.weight)
        energy = sum_of_squares(memory.tile, 16) * _TWO * _PER_WEIGHT
        for at in range(0, 16 * TILE, WIDTH):
            values, weight = floats_at(memory.tile, 16 * at), floats_at(memory.weight, 16 * at)
            if per_row:
                weigh_by_importance(values, weight, 0, 16, energy, weight)
            else:
                for i in range(0, 16 * WIDTH, WIDTH):
                    store(weight, i, load(values, i, WIDTH) * load(values, i, WIDTH))
            rank(values, 16, memory.ranks)
            add_up_m(values, weight, memory.ranks, memory.ordered, memory.terms)
            scale, split = best_split_m(memory.terms)
            is_found = (split >= 0) & (_largest(values, 16) >= _NOTHING_M) & (scale == scale)
            down = ((split >> 1) & 1) | ((split & 1) << 1)
            _take_points(table, values, weight, at, 16, scale, split, is_found, down, memory)
        largest = _round_scales(16, memory)
        fitted = _fit(largest / np.float32(15), memory)
        store(d, first, select(largest != _ZERO, halves_of(fitted * np.float32(1.1125)), 0))
        _write(first, found, memory)


@inline
def _memory_in(room: Any) -> Any:
    return Memory(
        floats_at(room, _PLACES.tile),
        floats_at(room, _PLACES.weight),
        integers_at(room, _PLACES.ranks),
        floats_at(room, _PLACES.ordered),
        floats_at(room, _PLACES.terms),
        floats_at(room, _PLACES.lanes),
        floats_at(room, _PLACES.scale),
        integers_at(room, _PLACES.moved),
        integers_at(room, _PLACES.keys),
        floats_at(room, _PLACES.shifts),
        floats_at(room, _PLACES.scales),
        integers_at(room, _PLACES.found),
    )


@inline
def _largest(values: Any, size: Any) -> Any:
    """The largest magnitude of each lane's `size` values."""
    largest = splat(_ZERO, WIDTH)
    for at in range(0, WIDTH * size, WIDTH):
        largest = maximum(largest, absolute(load(values, at, WIDTH)))
    return largest


@inline
def _take_points(
    table: Any, values: Any, weight: Any, at: Any, size: Any, scale: Any, split: Any, is_found: Any,
    down: Any, memory: Any,
) -> None:  # fmt: skip
    """Give the groups of the sub-blocks at `at` points, and the sub-blocks their scales.

    Bit k of `down` tells whether the shift of group k is down. A negative scale turns levels and shifts
    around. Without a split (`is_found`) scale, levels and shifts are zero.
    """
    groups = size // GROUP
    negative = scale < _ZERO
    scale = select(negative, -scale, scale)
    keys = integers_at(memory.keys, groups * at)
    shifts = floats_at(memory.shifts, groups * at)
    down = select(is_found, select(negative, ~down, down), 0)
    for g in range(groups):
        key = _key(memory.ranks, g, split)
        key = select(negative, _ALL_TWOS - key, key)
        store(keys, WIDTH * g, select(is_found, key, 0))
        store(shifts, WIDTH * g, select((down >> g) & 1 != 0, -SHIFT, splat(SHIFT, WIDTH)))
    store(memory.scale, 0, scale)
    for part in range(0, WIDTH, TILE):
        for i in range(0, size, TILE):
            to = 2 * size * part + i
            transpose(values, WIDTH * i + part, WIDTH, memory.lanes, to, 2 * size)
            transpose(weight, WIDTH * i + part, WIDTH, memory.lanes, to + size, 2 * size)
    _move(table, groups, keys, shifts, memory)
    moved = load(memory.moved, 0, WIDTH) != 0
    if any_lane(moved):
        # The best scale for the points, where they are not the levels that `scale` was found with.
        sum_xq, sum_q2 = splat(_ZERO, WIDTH), splat(_ZERO, WIDTH)
        for g in range(groups):
            key = load(keys, WIDTH * g, WIDTH)
            shift = load(shifts, WIDTH * g, WIDTH)
            for i in range(GROUP):
                q = _level(key, i) + shift
                wq = load(weight, WIDTH * (GROUP * g + i), WIDTH) * q
                sum_xq = sum_xq + wq * load(values, WIDTH * (GROUP * g + i), WIDTH)
                sum_q2 = sum_q2 + wq * q
        scale = select(moved & (sum_xq > _ZERO) & (sum_q2 > _ZERO), sum_xq / sum_q2, scale)
    store(memory.scales, at, select(is_found, scale, _ZERO))


@inline
def _key(ranks: Any, group: Any, split: Any) -> Any:
    """The levels of a group, packed."""
    i1 = split >> 10
    i2 = (split >> 3) & 127
    key = splat(0, WIDTH)
    for i in range(GROUP):
        place = load(ranks, WIDTH * (GROUP * group + i), WIDTH)
        one = select(place >= i1, splat(1, WIDTH), 0)
        key = key + ((select(place >= i2, one + 1, one)) << (2 * i))
    return key


@inline
def _level(key: Any, i: Any) -> Any:
    """Level i of a group, counted from -1, float32."""
    return float_of(((key >> (2 * i)) & 3) - 1)


@inline
def _move(table: Any, groups: Any, keys: Any, shifts: Any, memory: Any) -> None:
    """Replace keys that are no points by those of the neighbours with the least errors."""
    size = GROUP * groups
    levels = float_of((lane_numbers(32) & 3) - 1)
    for r in range(WIDTH):
        memory.moved[r] = 0
        for g in range(groups):
            listed = table.neighbours_of[keys[WIDTH * g + r]]
            if listed != 0:
                x = stretch(load(memory.lanes, 2 * size * r + GROUP * g, GROUP))
                w = stretch(load(memory.lanes, 2 * size * r + size + GROUP * g, GROUP))
                error = memory.scale[r] * (shifts[WIDTH * g + r] + levels) - x
                keys[WIDTH * g + r] = best_neighbour(table, listed, w * error * error, GROUP)[0]
                memory.moved[r] = 1


@inline
def _round_scales(count: Any, memory: Any) -> Any:
    """Round a tile's scales, and put all but d where it is written from; return the largest scale."""
    largest = splat(_ZERO, TILE)
    for at in range(0, count * TILE, TILE):
        largest = maximum(largest, load(memory.scales, at, TILE))
    something = largest != _ZERO
    inverse = _ONE / (largest / np.float32(15))
    groups = 32 // count
    for j in range(count):
        level = nearest((inverse * load(memory.scales, TILE * j, TILE) - _ONE) * _HALF)
        store(memory.found, TILE * j, select(something, maximum(minimum(level, 7), 0), 0))
        for g in range(groups):
            at = position(j, g, groups)
            down = something & (load(memory.shifts, at, TILE) < _ZERO)
            store(memory.found, TILE * (_DOWN + groups * j + g), select(down, splat(1, TILE), 0))
            store(memory.found, TILE * (_KEYS + groups * j + g), load(memory.keys, at, TILE))
    return largest


@inline
def _fit(d: Any, memory: Any) -> Any:
    """The d of iq1_m that is best for all 256 weights; `d` where there is none."""
    sum_xq, sum_q2 = splat(_ZERO, TILE), splat(_ZERO, TILE)
    for j in range(16):
        factor = float_of(2 * load(memory.found, TILE * j, TILE) + 1)
        for g in range(2):
            at = position(j, g, 2)
            shift = load(memory.shifts, at, TILE)
            key = load(memory.keys, at, TILE)
            for i in range(GROUP):
                q = (_level(key, i) + shift) * factor
                at = position(j, GROUP * g + i, 16)
                wq = load(memory.weight, at, TILE) * q
                sum_xq = sum_xq + wq * load(memory.tile, at, TILE)
                sum_q2 = sum_q2 + wq * q
    return select(sum_q2 > _ZERO, sum_xq / sum_q2, d)


@inline
def _write(first: Any, found: Any, memory: Any) -> None:
    for n in range(0, _ALL_FOUND, TILE):
        transpose(memory.found, TILE * n, TILE, found, first * _ALL_FOUND + n, _ALL_FOUND)
