"""ggml's searches for superblocks of scales alone, with levels of both signs: q3_K and q6_K.

q6_K: each sub-block gets the scale that `ggml.symmetric_search` finds. The error of a weight x counts x^2,
or the importance of its column where there is an importance matrix. The scale of the largest magnitude
becomes the integer -128, the others their share.

q3_K, without an importance matrix: the error of a weight x counts x^2, the levels are improved one at a
time, and the largest scale gets the whole 6 bits. With one it counts importance * sqrt(2 ms + x^2), the
mean square of the superblock; scales are found by trial, and their own scale d in the same way.

Both have sixteen sub-blocks of 16 weights. From llama.cpp's `ggml/src/ggml-quants.c`: quantize_row_q3_K_ref,
make_q3_quants, quantize_row_q3_K_impl, quantize_row_q6_K_ref and quantize_row_q6_K_impl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ggplan.quants.formats.fields import Symmetric, empty_symmetric, memory_of
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.kernels import I64, F32s, U8s, U16s, Weights, inline, kernel
from ggplan.quants.memory import load, store
from ggplan.quants.searches.ggml import NOTHING, find_extreme, symmetric_search
from ggplan.quants.searches.superblock import (
    SHIFT,
    SUPERBLOCK,
    TILE,
    Superblocks,
    first_superblock,
    load_tile,
    nearest,
    requantize,
    shifted_nearest,
    store_codes,
    store_small,
    sum_of_squares,
    tile_in,
    weigh_by_importance,
)
from ggplan.quants.vector import WIDTH, any_lane, float_of, maximum, minimum, rounded, select, splat

_SIZE = 16
_COUNT = SUPERBLOCK // _SIZE

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
# Of q3_K.
_LOWEST = np.float32(-4)
_HIGHEST = np.float32(3)
_LOWEST_SCALE = np.float32(-32)
_PASSES = 5
# Of q6_K. It takes twice as many lanes as other searches, which halves what comes once a trial.
_LOWEST_Q6 = -32
_HIGHEST_Q6 = 31
_LOWEST_SCALE_Q6 = np.float32(-128)
_LANES = 2 * WIDTH


def search_q3_k(given: Superblocks) -> Symmetric:
    """The fields that ggml gives superblocks."""
    return _search(_q3_k if given.columns is None else _q3_k_with_importance, given)


def search_q6_k(given: Superblocks) -> Symmetric:
    """The fields that ggml gives superblocks."""
    return _search(_q6_k, given)


def _search(kernel: Callable[..., None], given: Superblocks) -> Symmetric:
    found = empty_symmetric(given.n, _COUNT)
    kernel(*given, *memory_of(found))
    return found


@kernel
def _q6_k(
    weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
    d: U16s, scales: U8s, codes: U8s,
) -> None:  # fmt: skip
    tile = tile_in(room)
    for number in range((count + TILE - 1) // TILE):
        first = first_superblock(number, count)
        load_tile(weights, first, _SIZE, tile.weights, _LANES)
        if per_row > 0:
            load_tile(columns, (skipped + first) % per_row, _SIZE, tile.columns, _LANES)
        for at in range(0, _COUNT * TILE, _LANES):
            for i in range(0, _SIZE * _LANES, _LANES):
                x = load(tile.weights, _SIZE * at + i, _LANES)
                weight = load(tile.columns, _SIZE * at + i, _LANES) if per_row > 0 else x * x
                store(tile.errors, i, weight)
            scale, kept_scale, kept_offset = symmetric_search(
                tile.weights,
                _SIZE * at,
                _SIZE,
                _LANES,
                tile.errors,
                tile.scratch,
                np.float32(-_LOWEST_Q6),
                True,
            )
            store(tile.fit.scale, at, scale)
            store(tile.fit.kept_scale, at, kept_scale)
            store(tile.fit.kept_offset, at, kept_offset)
        unit, nothing = _round_scales(tile.fit.scale, tile.scales)
        round_weights(tile, tile.weights, unit, _SIZE, _LOWEST_Q6, _HIGHEST_Q6, _LANES)
        if any_lane(nothing):
            unit = select(nothing, _ZERO, unit)
            for at in range(0, _COUNT * TILE, TILE):
                store(tile.scales, at, select(nothing, 0, load(tile.scales, at, TILE)))
            for at in range(0, SUPERBLOCK * TILE, TILE):
                store(tile.levels, at, select(nothing, 0, load(tile.levels, at, TILE)))
        store_fields(tile, halves_of(unit), _COUNT, first, d, scales, codes)


@kernel
def _q3_k(
    weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
    d: U16s, scales: U8s, codes: U8s,
) -> None:  # fmt: skip
    tile = tile_in(room)
    for number in range((count + TILE - 1) // TILE):
        first = first_superblock(number, count)
        load_tile(weights, first, _SIZE, tile.weights)
        for at in range(0, _COUNT * TILE, WIDTH):
            # What `requantize` keeps are levels: they are in `scratch`, and need no scale.
            store(tile.fit.scale, at, _descend(tile.weights, _SIZE * at, tile.scratch))
            store(tile.fit.kept_scale, at, splat(_ONE, WIDTH))
            store(tile.fit.kept_offset, at, splat(_ZERO, WIDTH))
        unit = _divide_by_largest(tile.fit.scale, tile.scales)
        round_weights(tile, tile.scratch, unit, _SIZE, -4, 3, WIDTH)
        store_fields(tile, halves_of(unit), _COUNT, first, d, scales, codes)


@kernel
def _q3_k_with_importance(
    weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
    d: U16s, scales: U8s, codes: U8s,
) -> None:  # fmt: skip
    tile = tile_in(room)
    for number in range((count + TILE - 1) // TILE):
        first = first_superblock(number, count)
        load_tile(weights, first, _SIZE, tile.weights)
        load_tile(columns, (skipped + first) % per_row, _SIZE, tile.columns)
        energy = _TWO * sum_of_squares(tile.weights, _SIZE) / np.float32(SUPERBLOCK)
        for at in range(0, _COUNT * TILE, WIDTH):
            weigh_by_importance(tile.weights, tile.columns, _SIZE * at, _SIZE, energy, tile.errors)
            scale, kept_scale, kept_offset = symmetric_search(
                tile.weights, _SIZE * at, _SIZE, WIDTH, tile.errors, tile.scratch, -_LOWEST, True
            )
            sum_w = splat(_ZERO, WIDTH)
            for i in range(0, _SIZE * WIDTH, WIDTH):
                sum_w = sum_w + load(tile.errors, i, WIDTH)
            store(tile.fit.scale, at, scale)
            store(tile.fit.kept_scale, at, kept_scale)
            store(tile.fit.kept_offset, at, kept_offset)
            store(tile.fit.weight, at, sum_w)
        unit, kept_scale, kept_offset = symmetric_search(
            tile.fit.scale, 0, _COUNT, TILE, tile.fit.weight, tile.scratch, -_LOWEST_SCALE, False
        )
        for j in range(_COUNT):
            level = nearest((load(tile.fit.scale, j * TILE, TILE) + kept_offset) * kept_scale)
            level = maximum(minimum(level, 31), -32)
            store(tile.scales, j * TILE, select(kept_offset == _ZERO, level, -32))  # scales may be nan
        round_weights(tile, tile.weights, unit, _SIZE, -4, 3, WIDTH)
        store_fields(tile, halves_of(unit), _COUNT, first, d, scales, codes)


@inline
def round_weights(
    tile: Any, kept_tile: Any, unit: Any, size: Any, lowest: Any, highest: Any, width: Any
) -> None:
    """Round all weights by the scales that are stored, in this unit; `kept_tile` as of `requantize`."""
    unit = floats_of(halves_of(unit))
    for j in range(SUPERBLOCK // size):
        store(tile.fit.scale, j * TILE, unit * float_of(load(tile.scales, j * TILE, TILE)))
        store(tile.fit.offset, j * TILE, splat(_ZERO, TILE))
        requantize(tile.weights, kept_tile, tile.fit, j, size, lowest, highest, tile.levels, width)


@inline
def store_fields(tile: Any, halves: Any, count: Any, first: Any, d: Any, scales: Any, codes: Any) -> None:
    """Write the fields of sixteen superblocks of `count` sub-blocks, from number `first` on."""
    store(d, first, halves)
    store_small(tile.scales, count, scales, first)
    store_codes(tile.levels, codes, first)


@inline
def _round_scales(values: Any, scales: Any) -> Any:
    """Give the scale of largest magnitude the integer -128, the others their share.

    Returns the scale of the integers, and which superblocks are nothing.
    """
    extreme, magnitude = find_extreme(values, 0, _COUNT, TILE)
    inverse = _LOWEST_SCALE_Q6 / extreme
    for j in range(_COUNT):
        integer = minimum(nearest(inverse * load(values, j * TILE, TILE)), 127)
        store(scales, j * TILE, (integer << 24) >> 24)
    return _ONE / inverse, magnitude < NOTHING


@inline
def _descend(tile: Any, start: Any, kept_levels: Any) -> Any:
    """Improve levels one by one while that lessens the error, at most five times each; return the scale.

    `kept_levels`, laid out like the tile, gets the levels.
    """
    extreme, magnitude = find_extreme(tile, start, _SIZE, WIDTH)
    nothing = magnitude < NOTHING

    floor = SHIFT + _LOWEST
    ceiling = SHIFT - _LOWEST - _ONE
    inverse = _LOWEST / extreme
    sum_qx = splat(_ZERO, WIDTH)
    sum_q2 = splat(_ZERO, WIDTH)
    for i in range(start, start + _SIZE * WIDTH, WIDTH):
        x = load(tile, i, WIDTH)
        w = x * x
        q = minimum(rounded(inverse * x), _HIGHEST)
        store(kept_levels, i, q)
        sum_qx = sum_qx + w * x * q
        sum_q2 = sum_q2 + w * q * q
    for _ in range(_PASSES):
        changed = False
        for i in range(start, start + _SIZE * WIDTH, WIDTH):
            x = load(tile, i, WIDTH)
            w = x * x
            wx = w * x
            q = load(kept_levels, i, WIDTH)
            other_qx = sum_qx - wx * q
            possible = other_qx > _ZERO
            if any_lane(possible):
                other_q2 = sum_q2 - w * q * q
                new_q = shifted_nearest(x * other_q2 / other_qx, floor, ceiling) - SHIFT
                new_qx = other_qx + wx * new_q
                new_q2 = other_q2 + w * new_q * new_q
                better = (
                    possible
                    & (new_q != q)
                    & (new_q2 > _ZERO)
                    & (new_qx * new_qx * sum_q2 > sum_qx * sum_qx * new_q2)
                )
                if any_lane(better):
                    changed = True
                    store(kept_levels, i, select(better, new_q, q))
                    sum_qx = select(better, new_qx, sum_qx)
                    sum_q2 = select(better, new_q2, sum_q2)
        if not changed:
            break
    if any_lane(nothing):
        for i in range(start, start + _SIZE * WIDTH, WIDTH):
            store(kept_levels, i, select(nothing, _LOWEST, load(kept_levels, i, WIDTH)))
    return select(nothing | ~(sum_q2 > _ZERO), _ZERO, sum_qx / sum_q2)


@inline
def _divide_by_largest(values: Any, levels: Any) -> Any:
    """Give the scale of largest magnitude the level -32, the others their share; return the levels' scale."""
    extreme, _ = find_extreme(values, 0, _COUNT, TILE)
    inverse = _LOWEST_SCALE / extreme
    nothing = extreme == _ZERO
    for j in range(_COUNT):
        level = (nearest(inverse * load(values, j * TILE, TILE)) << 24) >> 24  # ggml has it in an int8
        level = maximum(minimum(level, 31), -32)
        store(levels, j * TILE, select(nothing, -32, level))
    return select(nothing, _ZERO, _ONE / inverse)
