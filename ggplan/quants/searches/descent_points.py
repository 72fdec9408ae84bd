"""The best move of eight weights of iq2_* or iq3_* under a Hessian: an exact search of the grid.

A move delta of weights whose gradient is G = (W - Y) H changes the error (W - Y) H (W - Y)^T by

    cost = delta H delta - 2 G delta

With the signs of the weights given, each weight has few moves, one for a level. Their costs, alone and in
pairs, are added up first, in as many lanes as there are rows of weights side by side: then a point takes two
additions and a comparison.

    eight weights of 3 levels    halves of 81 numbers, the numbers of two pairs of weights
    four weights of 8 levels     halves of 64 numbers, the levels of two weights; one four after the other

Signs are those of the best real weights, Y + G H^-1 of the eight. Where the number of negative ones must be
even, the weight w that costs least otherwise, H w^2, changes its sign.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.kernels import inline
from ggplan.quants.memory import floats_at, load, store
from ggplan.quants.searches.best_points import points_of
from ggplan.quants.vector import WIDTH, select, splat

LANES = 16
_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_INFINITY = np.float32(np.inf)


_DENSE = 10
"""Points for each upper half from which on it is worth it to add up what all numbers of parts add."""


class Table(NamedTuple):
    """The points of a grid, as `best_points.Points` has them.

    Attributes
    ----------
    values, starts, keys
        The same.
    lower
        int32 (7 or 5, points), all times `LANES`: the lower half's number, those of its two parts, and of
        each of its weights the place of its level among the moves.
    n
        How many points there are.
    is_dense
        1 where each upper half has so many points that all that can be added to them is best added up first.
    """

    values: Any
    starts: Any
    lower: Any
    keys: Any
    n: Any
    is_dense: Any


@cache
def table_of(name: str) -> Table:
    """The points of a grid, by its name in `formats.grids`."""
    points = points_of(name)
    n_levels = len(points.values)
    n, n_weights = (9, 4) if n_levels == 3 else (8, 2)
    halves = points.lower // WIDTH
    levels = [n_levels * k + halves // n_levels**k % n_levels for k in range(n_weights)]
    lower = LANES * np.stack((halves, halves % n, n + halves // n, *levels)).astype(np.int32)
    count = len(points.keys)
    return Table(points.values, points.starts, lower, points.keys, count, int(count > _DENSE * n * n))


class Eight(NamedTuple):
    """What a search works on, float32 [16 number + lane].

    Attributes
    ----------
    values, gradients
        Of the eight weights: what they are in units of the scale, and the gradient.
    hessian
        (8, 8): of these weights, one number each.
    signs
        The scale with the sign of each weight.
    moves, costs
        [n_levels weight + level]: what a level moves the weight by, and what that costs alone.
    lower, upper
        The costs of halves.
    pairs
        What both parts of a lower half add to the cost of a point, one of them with the upper half's own; and
        room for the costs that halves are made up of.
    found
        The best moves of the eight weights, then what the weights become in units of the scale.
    """

    values: Any
    gradients: Any
    hessian: Any
    signs: Any
    moves: Any
    costs: Any
    lower: Any
    upper: Any
    pairs: Any
    found: Any


_SIZES = (8, 8, 4, 8, 64, 64, 81, 81, 120, 16)  # in vectors
_PLACES = tuple(LANES * sum(_SIZES[:n]) for n in range(len(_SIZES)))
EIGHT_ROOM = LANES * sum(_SIZES)


@inline
def eight_in(room: Any) -> Any:
    """Part memory of `EIGHT_ROOM` numbers."""
    return Eight(
        room,
        floats_at(room, _PLACES[1]),
        floats_at(room, _PLACES[2]),
        floats_at(room, _PLACES[3]),
        floats_at(room, _PLACES[4]),
        floats_at(room, _PLACES[5]),
        floats_at(room, _PLACES[6]),
        floats_at(room, _PLACES[7]),
        floats_at(room, _PLACES[8]),
        floats_at(room, _PLACES[9]),
    )


@inline
def at(memory: Any, number: Any) -> Any:
    """A vector of memory, by its number."""
    return load(memory, number * LANES, LANES)


@inline
def put(memory: Any, number: Any, value: Any) -> None:
    """Write it."""
    store(memory, number * LANES, value)


@inline
def search_eight(table: Any, group: Any, is_even: Any, eight: Any, inverse: Any, scale: Any) -> Any:
    """Find the best points of `group` weights each, for eight weights.

    `inverse` (8, 8) is that of their Hessian; `is_even` tells that an even number of signs must be negative.
    Returns the cost of the best move found, which is at `eight.found`; where that is zero or more, none is.
    """
    take_signs(eight, is_even, inverse, scale)
    n_levels = 3 if group == 8 else 8
    find_moves(table, n_levels, eight, scale)
    if group == 8:
        add_up_eight(eight)
        find_points(table, group, eight, 0)
    else:
        # The other four's gradient counts the first's move. At first the second only changes signs.
        for i in range(8):
            put(eight.found, i, splat(_ZERO, LANES))
        for i in range(4, 8):
            value = scale * at(eight.values, i)
            magnitude = select(value < _ZERO, -value, value)
            signed = select(at(eight.signs, i) < _ZERO, -magnitude, magnitude)
            put(eight.found, i, signed - value)
        for four in range(2):
            add_up_four(eight, 4 * four)
            find_points(table, group, eight, 4 * four)
    return cost_of_found(eight)


@inline
def take_signs(eight: Any, is_even: Any, inverse: Any, scale: Any) -> None:
    """Choose signs: the scale with the sign of each weight."""
    odd = scale < -_INFINITY  # in no lane
    cheapest = splat(_ZERO, LANES)
    least = splat(_INFINITY, LANES)
    for k in range(8):
        x = scale * at(eight.values, k)
        for i in range(8):
            x = x + at(eight.gradients, i) * inverse[8 * k + i]
        negative = x < _ZERO
        put(eight.signs, k, select(negative, -scale, scale))
        if is_even:
            odd = odd ^ negative
            cost = x * x * eight.hessian[9 * k]
            less = cost < least
            least = select(less, cost, least)
            cheapest = select(less, np.float32(k), cheapest)
    if is_even:
        for k in range(8):
            signed = at(eight.signs, k)
            put(eight.signs, k, select(odd & (cheapest == np.float32(k)), -signed, signed))


@inline
def find_moves(table: Any, n_levels: Any, eight: Any, scale: Any) -> None:
    """Find what each level moves each weight by, and what that costs alone."""
    for k in range(8):
        signed = at(eight.signs, k)
        now = scale * at(eight.values, k)
        gradient = at(eight.gradients, k) * _TWO
        for level in range(n_levels):
            move = signed * table.values[level] - now
            put(eight.moves, n_levels * k + level, move)
            put(eight.costs, n_levels * k + level, move * (move * eight.hessian[9 * k] - gradient))


@inline
def add_up_eight(eight: Any) -> None:
    """Add up the costs of the halves of eight weights."""
    # Of `pairs`, the first 36 are costs of pairs of weights, nine each; then come those between two pairs.
    for pair in range(4):
        cross = _TWO * eight.hessian[18 * pair + 1]
        for b in range(3):
            upper = at(eight.moves, 6 * pair + 3 + b) * cross
            cost = at(eight.costs, 6 * pair + 3 + b)
            for a in range(3):
                alone = at(eight.costs, 6 * pair + a) + cost
                put(eight.pairs, 9 * pair + 3 * b + a, alone + at(eight.moves, 6 * pair + a) * upper)
    for half in range(2):
        for b in range(9):
            add_to_pair(eight, 4 * half, 4 * half + 2, b)
            cost = at(eight.pairs, 18 * half + 9 + b)
            for a in range(9):
                error = at(eight.pairs, 18 * half + a) + (cost + at(eight.pairs, 36 + a))
                if half:
                    put(eight.upper, 9 * b + a, error)
                else:
                    put(eight.lower, 9 * b + a, error)
    # What a pair of the upper half adds to the gradients of the lower one: four numbers.
    for pair in range(2):
        for b in range(9):
            for k in range(4):
                one = at(eight.moves, 12 + 6 * pair + b % 3) * eight.hessian[8 * k + 4 + 2 * pair]
                two = at(eight.moves, 15 + 6 * pair + b // 3) * eight.hessian[8 * k + 5 + 2 * pair]
                put(eight.pairs, 48 + 36 * pair + 4 * b + k, _TWO * (one + two))


@inline
def add_to_pair(eight: Any, first: Any, other: Any, b: Any) -> None:
    """What two weights from `other` on add to the costs of two from `first` on, by nine moves each."""
    one, two = at(eight.moves, 3 * other + b % 3), at(eight.moves, 3 * other + 3 + b // 3)
    lower = one * eight.hessian[8 * first + other] + two * eight.hessian[8 * first + other + 1]
    upper = one * eight.hessian[8 * first + 8 + other] + two * eight.hessian[8 * first + 9 + other]
    put_pair(eight, first, splat(_ZERO, LANES), lower * _TWO, upper * _TWO, 36)


@inline
def put_pair(eight: Any, first: Any, cost: Any, lower: Any, upper: Any, to: Any) -> None:
    """Put a cost and what nine moves of two weights from `first` on add to it, given their slopes."""
    low0 = cost + at(eight.moves, 3 * first) * lower
    low1 = cost + at(eight.moves, 3 * first + 1) * lower
    low2 = cost + at(eight.moves, 3 * first + 2) * lower
    for b in range(3):
        high = at(eight.moves, 3 * first + 3 + b) * upper
        put(eight.pairs, to + 3 * b, low0 + high)
        put(eight.pairs, to + 3 * b + 1, low1 + high)
        put(eight.pairs, to + 3 * b + 2, low2 + high)


@inline
def add_up_four(eight: Any, first: Any) -> None:
    """Add up the costs of the halves of four weights, given the moves found for the other four."""
    other = 4 - first
    for half in range(2):
        for part in range(2):
            k = first + 2 * half + part
            moved = splat(_ZERO, LANES)
            for i in range(4):
                moved = moved + at(eight.found, other + i) * eight.hessian[8 * k + other + i]
            for level in range(8):
                cost = at(eight.costs, 8 * k + level) + at(eight.moves, 8 * k + level) * (_TWO * moved)
                put(eight.pairs, 64 + 8 * part + level, cost)
        k = first + 2 * half
        cross = _TWO * eight.hessian[9 * k + 1]
        for b in range(8):
            upper = at(eight.moves, 8 * k + 8 + b) * cross
            cost = at(eight.pairs, 72 + b)
            for a in range(8):
                error = at(eight.pairs, 64 + a) + (cost + at(eight.moves, 8 * k + a) * upper)
                if half:
                    put(eight.upper, 8 * b + a, error)
                else:
                    put(eight.lower, 8 * b + a, error)


@inline
def slopes_of_four(eight: Any, b: Any) -> Any:
    """What number `b` of the upper half adds to the gradients of the lower half's four weights, of eight."""
    low, high = 48 + 4 * (b % 9), 84 + 4 * (b // 9)
    g0 = at(eight.pairs, low) + at(eight.pairs, high)
    g1 = at(eight.pairs, low + 1) + at(eight.pairs, high + 1)
    g2 = at(eight.pairs, low + 2) + at(eight.pairs, high + 2)
    g3 = at(eight.pairs, low + 3) + at(eight.pairs, high + 3)
    return g0, g1, g2, g3


@inline
def slopes_of_two(eight: Any, first: Any, b: Any) -> Any:
    """The same for the lower half's two weights, of four from `first` on."""
    one, two = at(eight.moves, 8 * (first + 2) + b % 8), at(eight.moves, 8 * (first + 3) + b // 8)
    g0 = one * eight.hessian[9 * first + 2] + two * eight.hessian[9 * first + 3]
    g1 = one * eight.hessian[9 * first + 10] + two * eight.hessian[9 * first + 11]
    return g0 * _TWO, g1 * _TWO


@inline
def add_upper_half(group: Any, eight: Any, first: Any, b: Any) -> None:
    """What number `b` of the upper half adds to the costs of the lower half's two parts."""
    if group == 8:
        g0, g1, g2, g3 = slopes_of_four(eight, b)
        put_pair(eight, 0, at(eight.upper, b), g0, g1, 0)
        put_pair(eight, 2, splat(_ZERO, LANES), g2, g3, 9)
    else:
        g0, g1 = slopes_of_two(eight, first, b)
        cost = at(eight.upper, b)
        for level in range(8):
            put(eight.pairs, level, at(eight.moves, 8 * first + level) * g0 + cost)
            put(eight.pairs, 8 + level, at(eight.moves, 8 * first + 8 + level) * g1)


@inline
def find_points(table: Any, group: Any, eight: Any, first: Any) -> None:
    """Find the best point of `group` weights, the first of several."""
    least = splat(_INFINITY, LANES)
    key = splat(table.keys[0], LANES)
    n_levels, bits, n_halves = 8, 3, 64
    if group == 8:
        n_levels, bits, n_halves = 3, 2, 81
    moves = floats_at(eight.moves, n_levels * first * LANES)
    for b in range(n_halves):
        start, end = table.starts[b], table.starts[b + 1]
        if start < end and table.is_dense:
            add_upper_half(group, eight, first, b)
            for point in range(start, end):
                error = numbered(table, 1, eight.pairs, point) + numbered(table, 2, eight.pairs, point)
                error = numbered(table, 0, eight.lower, point) + error
                better = error < least
                least = select(better, error, least)
                key = select(better, table.keys[point], key)
        elif start < end and group == 8:
            cost = at(eight.upper, b)
            g0, g1, g2, g3 = slopes_of_four(eight, b)
            for point in range(start, end):
                one = cost + numbered(table, 3, moves, point) * g0 + numbered(table, 4, moves, point) * g1
                two = numbered(table, 5, moves, point) * g2 + numbered(table, 6, moves, point) * g3
                error = numbered(table, 0, eight.lower, point) + (one + two)
                better = error < least
                least = select(better, error, least)
                key = select(better, table.keys[point], key)
        elif start < end:
            cost = at(eight.upper, b)
            g0, g1 = slopes_of_two(eight, first, b)
            for point in range(start, end):
                one = numbered(table, 3, moves, point) * g0 + cost
                error = one + numbered(table, 4, moves, point) * g1
                error = numbered(table, 0, eight.lower, point) + error
                better = error < least
                least = select(better, error, least)
                key = select(better, table.keys[point], key)
    for k in range(group):
        level = (key >> (bits * k)) & ((1 << bits) - 1)
        move = at(eight.moves, n_levels * (first + k))
        value = splat(table.values[0], LANES)
        for other in range(1, n_levels):
            chosen = level == other
            move = select(chosen, at(eight.moves, n_levels * (first + k) + other), move)
            value = select(chosen, table.values[other], value)
        put(eight.found, first + k, move)
        put(eight.found, 8 + first + k, select(at(eight.signs, first + k) < _ZERO, -value, value))


@inline
def numbered(table: Any, row: Any, memory: Any, point: Any) -> Any:
    """The vector of memory whose number a row of `table.lower` has for a point."""
    return load(memory, table.lower[row * table.n + point], LANES)


@inline
def cost_of_found(eight: Any) -> Any:
    """The cost of the moves found."""
    total = splat(_ZERO, LANES)
    for k in range(8):
        row = splat(_ZERO, LANES)
        for i in range(8):
            row = row + at(eight.found, i) * eight.hessian[8 * k + i]
        total = total + at(eight.found, k) * (row - _TWO * at(eight.gradients, k))
    return total
