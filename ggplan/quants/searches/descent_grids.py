"""Error feedback and descent for iq2_* and iq3_* under a Hessian: points, signs, scales and d of whole rows.

What is made small for each row w, as in `searches.feedback`, is

    (w - y) H (w - y)^T        y what a reader will find, y = d (2 s + 1) unit (sign point)

Groups of eight weights, s and d move one after the other to where that is least: with g = (w - y) H, to move
y by a step c along v lowers it by c (2 g.v - c v.Hv). Weights are not rounded one by one: a group takes the
best of all points, with everything else as it is (`descent_points`).

Feedback. Superblocks are found from left to right, each so that what it leaves can be made good by those
after it. With H = U D U^T and r = w - y, what superblock s adds to the error after those before it, were all
weights after it free, is

    (p + r_s U_ss) D_s (p + r_s U_ss)^T        p = sum over t < s of r_t U_ts

First its groups are chosen from left to right in the same way, with the scales of the blocks that best
efforts found (`feedback_points`), then it descends under U_ss D_s U_ss^T. Afterwards superblocks descend
under H, of wide rows the first quarter. Narrow rows go through all that twice more with the scales they then
have, and keep what is better.

Error on inputs of a text that was not used, best's blocks being 1, of six matrices of 256 to 512 columns:

    iq3_xxs   iq2_xs
      0.542    0.557    points by feedback, once
      0.485    0.489    descent of superblocks and rows
      0.462    0.466    both
      0.452    0.454    both, twice
      0.450    0.450    three times; four times the same to a thousandth

Rows lie in tiles of sixteen (`row_tiles`), by superblock: float32 (superblocks, tiles, 256, 16). The slopes g
of a superblock are summed up anew when it is its turn, by one product with 256 columns of H; what moves in it
meanwhile is added where it is asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.formats.fields import F32Array, Grid
from ggplan.quants.kernels import F32, I64, F32s, I32s, inline, kernel, scratch
from ggplan.quants.memory import floats_at, load, store
from ggplan.quants.searches.best import as_half
from ggplan.quants.searches.descent_fields import State, by_superblock, read_fields, write_fields
from ggplan.quants.searches.descent_points import (
    EIGHT_ROOM,
    LANES,
    Table,
    at,
    eight_in,
    put,
    search_eight,
    table_of,
)
from ggplan.quants.searches.feedback import add_weighted_squares
from ggplan.quants.searches.feedback_points import choose_points, groups_of, inverses_of, own_parts
from ggplan.quants.searches.row_errors import Factored, are_less
from ggplan.quants.searches.row_tiles import (
    NARROW,
    add_four,
    add_products,
    add_triangle,
    first_quarter,
)
from ggplan.quants.searches.superblock import SUPERBLOCK
from ggplan.quants.vector import any_lane, float_of, integer_of, maximum, minimum, rounded, select, splat

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_HALF = np.float32(0.5)
_HIGHEST = 15  # s
_SWEEPS = 3
"""How often descent alone goes over whole rows."""
_MORE_ROUNDS = 2
"""How often narrow rows go through feedback and descent again."""
_FEEDBACK_TURNS, _NARROW_TURNS = 1, 3
"""How often a superblock is gone over before the next. Of 2048 columns two more leave 0.3 % less error.

Of wide rows only the first quarter descends in the end. Error on other inputs, in parts of best's, iq3_xxs at
2048 columns: 0.422 without that, 0.400 over a quarter of them, 0.391 over half and 0.385 over all, each of
which takes a tenth longer."""


class Rules(NamedTuple):
    """How weights of a type are made, as kernels take it.

    Attributes
    ----------
    group
        Weights of a point, 8 or 4.
    is_even
        1 where an even number of eight weights is negative, else 0.
    size
        Weights of a sub-block, 32 or 16.
    unit
        What d (2 s + 1) is multiplied by.
    """

    group: int
    is_even: int
    size: int
    unit: float


def improve(
    name: str,
    rules: Rules,
    rows: F32Array,
    found: Grid,
    factored: Factored,
    method: str,
) -> NDArray[np.bool_]:
    """Make fields have less error under a Hessian.

    Parameters
    ----------
    name
        Of the grid.
    rows
        float32 (m, n), n a multiple of 256.
    found
        The fields (m n / 256) that best efforts found; those of rows that got better are replaced.
    method
        "feedback", "gptq" for feedback alone, or "descent" for descent alone, from the blocks given.

    Returns
    -------
    Which rows (m,) got better.
    """
    m, n = rows.shape
    weights = by_superblock(rows)
    state = read_fields(name, rules, found, weights, m)
    if method == "descent":
        gains = _sweep(name, rules, weights, state, factored, range(len(weights)), _SWEEPS, 1)
        chosen = (gains > _ZERO).reshape(-1)[:m]
    else:
        best = state.residues.copy()
        errors = _feed_back(name, rules, weights, state, factored, method)
        for _ in range(_MORE_ROUNDS if method == "feedback" and n <= NARROW else 0):
            other = State(state.values.copy(), state.residues.copy(), state.ds.copy(), state.levels.copy())
            other_errors = _feed_back(name, rules, weights, other, factored, method)
            better = other_errors < errors
            for taken, given in zip(state, other, strict=True):
                np.copyto(taken, given, where=better[:, np.newaxis] if taken.ndim == 4 else better)
            errors = np.where(better, other_errors, errors)
        chosen = are_less(errors, list(best), factored).reshape(-1)[:m]
    write_fields(name, state, found, chosen)
    return chosen


def _feed_back(
    name: str, rules: Rules, weights: F32Array, state: State, factored: Factored, method: str
) -> F32Array:
    """Find all superblocks from left to right, then descend; returns the errors (tiles, 16)."""
    n_superblocks, count = weights.shape[:2]
    n = n_superblocks * SUPERBLOCK
    errors = np.zeros((count, LANES), np.float32)
    is_narrow = n <= NARROW
    turns = 0
    if method == "feedback":
        turns = _NARROW_TURNS if is_narrow else _FEEDBACK_TURNS
    groups = groups_of(factored.squares, factored.pivots)
    inverses = _inverses(factored.remainders)
    turned = np.empty(weights.shape[1:], np.float32)
    for s in range(n_superblocks):
        start = s * SUPERBLOCK
        pivots = factored.pivots[start : start + SUPERBLOCK]
        upper = _square(factored.squares, start)
        before = _product(state.residues, factored.factor, s, range(s))
        choose_points(
            name, rules, before, upper, pivots, groups[s],
            state.values[s], state.residues[s], state.ds[s], state.levels[s], turned,
        )  # fmt: skip
        if turns:
            square = _square(factored.remainders, start)
            lower = _square(factored.factor, n * s + start)
            slopes = np.zeros_like(before)
            if is_narrow:  # the same but for rounding, which would change the bytes
                add_triangle(slopes, before * pivots[:, np.newaxis], lower, SUPERBLOCK, is_lower=True)
                _add(slopes, state.residues[s], square)
            else:
                add_triangle(slopes, turned, lower, SUPERBLOCK, is_lower=True)
            gains = np.zeros_like(errors)
            _descend_in(name, rules, weights, state, s, slopes, square, inverses[s], gains, turns)
        add_triangle(before, state.residues[s], upper, SUPERBLOCK)
        add_weighted_squares(before, pivots, count, SUPERBLOCK, SUPERBLOCK, errors)
    if turns:
        again = range((n if is_narrow else first_quarter(n)) // SUPERBLOCK)
        errors -= _sweep(name, rules, weights, state, factored, again, 1, 2 if is_narrow else 1)
    return errors


def _sweep(
    name: str, rules: Rules, weights: F32Array, state: State, factored: Factored, superblocks: range,
    sweeps: int, turns: int,
) -> F32Array:  # fmt: skip
    """Descend over the first superblocks, some times; returns by how much errors fall, (tiles, 16)."""
    n_superblocks, count = weights.shape[:2]
    gains = np.zeros((count, LANES), np.float32)
    squares = [_square(factored.hessian, SUPERBLOCK * s * (n_superblocks + 1)) for s in superblocks]
    inverses = _inverses(np.concatenate(squares))
    for _ in range(sweeps):
        for s in superblocks:
            slopes = _product(state.residues, factored.hessian, s, range(n_superblocks))
            _descend_in(name, rules, weights, state, s, slopes, squares[s], inverses[s], gains, turns)
    return gains


def _descend_in(
    name: str, rules: Rules, weights: F32Array, state: State, s: int, slopes: F32Array, square: F32Array,
    inverses: F32Array, gains: F32Array, turns: int,
) -> None:  # fmt: skip
    """Move what is in superblock s of all tiles, whose slopes are given; `gains` (tiles, 16) grow."""
    _descend(
        weights.shape[1], *rules, _HIGHEST, turns,
        weights[s], state.values[s], state.residues[s], slopes, square, inverses,
        state.ds[s], state.levels[s], *table_of(name), scratch(_ROOM), gains,
    )  # fmt: skip


# --- Tiles and squares -------------------------------------------------------------------------------


def _product(residues: F32Array, matrix: F32Array, s: int, superblocks: range) -> F32Array:
    """The product of some superblocks' residues and a packed matrix, in the columns of superblock s."""
    n = len(residues) * SUPERBLOCK
    out = np.zeros(residues.shape[1:], np.float32)
    for t in superblocks:
        _add(out, residues[t], matrix[SUPERBLOCK * (n * t + SUPERBLOCK * s) :])
    return out


def _add(out: F32Array, tiles: F32Array, square: F32Array) -> None:
    """Add to tiles (tiles, 256, 16) the product of others and a packed square."""
    add_products(out, tiles, square, SUPERBLOCK, (0, SUPERBLOCK))


def _square(packed: F32Array, place: int) -> F32Array:
    """The packed square that begins `place` runs of 256 numbers on."""
    return packed[SUPERBLOCK * place : SUPERBLOCK * (place + SUPERBLOCK)]


def _inverses(squares: F32Array) -> F32Array:
    """The inverse of each eight columns' own part of packed squares: float32 (superblocks, 32, 64)."""
    return inverses_of(own_parts(squares)).astype(np.float32).reshape(-1, SUPERBLOCK // 8, 64)


# --- Kernels -----------------------------------------------------------------------------------------

# Where the memory of a search has how residues of a superblock changed, a direction, what H makes of that,
# the slopes of a sub-block, its moves, and the rest; in numbers.
_ALL = SUPERBLOCK * LANES
_ALONG, _PULLS, _SLOPES = _ALL, 2 * _ALL, 3 * _ALL
_STEPS, _EIGHT = _SLOPES + 32 * LANES, _SLOPES + 40 * LANES
_ROOM = _EIGHT + EIGHT_ROOM


@kernel
def _descend(
    count: I64, group: I64, is_even: I64, size: I64, unit: F32, highest: I64, rounds: I64,
    weights: F32s, values: F32s, residues: F32s, given: F32s, hessian: F32s, inverses: F32s,
    ds: F32s, levels: I32s,
    point_values: F32s, starts: I32s, lower: I32s, keys: I32s, n_points: I64, is_dense: I64,
    room: F32s, gains: F32s,
) -> None:  # fmt: skip
    table = Table(point_values, starts, lower, keys, n_points, is_dense)
    along, pulls, slopes = floats_at(room, _ALONG), floats_at(room, _PULLS), floats_at(room, _SLOPES)
    steps = floats_at(room, _STEPS)
    changes = room
    eight = eight_in(floats_at(room, _EIGHT))
    n_scales = SUPERBLOCK // size
    for tile in range(count):
        begin = tile * SUPERBLOCK * LANES
        w, v, r = floats_at(weights, begin), floats_at(values, begin), floats_at(residues, begin)
        g = floats_at(given, begin)
        d = load(ds, tile * LANES, LANES)
        gain = load(gains, tile * LANES, LANES)
        for i in range(SUPERBLOCK):
            put(changes, i, splat(_ZERO, LANES))
        for turn in range(rounds):
            for sub in range(n_scales):
                start = size * sub
                changed = SUPERBLOCK if turn else start
                place = (tile * n_scales + sub) * LANES
                level = load(levels, place, LANES)
                scale = d * unit * float_of(2 * level + 1)
                for j in range(0, size, 4):
                    for i in range(j, j + 4):
                        put(slopes, i, at(g, start + i))
                    add_four(slopes, j * LANES, changes, 0, changed, hessian, SUPERBLOCK * (start + j))
                for j in range(0, size, 8):
                    first = start + j
                    for i in range(8):
                        put(eight.values, i, at(v, first + i))
                        put(eight.gradients, i, at(slopes, j + i))
                        for k in range(8):
                            column = first + k
                            from_ = (column // 4 * SUPERBLOCK + first + i) * 4 + column % 4
                            eight.hessian[8 * i + k] = hessian[from_]
                    cost = search_eight(table, group, is_even, eight, floats_at(inverses, 8 * first), scale)
                    better = cost < _ZERO
                    if any_lane(better):
                        gain = gain - select(better, cost, _ZERO)
                        for i in range(8):
                            put(v, first + i, select(better, at(eight.found, 8 + i), at(v, first + i)))
                            step = select(better, at(eight.found, i), _ZERO)
                            put(steps, i, -step)
                            put(changes, first + i, at(changes, first + i) - step)
                        for i in range(0, size, 4):
                            add_four(
                                slopes, i * LANES, steps, 0, 8, hessian, SUPERBLOCK * (start + i) + 4 * first
                            )
                # The scale.
                own = floats_at(v, start * LANES)
                pull(own, start, size, hessian, pulls)
                slope = product(own, slopes, size)
                curve = product(own, pulls, size)
                new = ((scale + slope / curve) / (d * unit) - _ONE) * _HALF
                new = select(new == new, new, _ZERO)
                new_level = integer_of(rounded(maximum(minimum(new, np.float32(highest)), _ZERO)))
                step = d * unit * float_of(2 * new_level + 1) - scale
                saved = step * (_TWO * slope - step * curve)
                better = saved > _ZERO
                if any_lane(better):
                    gain = gain + select(better, saved, _ZERO)
                    store(levels, place, select(better, new_level, level))
                    step = select(better, step, _ZERO)
                    for i in range(size):
                        put(changes, start + i, at(changes, start + i) - step * at(own, i))
        # d
        for sub in range(n_scales):
            part = unit * float_of(2 * load(levels, (tile * n_scales + sub) * LANES, LANES) + 1)
            for i in range(size * sub, size * (sub + 1)):
                put(along, i, part * at(v, i))
        pull(along, 0, SUPERBLOCK, hessian, pulls)
        slope = product(along, g, SUPERBLOCK) + product(changes, pulls, SUPERBLOCK)
        curve = product(along, pulls, SUPERBLOCK)
        new_d = as_half(d + slope / curve)
        step = new_d - d
        saved = step * (_TWO * slope - step * curve)
        better = (saved > _ZERO) & (new_d > _ZERO)
        if any_lane(better):
            gain = gain + select(better, saved, _ZERO)
            step = select(better, step, _ZERO)
            d = select(better, new_d, d)
            for i in range(SUPERBLOCK):
                put(changes, i, at(changes, i) - step * at(along, i))
        for i in range(SUPERBLOCK):
            put(r, i, at(w, i) - d * at(along, i))
        store(ds, tile * LANES, d)
        store(gains, tile * LANES, gain)


@inline
def pull(along: Any, first: Any, count: Any, hessian: Any, pulls: Any) -> None:
    """What H makes of a direction along `count` columns, from `first` on, in these columns."""
    for j in range(0, count, 4):
        for i in range(j, j + 4):
            put(pulls, i, splat(_ZERO, LANES))
        add_four(pulls, j * LANES, along, 0, count, hessian, SUPERBLOCK * (first + j) + 4 * first)


@inline
def product(a: Any, b: Any, count: Any) -> Any:
    """The sum of the products of `count` vectors."""
    total = splat(_ZERO, LANES)
    for i in range(count):
        total = total + at(a, i) * at(b, i)
    return total
