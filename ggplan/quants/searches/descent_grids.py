"""Coordinate descent for iq2_* and iq3_* under a Hessian: points, signs, sub-blocks' scales and d."""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.kernels import F32, I64, F32s, I32s, inline, kernel
from ggplan.quants.memory import floats_at, load, store
from ggplan.quants.searches.best import as_half
from ggplan.quants.searches.descent_points import (
    EIGHT_ROOM,
    LANES,
    Table,
    at,
    eight_in,
    put,
    search_eight,
)
from ggplan.quants.searches.superblock import SUPERBLOCK
from ggplan.quants.vector import any_lane, float_of, integer_of, maximum, minimum, rounded, select, splat

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_HALF = np.float32(0.5)

# Where a search's memory has the gradients of a superblock, moves of all its weights, and the rest.
_ALL = SUPERBLOCK * LANES
_MOVES = _ALL
_EIGHT = 2 * _ALL
ROOM = _EIGHT + EIGHT_ROOM


@kernel
def _descend(
    weights: F32s, values: F32s, residues: F32s, n: I64, count: I64, first: I64, gradients: F32s,
    hessian: F32s, inverses: F32s, ds: F32s, levels: I32s, size: I64, unit: F32, highest: I64,
    rounds: I64, group: I64, is_even: I64, point_values: F32s, starts: I32s, lower: I32s, keys: I32s,
    n_points: I64, room: F32s, gains: F32s,
) -> None:  # fmt: skip
    table = Table(point_values, starts, lower, keys, n_points)
    g = room
    moves = floats_at(room, _MOVES)
    eight = eight_in(floats_at(room, _EIGHT))
    n_scales = SUPERBLOCK // size
    for block in range(count):
        begin = (block * n + first) * LANES
        w, v, r = floats_at(weights, begin), floats_at(values, begin), floats_at(residues, begin)
        for i in range(SUPERBLOCK):
            put(g, i, load(gradients, (i * count + block) * LANES, LANES))
        d = load(ds, block * LANES, LANES)
        gain = load(gains, block * LANES, LANES)
        for _turn in range(rounds):
            for sub in range(n_scales):
                place = (block * n_scales + sub) * LANES
                level = load(levels, place, LANES)
                scale = d * unit * float_of(2 * level + 1)
                for j in range(size * sub, size * (sub + 1), 8):
                    for i in range(8):
                        put(eight.values, i, at(v, j + i))
                        put(eight.gradients, i, at(g, j + i))
                        for k in range(8):
                            eight.hessian[8 * i + k] = hessian[SUPERBLOCK * (j + i) + j + k]
                    cost = search_eight(table, group, is_even, eight, floats_at(inverses, 8 * j), scale)
                    better = cost < _ZERO
                    if any_lane(better):
                        gain = gain - select(better, cost, _ZERO)
                        for i in range(8):
                            value = select(better, at(eight.found, 8 + i), at(v, j + i))
                            put(v, j + i, value)
                            put(r, j + i, at(w, j + i) - scale * value)
                            put(moves, i, select(better, at(eight.found, i), _ZERO))
                        move_gradients(g, hessian, j, 8, moves)
                # The scale.
                start = size * sub
                slope = slope_of(v, g, start, size)
                curve = curve_of(v, hessian, start, size)
                want = scale + slope / curve
                new = (want / (d * unit) - _ONE) * _HALF
                new = select(new == new, new, _ZERO)
                new_level = integer_of(rounded(maximum(minimum(new, np.float32(highest)), _ZERO)))
                new_scale = d * unit * float_of(2 * new_level + 1)
                step = new_scale - scale
                saved = step * (_TWO * slope - step * curve)
                better = saved > _ZERO
                if any_lane(better):
                    gain = gain + select(better, saved, _ZERO)
                    store(levels, place, select(better, new_level, level))
                    step = select(better, step, _ZERO)
                    scale = select(better, new_scale, scale)
                    for i in range(start, start + size):
                        put(moves, i - start, step * at(v, i))
                        put(r, i, at(w, i) - scale * at(v, i))
                    move_gradients(g, hessian, start, size, moves)
            # d
            for sub in range(n_scales):
                level = load(levels, (block * n_scales + sub) * LANES, LANES)
                part = unit * float_of(2 * level + 1)
                for i in range(size * sub, size * (sub + 1)):
                    put(moves, i, part * at(v, i))
            slope = slope_of(moves, g, 0, SUPERBLOCK)
            curve = curve_of(moves, hessian, 0, SUPERBLOCK)
            new_d = as_half(d + slope / curve)
            step = new_d - d
            saved = step * (_TWO * slope - step * curve)
            better = (saved > _ZERO) & (new_d > _ZERO)
            if any_lane(better):
                gain = gain + select(better, saved, _ZERO)
                step = select(better, step, _ZERO)
                d = select(better, new_d, d)
                for sub in range(n_scales):
                    level = load(levels, (block * n_scales + sub) * LANES, LANES)
                    scale = d * unit * float_of(2 * level + 1)
                    for i in range(size * sub, size * (sub + 1)):
                        put(r, i, at(w, i) - scale * at(v, i))
                        put(moves, i, step * at(moves, i))
                move_gradients(g, hessian, 0, SUPERBLOCK, moves)
        store(ds, block * LANES, d)
        store(gains, block * LANES, gain)


@inline
def move_gradients(g: Any, hessian: Any, first: Any, count: Any, moves: Any) -> None:
    """Take moves of `count` weights, a multiple of four, from weight `first` on, off the gradients."""
    for k in range(0, count, 4):
        move0, move1 = at(moves, k), at(moves, k + 1)
        move2, move3 = at(moves, k + 2), at(moves, k + 3)
        row = SUPERBLOCK * (first + k)
        for i in range(SUPERBLOCK):
            change = move0 * hessian[row + i]
            change = change + move1 * hessian[row + SUPERBLOCK + i]
            change = change + move2 * hessian[row + 2 * SUPERBLOCK + i]
            change = change + move3 * hessian[row + 3 * SUPERBLOCK + i]
            put(g, i, at(g, i) - change)


@inline
def slope_of(v: Any, g: Any, first: Any, count: Any) -> Any:
    slope = splat(_ZERO, LANES)
    for i in range(first, first + count):
        slope = slope + at(v, i) * at(g, i)
    return slope


@inline
def curve_of(v: Any, hessian: Any, first: Any, count: Any) -> Any:
    """V H v of `count` weights, a multiple of four."""
    curve = splat(_ZERO, LANES)
    for i in range(first, first + count, 4):
        row = SUPERBLOCK * i
        sum0 = splat(_ZERO, LANES)
        sum1 = sum0
        sum2 = sum0
        sum3 = sum0
        for k in range(first, first + count):
            value = at(v, k)
            sum0 = sum0 + value * hessian[row + k]
            sum1 = sum1 + value * hessian[row + SUPERBLOCK + k]
            sum2 = sum2 + value * hessian[row + 2 * SUPERBLOCK + k]
            sum3 = sum3 + value * hessian[row + 3 * SUPERBLOCK + k]
        curve = curve + at(v, i) * sum0
        curve = curve + at(v, i + 1) * sum1
        curve = curve + at(v, i + 2) * sum2
        curve = curve + at(v, i + 3) * sum3
    return curve
