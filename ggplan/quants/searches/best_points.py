"""The best points of a grid for given scales: an exact search of all of iq3_*, iq2_* and iq1_*'s.

A group's error is the sum of what its two halves cost, and of half a group there are few:

    four weights of 3 levels      81 halves      two weights of 8 levels      64 halves

So the errors of all halves are added up first, in as many lanes as there are sub-blocks side by side. Then
each point takes one comparison, since points with the same upper half share the addition (`half_minima`).
Which point it was is asked only where one is chosen, of the few with the upper half that has the least error.

Besides its error each half has another one, and each group another best point:

    FREE       signs are free: there is none
    EVEN       the number of negative weights in eight must be even, and is odd: the error with the cheapest
               sign changed. The best group takes one half as it is, and the other error of the other. Eights
               in which it is even are searched as if signs were free (`best_trials`).
    SHIFTED    weights are scale (level + shift): the error with the shift down, an eighth less, not up
"""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.formats.grids import grid
from ggplan.quants.kernels import inline
from ggplan.quants.memory import floats_at, integers_at, load, store
from ggplan.quants.searches.best_memory import Memory
from ggplan.quants.searches.half_minima import least_of
from ggplan.quants.searches.neighbours import grid_neighbours
from ggplan.quants.searches.superblock import SUPERBLOCK, TILE
from ggplan.quants.vector import WIDTH, absolute, minimum, select, splat

FREE, EVEN, SHIFTED = range(3)

_ZERO = np.float32(0)
_FOUR = np.float32(4)
_EIGHTH = np.float32(0.125)
_INFINITY = np.float32(np.inf)


class Points(NamedTuple):
    """The points of a grid, ordered by their upper halves.

    A half's number has its first weight's level as its lowest digit.

    Attributes
    ----------
    values
        float32 (levels,): what the levels stand for.
    starts
        int32 (halves + 1,): the first point with each upper half, and the number of points.
    lower
        int32 (points,): the lower half, times `WIDTH`.
    keys
        int32 (points,): all levels, two bits each for eight weights, three bits for four.
    index_of
        int32: the index of each key of a point.
    """

    values: Any
    starts: Any
    lower: Any
    keys: Any
    index_of: Any


@cache
def points_of(name: str) -> Points:
    """The points of a grid, by its name in `formats.grids`."""
    known = grid_neighbours(name)
    values = np.unique(grid(name))
    size = known.points.shape[1]
    digits = len(values) ** np.arange(size // 2)
    lower, upper = known.points[:, : size // 2] @ digits, known.points[:, size // 2 :] @ digits
    order = upper.argsort(kind="stable")
    starts = upper[order].searchsorted(np.arange(len(values) ** (size // 2) + 1))
    return Points(
        values.astype(np.float32),
        starts.astype(np.int32),
        (WIDTH * lower[order]).astype(np.int32),
        known.keys[order],
        known.index_of,
    )


def lower_halves(name: str) -> list[list[int]]:
    """The lower halves that go with each upper half of a grid."""
    points = points_of(name)
    lower = (points.lower // WIDTH).tolist()
    return [lower[start:end] for start, end in pairwise(points.starts.tolist())]


@inline
def find_odd(memory: Any) -> None:
    """Fill `memory.flips`."""
    for at in range(0, SUPERBLOCK // 8 * TILE, WIDTH):
        odd = splat(_ZERO, WIDTH)
        for i in range(8):
            odd = select(load(memory.weights, 8 * at + WIDTH * i, WIDTH) < _ZERO, _FOUR - odd, odd)
        store(memory.flips, at, odd)


class PointSteps(NamedTuple):
    """What `point_steps` makes.

    Attributes
    ----------
    search_points
        (points, rules, memory, at, scale, choosing, choice): the least error with given scales, of sub-blocks
        for `SHIFTED`, else of eight weights; where `choosing` is true, choose its points, and signs or
        shifts.
    error_of_levels
        (points, rules, memory, at, scale): the error of sub-blocks with shifts, were all levels of eight
        weights free.
    sums_of_points
        (points, rules, memory, at, scale, choice): of chosen points the error, the sum of
        weight * residue * q and that of weight * q * q.
    """

    search_points: Any
    error_of_levels: Any
    sums_of_points: Any


def point_steps(name: str, group: int, kind: int) -> PointSteps:
    """The steps for a grid, by its name in `formats.grids`, whose groups have so many weights.

    They are constants here, so Numba drops dead branches first.
    """
    is_even, is_shifted, has_other = kind == EVEN, kind == SHIFTED, kind != FREE
    of_eight = group == 8
    only_other = is_even and of_eight  # then all that counts are errors that may have a sign changed
    n_groups, group_width = 8 // group, WIDTH * group
    # The levels of a weight, their bits in a key, and of how many numbers are a part and a half of a group.
    n_levels, bits, n = (3, 2, 9) if of_eight else (8, 3, 8)
    n_halves = n * n
    half_width = WIDTH * n_halves
    others = half_width
    least_of_points = least_of(partial(lower_halves, name), n, has_other, only_other)

    @inline
    def search_points(
        points: Any, rules: Any, memory: Any, at: Any, scale: Any, choosing: Any, choice: Any
    ) -> Any:
        total = splat(_ZERO, WIDTH)
        total_other = total
        balance = total
        size = rules.size if is_shifted else 8
        start, end = size * at, size * (at + WIDTH)
        for eight in range(start, end, 8 * WIDTH):
            first = eight // group
            for g in range(n_groups):
                part = part_of(memory, g)
                add_up(points, part, eight, eight + group_width * g, scale)
                if is_shifted:
                    find_minima(points, part)
                    least_of_group(part)
                else:
                    upper = integers_at(part.least, 2 * WIDTH)
                    least_of_points(part.halves, part.parts, part.other_parts, part.least, upper)
            least = load(memory.least, 0, WIDTH)
            if has_other:
                other = load(memory.least, WIDTH, WIDTH)
            if is_even and not of_eight:
                in_second = least + load(memory.least, 5 * WIDTH, WIDTH)
                in_first = other + load(memory.least, 4 * WIDTH, WIDTH)
                other = minimum(in_second, in_first)
            if is_shifted:
                balance = balance + (other - least)
            if choosing:
                if is_even and not of_eight:
                    store(choice.other_keys, first, select(in_first < in_second, splat(1, WIDTH), 0))
                choose_points(points, memory, first, choice)
                if is_shifted and not rules.together:
                    take_shift(choice, first, other < least)
                if not is_shifted:
                    take_signs(points, memory, eight, choice)
            if is_shifted and not rules.together:
                least = minimum(least, other)
                other = least
            if not has_other and not of_eight:
                least = least + load(memory.least, 4 * WIDTH, WIDTH)
            if not is_even:
                total = total + least
            if has_other:
                total_other = total_other + other
        if is_shifted and choosing and rules.together:
            for first in range(start // group, end // group, WIDTH):
                take_shift(choice, first, balance < _ZERO)
        if is_even:
            total = total_other
        if is_shifted:
            total = minimum(total, total_other)
        return total

    @inline
    def error_of_levels(points: Any, rules: Any, memory: Any, at: Any, scale: Any) -> Any:
        total = splat(_ZERO, WIDTH)
        total_other = total
        for eight in range(rules.size * at, rules.size * (at + WIDTH), 8 * WIDTH):
            sum_up = splat(_ZERO, WIDTH)
            sum_down = sum_up
            for i in range(eight, eight + 8 * WIDTH, WIDTH):
                up, down = error_of(points, memory, i, 0, scale, scale)
                for level in range(1, n_levels):
                    next_up, next_down = error_of(points, memory, i, level, scale, scale)
                    up = minimum(next_up, up)
                    down = minimum(next_down, down)
                sum_up = sum_up + up
                sum_down = sum_down + down
            if not rules.together:
                sum_up = minimum(sum_up, sum_down)
                sum_down = sum_up
            total = total + sum_up
            total_other = total_other + sum_down
        return minimum(total, total_other)

    @inline
    def sums_of_points(points: Any, rules: Any, memory: Any, at: Any, scale: Any, choice: Any) -> Any:
        error = splat(_ZERO, WIDTH)
        sum_rq = splat(_ZERO, WIDTH)
        sum_q2 = splat(_ZERO, WIDTH)
        for eight in range(rules.size * at, rules.size * (at + WIDTH), 8 * WIDTH):
            marks = load(choice.marks, eight // 8, WIDTH)
            for k in range(8):
                x = load(memory.weights, eight + WIDTH * k, WIDTH)
                w = load(memory.errors, eight + WIDTH * k, WIDTH)
                q = value_of(points, choice, eight, k)
                if is_shifted:
                    q = q + select(marks != 0, -_EIGHTH, splat(_EIGHTH, WIDTH))
                else:
                    q = select((marks >> k) & 1 != 0, -q, q)
                residue = x - scale * q
                wr = w * residue
                error = error + wr * residue
                sum_rq = sum_rq + wr * q
                sum_q2 = sum_q2 + w * q * q
        return error, sum_rq, sum_q2

    @inline
    def value_of(points: Any, choice: Any, eight: Any, k: Any) -> Any:
        """The value of weight k of eight, with the points chosen."""
        key = load(choice.keys, eight // group + WIDTH * (k // group), WIDTH)
        level = (key >> (bits * (k % group))) & ((1 << bits) - 1)
        value = splat(points.values[0], WIDTH)
        for other in range(1, n_levels):
            value = select(level == other, points.values[other], value)
        return value

    @inline
    def take_signs(points: Any, memory: Any, eight: Any, choice: Any) -> None:
        """Let eight weights have their own signs, but for the cheapest where that must be changed."""
        signs = splat(0, WIDTH)
        least = splat(_INFINITY, WIDTH)
        cheapest = splat(1, WIDTH)
        for k in range(8):
            x = load(memory.weights, eight + WIDTH * k, WIDTH)
            bit = splat(1 << k, WIDTH)
            signs = signs | select(x < _ZERO, bit, 0)
            if is_even:
                cost = load(memory.errors, eight + WIDTH * k, WIDTH) * absolute(x)
                cost = cost * value_of(points, choice, eight, k)
                less = cost < least
                least = select(less, cost, least)
                cheapest = select(less, bit, cheapest)
        if is_even:
            signs = signs ^ select(load(memory.flips, eight // 8, WIDTH) > _ZERO, cheapest, 0)
        store(choice.marks, eight // 8, signs)

    @inline
    def part_of(memory: Any, g: Any) -> Any:
        """The memory with the room of group g of eight weights."""
        return Memory(
            memory.weights,
            memory.errors,
            memory.columns,
            memory.flips,
            floats_at(memory.parts, 2 * WIDTH * n * g),
            floats_at(memory.other_parts, 2 * WIDTH * n * g),
            floats_at(memory.halves, 2 * half_width * g),
            memory.minima,
            floats_at(memory.least, 4 * WIDTH * g),
        )

    @inline
    def add_up(points: Any, memory: Any, eight: Any, at: Any, scale: Any) -> None:
        """Find the errors of the lower halves of the group at `at`, one of the eight weights at `eight`, and
        those of the upper half's parts.
        """
        flips = scale
        if is_even:
            flips = load(memory.flips, eight // 8, WIDTH)
        for half in range(2):
            to = 0
            for part in range(2):
                if of_eight:
                    i = at + WIDTH * (4 * half + 2 * part)
                    for b in range(n_levels):
                        upper, upper_other = error_of(points, memory, i + WIDTH, b, scale, flips)
                        for a in range(n_levels):
                            lower, lower_other = error_of(points, memory, i, a, scale, flips)
                            store(memory.parts, to, lower + upper)
                            if is_even:
                                store(memory.other_parts, to, minimum(lower_other, upper_other))
                            if is_shifted:
                                store(memory.other_parts, to, lower_other + upper_other)
                            to = to + WIDTH
                else:
                    i = at + WIDTH * (2 * half + part)
                    for a in range(n_levels):
                        error, other = error_of(points, memory, i, a, scale, flips)
                        store(memory.parts, to, error)
                        if is_even:
                            store(memory.other_parts, to, other)
                        to = to + WIDTH
            if half == 0:
                for b in range(n):
                    for a in range(n):
                        error, other = error_of_half(memory, WIDTH * a, WIDTH * (n + b))
                        store(memory.halves, WIDTH * (n * b + a), error)
                        if has_other:
                            store(memory.halves, others + WIDTH * (n * b + a), other)

    @inline
    def error_of_half(memory: Any, one: Any, two: Any) -> Any:
        """The error of a half with these parts, and the other one."""
        error = load(memory.parts, one, WIDTH) + load(memory.parts, two, WIDTH)
        other = error
        if has_other:
            other = load(memory.other_parts, one, WIDTH)
        if is_even:
            other = error + minimum(other, load(memory.other_parts, two, WIDTH))
        if is_shifted:
            other = other + load(memory.other_parts, two, WIDTH)
        return error, other

    @inline
    def error_of(points: Any, memory: Any, at: Any, level: Any, scale: Any, flips: Any) -> Any:
        """The error of weights at a level; then what changing the sign adds, or that with the other shift."""
        x = load(memory.weights, at, WIDTH)
        w = load(memory.errors, at, WIDTH)
        if is_shifted:
            residue = x - scale * (points.values[level] + _EIGHTH)
            other_residue = x - scale * (points.values[level] - _EIGHTH)
            return w * residue * residue, w * other_residue * other_residue
        x = absolute(x)
        y = scale * points.values[level]
        residue = x - y
        if is_even:
            flips = flips * w * x * y
        return w * residue * residue, flips

    @inline
    def find_minima(points: Any, memory: Any) -> None:
        """Find the least errors, and others, of the lower halves that go with each upper half."""
        for b in range(n_halves):
            lower = splat(_INFINITY, WIDTH)
            lower_other = lower
            for k in range(points.starts[b], points.starts[b + 1]):
                at = points.lower[k]
                lower = minimum(lower, load(memory.halves, at, WIDTH))
                lower_other = minimum(lower_other, load(memory.halves, others + at, WIDTH))
            store(memory.minima, WIDTH * b, lower)
            store(memory.minima, others + WIDTH * b, lower_other)

    @inline
    def least_of_group(memory: Any) -> None:
        """Find the least error of the group, and that with the other shift; and the upper half that has it,
        the first of several.
        """
        least = splat(_INFINITY, WIDTH)
        least_other = least
        half = splat(-1, WIDTH)
        other_half = half
        for high in range(n):
            for low in range(n):
                b = n * high + low
                upper, upper_other = error_of_half(memory, WIDTH * low, WIDTH * (n + high))
                error = upper + load(memory.minima, WIDTH * b, WIDTH)
                half = select(error < least, b, half)
                least = minimum(error, least)
                error = upper_other + load(memory.minima, others + WIDTH * b, WIDTH)
                other_half = select(error < least_other, b, other_half)
                least_other = minimum(error, least_other)
        store(memory.least, 0, least)
        store(integers_at(memory.least, 2 * WIDTH), 0, half)
        store(memory.least, WIDTH, least_other)
        store(integers_at(memory.least, 3 * WIDTH), 0, other_half)

    @inline
    def choose_points(points: Any, memory: Any, first: Any, choice: Any) -> None:
        """Choose the points of eight weights' groups."""
        for g in range(n_groups):
            part = part_of(memory, g)
            for r in range(WIDTH):
                at = first + WIDTH * g + r
                if is_even and of_eight:
                    choice.keys[at] = key_of(points, part, r, True)
                elif is_even:
                    # One of both has a sign changed, the first where that was noted for it.
                    choice.keys[at] = key_of(points, part, r, choice.other_keys[first + r] != g)
                else:
                    choice.keys[at] = key_of(points, part, r, False)
                    if is_shifted:
                        choice.other_keys[at] = key_of(points, part, r, True)

    @inline
    def key_of(points: Any, memory: Any, r: Any, changed: Any) -> Any:
        """The point in a lane that has the least error found, the first of several; or the least other."""
        run = WIDTH if changed else 0
        least = memory.least[run + r]
        b = integers_at(memory.least, 2 * WIDTH)[run + r]
        if b >= 0:
            one, two = WIDTH * (b % n) + r, WIDTH * (n + b // n) + r
            upper = memory.parts[one] + memory.parts[two]
            upper_other = upper
            if is_even:
                upper_other = upper + min(memory.other_parts[one], memory.other_parts[two])
            if is_shifted:
                upper_other = memory.other_parts[one] + memory.other_parts[two]
            for k in range(points.starts[b], points.starts[b + 1]):
                at = points.lower[k] + r
                error = upper + memory.halves[at]
                if has_other and changed:
                    error = upper_other + memory.halves[others + at]
                    if is_even:
                        error = min(upper_other + memory.halves[at], upper + memory.halves[others + at])
                if error == least:
                    return points.keys[k]
        return points.keys[0]

    return PointSteps(search_points, error_of_levels, sums_of_points)


@inline
def take_shift(choice: Any, place: Any, down: Any) -> None:
    """Let the shift be down in some lanes."""
    key = load(choice.keys, place, WIDTH)
    store(choice.keys, place, select(down, load(choice.other_keys, place, WIDTH), key))
    store(choice.marks, place, select(down, splat(1, WIDTH), 0))
