"""Rounding that looks at whole rows: error feedback, and descent on what it left.

What is made small for each row w, with the Hessian H of the inputs that it is multiplied with, is

    (w - y) H (w - y)^T        y what a reader will find

Weights are y = (d * scale) * level - dmin * min, of superblocks with sub-blocks (`Rules`); a type of one
scale a block has a scale of 1 and no sub-blocks in it.

Feedback (`round_superblock`), with H = U D U^T, U upper with a diagonal of ones. The columns are rounded from
the first to the last. What the errors before column j ask of it is

    t_j = w_j + sum over i < j of (w_i - y_i) U_ij

and y_j is the level nearest to t_j. That makes each D_j (t_j - y_j)^2 as small as it can be after the columns
before it; their sum is the error of the row. (GPTQ, Frantar et al. 2022, has the same codes by way of the
inverse of H.)

Descent (`descend`) then moves one number at a time to where the error is least, codes, scales, mins, d and
dmin, as long as it falls. With g = (w - y) H, to move y by a step c along v lowers it by c (2 g.v - c v.Hv).

Rows are independent and lie in tiles (`row_tiles`). A panel of columns is worked on while it is in the cache,
with the rows of H that belong to it; then g of all other columns gets what changed, in one product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.formats.levels import IQ4_LEVELS
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.kernels import F32, I64, F32s, inline, kernel
from ggplan.quants.memory import floats_at, load, store
from ggplan.quants.searches.row_tiles import TILE, add_four
from ggplan.quants.vector import any_lane, maximum, minimum, rounded, select, splat

_THRESHOLDS = (IQ4_LEVELS[1:] + IQ4_LEVELS[:-1]) / np.float32(2)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_LARGEST_HALF = np.float32(65504)
_SOUND = np.float32(1e-6)
"""The squares of a difference, in parts of those of what it is made of, above which it has enough digits."""
_SIDE = 32  # the most weights of a sub-block
ROOM = (3 * 256 + _SIDE) * TILE
"""Numbers that `descend` works in."""


class Rules(NamedTuple):
    """How weights of a type are made, as kernels take it.

    Attributes
    ----------
    size, sub
        Weights of a superblock, at most 256, and of a sub-block, 16 or 32.
    uneven
        1 where levels are those of iq4_nl, 0 where they are whole numbers.
    lowest, highest
        The lowest and the highest level.
    lowest_scale, highest_scale
        The limits of the integers that are sub-blocks' scales; equal where they cannot be chosen.
    highest_min
        The limit of those of the mins, 0 where there is no dmin, 1 where they cannot be chosen.
    """

    size: int
    sub: int
    uneven: int
    lowest: float
    highest: float
    lowest_scale: float
    highest_scale: float
    highest_min: float


@inline
def _nearest(values: Any, uneven: Any, lowest: Any, highest: Any) -> Any:
    """The level nearest to each lane."""
    if uneven:
        level = splat(IQ4_LEVELS[0], TILE)
        for i in range(15):
            level = select(values < _THRESHOLDS[i], level, IQ4_LEVELS[i + 1])
        return level
    return rounded(minimum(maximum(values, lowest), highest))


@inline
def _inverse(scale: Any) -> Any:
    return select(scale != _ZERO, _ONE / scale, _ZERO)


@kernel
def round_superblock(
    size: I64, sub: I64, uneven: I64, lowest: F32, highest: F32, lowest_scale: F32, highest_scale: F32,
    highest_min: F32,
    count: I64, n: I64, first: I64, panel: I64, k: I64, factor: F32s,
    weights: F32s, targets: F32s, levels: F32s, residues: F32s,
    d: F32s, dmin: F32s, scales: F32s, mins: F32s,
) -> None:  # fmt: skip
    """Round the superblock of `count` tiles that begins at column `first`.

    Parameters
    ----------
    panel, k, factor
        The first column of the panel, its columns, and its square of U, packed.
    weights, targets
        (count, n, 16): w, and t as far as the panels before this one ask for it; that of the panel is
        brought up to date with the superblock.
    levels
        (count, n, 16): what is found.
    residues
        (count, 256, 16): w - y of the panel's columns.
    d, dmin, scales, mins
        (count, superblocks or sub-blocks, 16).
    """
    for tile in range(count):
        of_superblock = (tile * (n // size) + first // size) * TILE
        unit = load(d, of_superblock, TILE)
        unit_min = load(dmin, of_superblock, TILE)
        for part in range(size // sub):  # Numba's ranges of a step that is no constant may raise
            start = first + part * sub
            of_sub = (tile * (n // sub) + start // sub) * TILE
            scale = unit * load(scales, of_sub, TILE)
            low = unit_min * load(mins, of_sub, TILE)
            inverse = _inverse(scale)
            left = (tile * 256 + start - panel) * TILE
            for j in range(start, start + sub):
                at = (tile * n + j) * TILE
                level = _nearest((load(targets, at, TILE) + low) * inverse, uneven, lowest, highest)
                store(levels, at, level)
                residue = load(weights, at, TILE) - (scale * level - low)
                store(residues, left + (j - start) * TILE, residue)
                for i in range(j + 1, start + sub):
                    to = (tile * n + i) * TILE
                    share = factor[((i - panel) // 4 * k + j - panel) * 4 + i % 4]
                    store(targets, to, load(targets, to, TILE) + residue * share)
            for i in range(start + sub, panel + k, 4):
                to = (tile * n + i) * TILE
                add_four(targets, to, residues, left, sub, factor, (i - panel) * k + 4 * (start - panel))


@kernel
def round_columns(
    uneven: I64, lowest: F32, highest: F32, count: I64, n: I64, panel: I64, k: I64, factor: F32s,
    weights: F32s, scales: F32s, lows: F32s, targets: F32s, levels: F32s, residues: F32s,
) -> None:  # fmt: skip
    """Round the panel of `count` tiles that has `k` columns from column `panel` on, each by its own scale.

    Parameters
    ----------
    scales, lows
        (count, n, 16): weight = scale * level - low.

    All others are those of `round_superblock`.
    """
    for tile in range(count):
        for start in range(panel, panel + k, 16):
            left = (tile * 256 + start - panel) * TILE
            for j in range(start, start + 16):
                at = (tile * n + j) * TILE
                scale = load(scales, at, TILE)
                low = load(lows, at, TILE)
                level = _nearest((load(targets, at, TILE) + low) * _inverse(scale), uneven, lowest, highest)
                store(levels, at, level)
                residue = load(weights, at, TILE) - (scale * level - low)
                store(residues, left + (j - start) * TILE, residue)
                for i in range(j + 1, start + 16):
                    to = (tile * n + i) * TILE
                    share = factor[((i - panel) // 4 * k + j - panel) * 4 + i % 4]
                    store(targets, to, load(targets, to, TILE) + residue * share)
            for i in range(start + 16, panel + k, 4):
                to = (tile * n + i) * TILE
                add_four(targets, to, residues, left, 16, factor, (i - panel) * k + 4 * (start - panel))


@kernel
def descend(
    size: I64, sub: I64, uneven: I64, lowest: F32, highest: F32, lowest_scale: F32, highest_scale: F32,
    highest_min: F32,
    count: I64, n: I64, panel: I64, k: I64, hessian: F32s, diagonal: F32s, sub_sums: F32s,
    levels: F32s, slopes: F32s, d: F32s, dmin: F32s, scales: F32s, mins: F32s, changes: F32s,
    gains: F32s, sweeps: I64, room: F32s,
) -> None:  # fmt: skip
    """Some times over a panel of `count` tiles, the one of `k` columns that begins at column `panel`.

    A superblock with sub-blocks is a panel, and y = d v - dmin m. What H makes of v, which d moves along, is
    a product of 256 columns; with several sweeps it follows from the slopes and what slopes and H y add up
    to, which stays.

    Parameters
    ----------
    hessian
        The panel's square of H, packed.
    diagonal, sub_sums
        (k,): that of H; (k, size // sub): the sums of H's rows over each sub-block of their superblock.
    levels, slopes
        (count, n, 16): the levels, and g, which is brought up to date in the panel.
    d, dmin, scales, mins
        (count, superblocks or sub-blocks, 16).
    changes
        (count, 256, 16): how w - y changes in the panel's columns is added to it.
    gains
        (count, 16): by how much the error falls is added to it.
    room
        `ROOM` numbers.
    """
    parts = size // sub
    along = room
    pulls = floats_at(room, 256 * TILE)
    sums = floats_at(room, 512 * TILE)
    moves = floats_at(room, 768 * TILE)
    for tile in range(count):
        gain = load(gains, tile * TILE, TILE)
        if parts > 1 and sweeps > 1:
            _values(
                size, sub, load(d, (tile * (n // size) + panel // size) * TILE, TILE),
                load(dmin, (tile * (n // size) + panel // size) * TILE, TILE),
                floats_at(scales, (tile * (n // sub) + panel // sub) * TILE),
                floats_at(mins, (tile * (n // sub) + panel // sub) * TILE),
                floats_at(levels, (tile * n + panel) * TILE), along,
            )  # fmt: skip
            _pull(size, along, 0, k, hessian, sums)
            for j in range(size):
                slope_j = load(slopes, (tile * n + panel + j) * TILE, TILE)
                store(sums, j * TILE, load(sums, j * TILE, TILE) + slope_j)
        for number in range(sweeps * (k // size)):
            row = number % (k // size) * size
            of_superblock = (tile * (n // size) + (panel + row) // size) * TILE
            unit = load(d, of_superblock, TILE)
            unit_min = load(dmin, of_superblock, TILE)
            for part in range(parts):
                start = row + part * sub
                of_sub = (tile * (n // sub) + (panel + start) // sub) * TILE
                here = floats_at(levels, (tile * n + panel + start) * TILE)
                slope = floats_at(slopes, (tile * n + panel + start) * TILE)
                scale = unit * load(scales, of_sub, TILE)
                gain = gain + _move_codes(
                    sub, uneven, lowest, highest, start, k, hessian, diagonal, scale, here, slope, moves
                )
                if parts == 1 or highest_scale > lowest_scale:
                    _pull(sub, here, start, k, hessian, pulls)
                    if parts == 1:
                        gain = gain + _move_unit(sub, floats_at(d, of_superblock), here, pulls, slope, moves)
                    else:
                        gain = gain + _move_integer(
                            sub, floats_at(scales, of_sub), unit, lowest_scale, highest_scale,
                            here, pulls, slope, moves,
                        )  # fmt: skip
                if highest_min > _ZERO:
                    for j in range(sub):
                        store(along, j * TILE, splat(-_ONE, TILE))
                        store(pulls, j * TILE, splat(-sub_sums[(start + j) * parts + part], TILE))
                    if parts == 1:
                        gain = gain + _move_unit(
                            sub, floats_at(dmin, of_superblock), along, pulls, slope, moves
                        )
                    else:
                        gain = gain + _move_integer(
                            sub, floats_at(mins, of_sub), unit_min, _ZERO, highest_min,
                            along, pulls, slope, moves,
                        )  # fmt: skip
                change = (tile * 256 + start) * TILE
                for at in range(0, sub * TILE, TILE):
                    store(changes, change + at, load(changes, change + at, TILE) + load(moves, at, TILE))
                for i in range(0, k, 4):
                    if i < start or i >= start + sub:
                        to = (tile * n + panel + i) * TILE
                        add_four(slopes, to, moves, 0, sub, hessian, i * k + 4 * start)
            if parts > 1:
                slope = floats_at(slopes, (tile * n + panel + row) * TILE)
                change = floats_at(changes, (tile * 256 + row) * TILE)
                for part in range(parts):
                    scale = load(scales, (tile * (n // sub) + (panel + row) // sub + part) * TILE, TILE)
                    for j in range(part * sub, (part + 1) * sub):
                        level = load(levels, (tile * n + panel + row + j) * TILE, TILE)
                        store(along, j * TILE, scale * level)
                own = floats_at(mins, (tile * (n // sub) + (panel + row) // sub) * TILE)
                if sweeps > 1:
                    _pull_of_sums(
                        size, parts, highest_min, unit, unit_min, own, sub_sums, sums, slope, pulls, along
                    )
                else:
                    _pull(size, along, row, k, hessian, pulls)
                gain = gain + _move_unit(size, floats_at(d, of_superblock), along, pulls, slope, change)
                if highest_min > _ZERO:
                    for j in range(size):
                        store(along, j * TILE, -load(own, j // sub * TILE, TILE))
                        store(pulls, j * TILE, -_sum_of_mins(parts, own, sub_sums, (row + j) * parts))
                    gain = gain + _move_unit(
                        size, floats_at(dmin, of_superblock), along, pulls, slope, change
                    )
        store(gains, tile * TILE, gain)


@inline
def _values(
    size: Any, sub: Any, unit: Any, unit_min: Any, scales: Any, mins: Any, levels: Any, values: Any
) -> None:
    """What a reader finds in a superblock."""
    for j in range(size):
        part = j // sub * TILE
        low = unit_min * load(mins, part, TILE)
        store(values, j * TILE, unit * load(scales, part, TILE) * load(levels, j * TILE, TILE) - low)


@inline
def _pull_of_sums(
    size: Any, parts: Any, highest_min: Any, unit: Any, unit_min: Any, mins: Any, sub_sums: Any, sums: Any,
    slopes: Any, pulls: Any, along: Any,
) -> None:  # fmt: skip
    """What H makes of v, from H y = sums - slopes; no move along v where too little of that is d H v."""
    inverse = _inverse(unit)
    own = splat(_ZERO, TILE)
    whole = own
    for j in range(size):
        total = load(sums, j * TILE, TILE)
        pull = total - load(slopes, j * TILE, TILE)
        whole = whole + total * total
        if highest_min > _ZERO:
            low = unit_min * _sum_of_mins(parts, mins, sub_sums, j * parts)
            whole = whole + low * low
            pull = pull + low
        own = own + pull * pull
        store(pulls, j * TILE, pull * inverse)
    sound = own > whole * _SOUND
    if any_lane(~sound):
        for at in range(0, size * TILE, TILE):
            store(along, at, select(sound, load(along, at, TILE), _ZERO))
            store(pulls, at, select(sound, load(pulls, at, TILE), _ZERO))


@inline
def _sum_of_mins(parts: Any, mins: Any, sub_sums: Any, first: Any) -> Any:
    """What H makes of the mins of a superblock, in a column."""
    total = splat(_ZERO, TILE)
    for part in range(parts):
        total = total + load(mins, part * TILE, TILE) * sub_sums[first + part]
    return total


@inline
def _move_codes(
    sub: Any, uneven: Any, lowest: Any, highest: Any, start: Any, k: Any, hessian: Any,
    diagonal: Any, scale: Any, levels: Any, slopes: Any, moves: Any,
) -> Any:  # fmt: skip
    """Move the codes of a sub-block one by one, and begin its `moves`; returns how far the error falls."""
    inverse = _inverse(scale)
    gain = splat(_ZERO, TILE)
    for j in range(sub):
        level = load(levels, j * TILE, TILE)
        slope = load(slopes, j * TILE, TILE)
        bend = diagonal[start + j]
        new = _nearest(level + slope * (inverse * (_ONE / bend)), uneven, lowest, highest)
        step = scale * (new - level)
        fall = step * (slope + slope - step * bend)
        better = fall > _ZERO
        step = select(better, step, _ZERO)
        store(moves, j * TILE, -step)
        if any_lane(better):
            gain = gain + select(better, fall, _ZERO)
            store(levels, j * TILE, select(better, new, level))
            for i in range(sub):
                pull = hessian[((start + i) // 4 * k + start + j) * 4 + (start + i) % 4]
                store(slopes, i * TILE, load(slopes, i * TILE, TILE) - step * pull)
    return gain


@inline
def _pull(count: Any, along: Any, start: Any, k: Any, hessian: Any, pulls: Any) -> None:
    """What moving y along `along`, which has `count` columns, takes off their slopes."""
    for j in range(0, count, 4):
        for i in range(j, j + 4):
            store(pulls, i * TILE, splat(_ZERO, TILE))
        add_four(pulls, j * TILE, along, 0, count, hessian, (start + j) * k + 4 * start)


@inline
def _fall(count: Any, along: Any, pulls: Any, slopes: Any) -> Any:
    """g.v and v.Hv: to move by c along v lowers the error by c (2 g.v - c v.Hv)."""
    gain = splat(_ZERO, TILE)
    bend = splat(_ZERO, TILE)
    for at in range(0, count * TILE, TILE):
        x = load(along, at, TILE)
        gain = gain + x * load(slopes, at, TILE)
        bend = bend + x * load(pulls, at, TILE)
    return gain, bend


@inline
def _move_unit(count: Any, unit: Any, along: Any, pulls: Any, slopes: Any, changes: Any) -> Any:
    """Move a d or dmin, a half, to where the error is least; returns by how much it falls."""
    gain, bend = _fall(count, along, pulls, slopes)
    old = load(unit, 0, TILE)
    new = old + gain / bend
    new = select(new == new, new, _ZERO)
    new = floats_of(halves_of(maximum(minimum(new, _LARGEST_HALF), -_LARGEST_HALF)))
    step = new - old
    fall = step * (gain + gain - step * bend)
    better = fall > _ZERO
    store(unit, 0, select(better, new, old))
    _step(count, better, step, along, pulls, slopes, changes)
    return select(better, fall, _ZERO)


@inline
def _move_integer(
    count: Any, integer: Any, unit: Any, lowest: Any, highest: Any,
    along: Any, pulls: Any, slopes: Any, changes: Any,
) -> Any:  # fmt: skip
    """Move a scale or min of a sub-block to where the error is least; returns by how much it falls."""
    gain, bend = _fall(count, along, pulls, slopes)
    old = load(integer, 0, TILE)
    new = rounded(maximum(minimum(old + gain / (bend * unit), highest), lowest))
    step = unit * (new - old)
    fall = step * (gain + gain - step * bend)
    better = fall > _ZERO
    store(integer, 0, select(better, new, old))
    _step(count, better, step, along, pulls, slopes, changes)
    return select(better, fall, _ZERO)


@inline
def _step(count: Any, better: Any, step: Any, along: Any, pulls: Any, slopes: Any, changes: Any) -> None:
    """Move y by a step in the lanes where that is better."""
    if any_lane(better):
        step = select(better, step, _ZERO)
        for at in range(0, count * TILE, TILE):
            store(slopes, at, load(slopes, at, TILE) - step * load(pulls, at, TILE))
            store(changes, at, load(changes, at, TILE) - step * load(along, at, TILE))


@kernel
def add_weighted_squares(values: F32s, weights: F32s, count: I64, n: I64, columns: I64, out: F32s) -> None:
    """Add the sums of weight * value^2 over the first columns of tiles (count, n, 16) to (count, 16)."""
    for tile in range(count):
        total = load(out, tile * TILE, TILE)
        for column in range(columns):
            x = load(values, (tile * n + column) * TILE, TILE)
            total = total + x * x * weights[column]
        store(out, tile * TILE, total)


@kernel
def add_products_of(left: F32s, right: F32s, count: I64, n: I64, out: F32s) -> None:
    """Add the sums over the columns of the products of tiles (count, n, 16) to (count, 16)."""
    for tile in range(count):
        total = load(out, tile * TILE, TILE)
        for column in range(n):
            at = (tile * n + column) * TILE
            total = total + load(left, at, TILE) * load(right, at, TILE)
        store(out, tile * TILE, total)
