"""iq3_s, iq3_xxs, iq2_s, iq2_xs and iq2_xxs with less error than ggml's: an exact search of their grids.

Blocks are those of `encode_grids`, whose layouts `decode_grids` tells:

    weight = d (2 s + 1) unit sign point        s from 0 to 15, for 16 or 32 weights

ggml rounds weights one by one, and where that gives no point of the grid tries some that are near. It settles
signs before, by what they cost where all is free, and never looks at the points again once the scales are
rounded. Here, for any scale, a group gets the best of all points with the best of all signs. That costs less
than it seems. A group's error is the sum of what its halves cost, and of half a group there are few:

    four weights of 3 levels      81 halves      two weights of 8 levels      64 halves

So the errors of all halves are added up first, each in as many lanes as there are sub-blocks side by side;
then each point takes one addition and one comparison, or less, since points with the same upper half share
the addition. An odd number of negative weights, where it must be even, makes one weight change its sign. Each
half has two errors then, as it is and with the cheapest of its signs changed, and the best is either half's
one with the other's other.

1. Fit: find the best real scale of each sub-block, of trials that give the largest weight about the highest
   value, and then by least squares under the points of the best.
2. Round together: try many d. The s nearest to a scale is best, and a deviation ds from the fit costs
   sum(w q^2) ds^2, q the signed point.
3. Choose: with d fixed, try the s around, and search all points anew for each.
4. Solve: with s and points fixed, d follows by least squares. Back to 3, until nothing moves.

Sub-blocks of zeros are written in their place, where ggml's iq3_s lets indices and signs move up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import decode_grids, encode_grids
from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.best import as_half, gather_tile, gather_weights, to_beat
from ggplan.quants.grid_search import Found
from ggplan.quants.grids import grid
from ggplan.quants.layout32 import flat
from ggplan.quants.superblock import SHIFT, SUPERBLOCK, TILE, new_floats, new_integers
from ggplan.quants.vector import (
    WIDTH,
    absolute,
    any_lane,
    float_of,
    integer_of,
    lane,
    load,
    maximum,
    minimum,
    repeat,
    select,
    splat,
    store,
)

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Superblocks that are searched before they are packed.
_PIECE = 256

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_FOUR = np.float32(4)
_HALF = np.float32(0.5)
_INFINITY = np.float32(np.inf)
_UNITS = 24
_ROUNDS = 3


class Points(NamedTuple):
    """The points of a grid, ordered by their upper halves; all arrays are read-only.

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
    """

    values: F32Array
    starts: NDArray[np.int32]
    lower: NDArray[np.int32]
    keys: NDArray[np.int32]


class Memory(NamedTuple):
    """What a search works on: sixteen superblocks, and the errors of one group's halves.

    Attributes
    ----------
    tile, weight
        The weights and what their errors count, laid out as `superblock` says.
    flips
        float32 [WIDTH eight + lane]: 4 where the number of negative weights must change, else 0.
    parts, part_flips
        float32 [WIDTH (n part + number) + lane]: the errors of a half's two parts, and what it costs to change
        the cheapest of its signs.
    halves
        float32 [WIDTH (n (2 flipped + half) + number) + lane]: the errors of halves.
    """

    tile: Any
    weight: Any
    flips: Any
    parts: Any
    part_flips: Any
    halves: Any


class Choice(NamedTuple):
    """What is chosen for sixteen superblocks.

    Attributes
    ----------
    levels
        int32 [16 sub_block + lane]: s.
    keys
        int32 [(weights of a group) position + lane]: the points, a group's as a superblock's groups stand.
    signs
        int32: the signs of eight weights, in the same way.
    """

    levels: Any
    keys: Any
    signs: Any


def encode_iq3_s(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 110 bytes for 256 weights."""
    encode_grids.encode_iq3_s(rows, importance, out)
    _encode("iq3_s", _refine_fours, encode_grids.pack_iq3_s, 32, 1.0, rows, importance, out)


def encode_iq3_xxs(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 98 bytes for 256 weights."""
    encode_grids.encode_iq3_xxs(rows, importance, out)
    _encode("iq3_xxs", _refine_even_fours, encode_grids.pack_iq3_xxs, 32, 0.25, rows, importance, out)


def encode_iq2_s(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 82 bytes for 256 weights."""
    encode_grids.encode_iq2_s(rows, importance, out)
    _encode("iq2_s", _refine_eights, encode_grids.pack_iq2_s, 16, 0.125, rows, importance, out)


def encode_iq2_xs(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 74 bytes for 256 weights."""
    encode_grids.encode_iq2_xs(rows, importance, out)
    _encode("iq2_xs", _refine_even_eights, encode_grids.pack_iq2_xs, 16, 0.125, rows, importance, out)


def encode_iq2_xxs(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 66 bytes for 256 weights."""
    encode_grids.encode_iq2_xxs(rows, importance, out)
    _encode("iq2_xxs", _refine_even_eights, encode_grids.pack_iq2_xxs, 32, 0.125, rows, importance, out)


@cache
def _points(name: str) -> tuple[Points, NDArray[np.uint16]]:
    """The points of a grid, and the index of each key."""
    values = np.unique(grid(name))
    points = values.searchsorted(grid(name))
    size = points.shape[-1]
    digits = len(values) ** np.arange(size // 2)
    lower, upper = points[:, : size // 2] @ digits, points[:, size // 2 :] @ digits
    keys = (points << ((2 if size == 8 else 3) * np.arange(size))).sum(axis=1)
    index_of = np.zeros(1 << 16, np.uint16)
    index_of[keys] = np.arange(len(keys))
    order = upper.argsort(kind="stable")
    starts = upper[order].searchsorted(np.arange(len(values) ** (size // 2) + 1))
    found = Points(
        values.astype(np.float32),
        starts.astype(np.int32),
        (WIDTH * lower[order]).astype(np.int32),
        keys[order].astype(np.int32),
    )
    return found, index_of


def _encode(
    name: str,
    refine: Callable[..., None],
    pack: Callable[[Found, Bytes], None],
    size: int,
    unit: float,
    rows: F32Array,
    importance: F32Array | None,
    out: Bytes,
) -> None:
    """Improve the default's blocks in `out`, a piece of them at a time."""
    points, index_of = _points(name)
    group = 8 if len(points.values) == 3 else 4
    decode = getattr(decode_grids, f"decode_{name}")
    weights = flat(rows)
    columns = flat(np.empty(0, np.float32) if importance is None else importance)
    count = weights.size // SUPERBLOCK
    blocks = out.reshape(count, -1) if count else out
    for first in range(0, count, _PIECE):
        these = blocks[first : first + _PIECE]
        n = len(these)
        decoded = np.empty((n, SUPERBLOCK), np.float32)
        keys = np.empty((n, SUPERBLOCK // group), np.uint16)
        found = Found(
            keys,
            np.empty((n, SUPERBLOCK // 8), np.uint8),
            np.empty((n, SUPERBLOCK // size), np.int8),
            np.empty(n, np.float32),
        )
        better = np.empty(n, np.uint8)
        with np.errstate(all="ignore"):
            decode(these, decoded)
        refine(weights, columns, first, decoded.reshape(-1), points, size, np.float32(unit), found, better)
        packed = np.empty_like(these)
        pack(found._replace(indices=index_of[keys]), packed)
        these[better != 0] = packed[better != 0]


@kernel
def _refine_fours(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    size: Any,
    unit: Any,
    found: Any,
    better: Any,
) -> None:
    _refine_superblocks(weights, importance, skipped, decoded, points, size, unit, found, better, 4, 0)


@kernel
def _refine_even_fours(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    size: Any,
    unit: Any,
    found: Any,
    better: Any,
) -> None:
    _refine_superblocks(weights, importance, skipped, decoded, points, size, unit, found, better, 4, 1)


@kernel
def _refine_eights(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    size: Any,
    unit: Any,
    found: Any,
    better: Any,
) -> None:
    _refine_superblocks(weights, importance, skipped, decoded, points, size, unit, found, better, 8, 0)


@kernel
def _refine_even_eights(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    size: Any,
    unit: Any,
    found: Any,
    better: Any,
) -> None:
    _refine_superblocks(weights, importance, skipped, decoded, points, size, unit, found, better, 8, 1)


@inline
def _refine_superblocks(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    size: Any,
    unit: Any,
    found: Any,
    better: Any,
    group: Any,
    even: Any,
) -> None:
    """Search all superblocks of `decoded`.

    Parameters
    ----------
    weights, importance
        All rows; the columns' importance, or empty.
    skipped
        Superblocks of `weights` before the first of `decoded`.
    decoded
        What the default's blocks are read as.
    points, size, unit
        The grid; weights in a sub-block; what d (2 s + 1) is multiplied by.
    found, better
        Filled for each superblock: what the search found, keys for indices, and whether it is better.
    group, even
        Weights in a group; 1 where the number of negative weights in eight must be even. Constants.
    """
    scratch = new_floats(SUPERBLOCK * TILE)
    before = new_floats(SUPERBLOCK * TILE)
    n_part = 9 if group == 8 else 8
    memory = Memory(
        new_floats(SUPERBLOCK * TILE),
        new_floats(SUPERBLOCK * TILE),
        new_floats(SUPERBLOCK // 8 * TILE),
        new_floats(2 * n_part * WIDTH),
        new_floats(2 * n_part * WIDTH),
        new_floats(4 * n_part * n_part * WIDTH),
    )
    kept = _new_choice(group)
    trial = _new_choice(group)
    total = decoded.size // SUPERBLOCK
    for first in range(0, total, TILE):
        count = min(TILE, total - first)
        gather_tile(weights, skipped + first, count, weights.size // SUPERBLOCK, scratch, size, memory.tile)
        gather_weights(importance, skipped + first, count, scratch, size, memory.weight)
        gather_tile(decoded, first, count, total, scratch, size, before)
        error = splat(_ZERO, TILE)
        sums = new_floats(WIDTH)
        for at in range(0, SUPERBLOCK * TILE, WIDTH):
            residue = load(memory.tile, at, WIDTH) - load(before, at, WIDTH)
            store(sums, 0, load(memory.weight, at, WIDTH) * residue * residue)
            for part in range(0, WIDTH, TILE):
                error = error + load(sums, part, TILE)
        if even == 1:
            _find_odd(memory)
        d, is_better = _refine(points, size, unit, memory, group, even, to_beat(error), trial, kept)
        for r in range(count):
            better[first + r] = lane(is_better, r)
            found.scales[first + r] = lane(d, r)
            for j in range(SUPERBLOCK // size):
                found.levels[first + r, j] = kept.levels[j * TILE + r]
            for n in range(SUPERBLOCK // group):
                at = _place(n * group, size, group)
                found.indices[first + r, n] = kept.keys[at + r]
            for n in range(SUPERBLOCK // 8):
                found.signs[first + r, n] = kept.signs[_place(n * 8, size, 8) + r]


@inline
def _new_choice(group: Any) -> Any:
    return Choice(
        new_integers(16 * TILE),
        new_integers(SUPERBLOCK // group * TILE),
        new_integers(SUPERBLOCK // 8 * TILE),
    )


@inline
def _place(i: Any, size: Any, group: Any) -> Any:
    """Where lane 0 of the group of weight i stands among groups: their weights' place in a tile, shortened."""
    at = i // size * TILE
    inside = at % WIDTH
    return (size * (at - inside) + WIDTH * (i % size)) // group + inside


@inline
def _find_odd(memory: Any) -> None:
    for at in range(0, SUPERBLOCK // 8 * TILE, WIDTH):
        odd = splat(_ZERO, WIDTH)
        for i in range(8):
            x = load(memory.tile, 8 * at + WIDTH * i, WIDTH)
            odd = select(x < _ZERO, _FOUR - odd, odd)
        store(memory.flips, at, odd)


@inline
def _refine(
    points: Any,
    size: Any,
    unit: Any,
    memory: Any,
    group: Any,
    even: Any,
    default_error: Any,
    trial: Any,
    kept: Any,
) -> Any:
    """Improve sixteen superblocks; return d and the lanes in which it is, with `kept`, better."""
    least = default_error
    best_d = splat(_ZERO, TILE)
    any_better = best_d < _ZERO
    fits = new_floats(2 * 16 * TILE)
    _fit(points, size, memory, group, even, trial, fits)
    d = _round_together(fits, SUPERBLOCK // size, unit, trial.levels)
    for turn in range(_ROUNDS):
        _choose(points, size, unit, memory, group, even, d, trial.levels, 1)
        error, change = _measure(points, size, unit, memory, group, even, d, trial)
        better = error < least
        any_better = any_better | better
        least = select(better, error, least)
        best_d = select(better, d, best_d)
        for at in range(0, SUPERBLOCK // size * TILE, TILE):
            store(kept.levels, at, select(better, load(trial.levels, at, TILE), load(kept.levels, at, TILE)))
        for at in range(0, SUPERBLOCK // group * TILE, TILE):
            store(kept.keys, at, select(better, load(trial.keys, at, TILE), load(kept.keys, at, TILE)))
        for at in range(0, SUPERBLOCK // 8 * TILE, TILE):
            store(kept.signs, at, select(better, load(trial.signs, at, TILE), load(kept.signs, at, TILE)))
        if turn > 0 and not any_lane(better):
            break
        d = as_half(d + change)
    return best_d, any_better


@inline
def _fit(points: Any, size: Any, memory: Any, group: Any, even: Any, trial: Any, fits: Any) -> None:
    """Find each sub-block's best real scale, and what moving it costs, into `fits`."""
    highest = points.values[points.values.size - 1]
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        largest = splat(_ZERO, WIDTH)
        for i in range(size * at, size * (at + WIDTH), WIDTH):
            largest = maximum(largest, absolute(load(memory.tile, i, WIDTH)))
        best = largest / highest
        least = splat(_INFINITY, WIDTH)
        for k in range(12):
            scale = largest / (highest * np.float32(np.float32(0.75) + np.float32(k) * np.float32(0.075)))
            error = _least_error(points, size, memory, group, even, at, scale)
            better = error < least
            least = select(better, error, least)
            best = select(better, scale, best)
        _take_points(points, size, memory, group, even, at, best, trial)
        _, sum_rq, sum_q2 = _sums(points, size, memory, group, at, best, trial)
        store(fits, at, best + sum_rq / sum_q2)
        store(fits, 16 * TILE + at, sum_q2)


@inline
def _round_together(fits: Any, count: Any, unit: Any, levels: Any) -> Any:
    """Find d, a half, and the s whose products come closest to `fits`."""
    largest = splat(_ZERO, TILE)
    for j in range(count):
        largest = maximum(largest, load(fits, j * TILE, TILE))
    best = largest / np.float32(31)
    least = splat(_INFINITY, TILE)
    for k in range(_UNITS):
        share = np.float32(20) + np.float32(k) * np.float32(0.6)
        d = largest / share
        inverse = share / largest
        cost = splat(_ZERO, TILE)
        for j in range(count):
            scale = load(fits, j * TILE, TILE)
            ds = d * (_TWO * _nearest_level(scale * inverse) + _ONE) - scale
            cost = cost + load(fits, (16 + j) * TILE, TILE) * ds * ds
        better = cost < least
        least = select(better, cost, least)
        best = select(better, d, best)
    d = as_half(best / unit)
    inverse = _ONE / (d * unit)
    for j in range(count):
        store(levels, j * TILE, integer_of(_nearest_level(load(fits, j * TILE, TILE) * inverse)))
    return d


@inline
def _nearest_level(steps: Any) -> Any:
    """s, for which 2 s + 1 is nearest, float32."""
    return maximum(minimum((steps - _ONE) * _HALF + SHIFT, SHIFT + np.float32(15)), SHIFT) - SHIFT


@inline
def _choose(
    points: Any,
    size: Any,
    unit: Any,
    memory: Any,
    group: Any,
    even: Any,
    d: Any,
    levels: Any,
    radius: Any,
) -> None:
    """Move `levels` to the best within `radius` of them."""
    unit_d = repeat(d * unit, WIDTH)
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        middle = load(levels, at, WIDTH)
        best = middle
        least = splat(_INFINITY, WIDTH)
        for k in range(-radius, radius + 1):
            this = maximum(minimum(middle + k, 15), 0)
            error = _least_error(points, size, memory, group, even, at, unit_d * float_of(2 * this + 1))
            better = error < least
            least = select(better, error, least)
            best = select(better, this, best)
        store(levels, at, best)


@inline
def _measure(
    points: Any, size: Any, unit: Any, memory: Any, group: Any, even: Any, d: Any, choice: Any
) -> Any:
    """Choose points and signs; return the error, as a decoder makes it, and the change of d that is best."""
    unit_d = repeat(d * unit, WIDTH)
    sums = new_floats(3 * WIDTH)
    total = splat(_ZERO, TILE)
    sum_rq = splat(_ZERO, TILE)
    sum_q2 = splat(_ZERO, TILE)
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        integer = float_of(2 * load(choice.levels, at, WIDTH) + 1)
        scale = unit_d * integer
        _take_points(points, size, memory, group, even, at, scale, choice)
        error, rq, q2 = _sums(points, size, memory, group, at, scale, choice)
        store(sums, 0, error)
        store(sums, WIDTH, rq * integer)
        store(sums, 2 * WIDTH, q2 * integer * integer)
        for i in range(0, WIDTH, TILE):
            total = total + load(sums, i, TILE)
            sum_rq = sum_rq + load(sums, WIDTH + i, TILE)
            sum_q2 = sum_q2 + load(sums, 2 * WIDTH + i, TILE)
    return total, sum_rq / (sum_q2 * unit)


@inline
def _least_error(points: Any, size: Any, memory: Any, group: Any, even: Any, at: Any, scale: Any) -> Any:
    """The least error of sub-blocks with given scales."""
    total = splat(_ZERO, WIDTH)
    for i in range(size * at, size * (at + WIDTH), 8 * WIDTH):
        if group == 8:
            _add_up(points, memory, group, even, i, i, scale)
            plain, flipped = _least_of_group(points, memory, group, even)
            total = total + (flipped if even == 1 else plain)
        else:
            _add_up(points, memory, group, even, i, i, scale)
            plain, flipped = _least_of_group(points, memory, group, even)
            _add_up(points, memory, group, even, i, i + 4 * WIDTH, scale)
            plain_2, flipped_2 = _least_of_group(points, memory, group, even)
            if even == 1:
                total = total + minimum(plain + flipped_2, flipped + plain_2)
            else:
                total = total + (plain + plain_2)
    return total


@inline
def _take_points(
    points: Any, size: Any, memory: Any, group: Any, even: Any, at: Any, scale: Any, choice: Any
) -> None:
    """Choose the points and signs of sub-blocks with given scales."""
    bits = 2 if group == 8 else 3
    for i in range(size * at, size * (at + WIDTH), 8 * WIDTH):
        if group == 8:
            _add_up(points, memory, group, even, i, i, scale)
            _, key, _, flipped_key = _point_of_group(points, memory, group, even)
            store(choice.keys, i // 8, flipped_key if even == 1 else key)
        else:
            _add_up(points, memory, group, even, i, i, scale)
            plain, key, flipped, flipped_key = _point_of_group(points, memory, group, even)
            _add_up(points, memory, group, even, i, i + 4 * WIDTH, scale)
            plain_2, key_2, flipped_2, flipped_key_2 = _point_of_group(points, memory, group, even)
            if even == 1:
                first = flipped + plain_2 < plain + flipped_2
                key = select(first, flipped_key, key)
                key_2 = select(first, key_2, flipped_key_2)
            store(choice.keys, i // 4, key)
            store(choice.keys, i // 4 + WIDTH, key_2)
        signs = splat(0, WIDTH)
        least = splat(_INFINITY, WIDTH)
        cheapest = splat(1, WIDTH)
        for k in range(8):
            x = load(memory.tile, i + WIDTH * k, WIDTH)
            signs = signs | select(x < _ZERO, splat(1 << k, WIDTH), 0)
            if even == 1:
                key = load(choice.keys, (i + WIDTH * (k // group * group)) // group, WIDTH)
                value = _value(points, (key >> (bits * (k % group))) & ((1 << bits) - 1), group)
                cost = load(memory.weight, i + WIDTH * k, WIDTH) * absolute(x) * value
                less = cost < least
                least = select(less, cost, least)
                cheapest = select(less, splat(1 << k, WIDTH), cheapest)
        if even == 1:
            signs = signs ^ select(load(memory.flips, i // 8, WIDTH) > _ZERO, cheapest, 0)
        store(choice.signs, i // 8, signs)


@inline
def _sums(points: Any, size: Any, memory: Any, group: Any, at: Any, scale: Any, choice: Any) -> Any:
    """Of chosen points: the error, the sum of weight * residue * q and that of weight * q * q."""
    bits = 2 if group == 8 else 3
    error = splat(_ZERO, WIDTH)
    sum_rq = splat(_ZERO, WIDTH)
    sum_q2 = splat(_ZERO, WIDTH)
    for i in range(size * at, size * (at + WIDTH), group * WIDTH):
        key = load(choice.keys, i // group, WIDTH)
        for k in range(group):
            x = load(memory.tile, i + WIDTH * k, WIDTH)
            w = load(memory.weight, i + WIDTH * k, WIDTH)
            q = _value(points, (key >> (bits * k)) & ((1 << bits) - 1), group)
            eight = (i - size * at) // (8 * WIDTH)
            bit = (i - size * at) // WIDTH % 8 + k
            signs = load(choice.signs, size * at // 8 + WIDTH * eight, WIDTH)
            q = select((signs >> bit) & 1 != 0, -q, q)
            residue = x - scale * q
            wr = w * residue
            error = error + wr * residue
            sum_rq = sum_rq + wr * q
            sum_q2 = sum_q2 + w * q * q
    return error, sum_rq, sum_q2


@inline
def _value(points: Any, level: Any, group: Any) -> Any:
    value = splat(points.values[0], WIDTH)
    for k in range(1, 3 if group == 8 else 8):
        value = select(level == k, points.values[k], value)
    return value


@inline
def _add_up(points: Any, memory: Any, group: Any, even: Any, eight: Any, at: Any, scale: Any) -> None:
    """Find the errors of all halves of the group whose weights stand at `at`, within eight at `eight`."""
    levels = 3 if group == 8 else 8
    n = 9 if group == 8 else 8
    for half in range(2):
        for part in range(2):
            if group == 8:
                i = at + WIDTH * (4 * half + 2 * part)
                x_1 = absolute(load(memory.tile, i, WIDTH))
                w_1 = load(memory.weight, i, WIDTH)
                x_2 = absolute(load(memory.tile, i + WIDTH, WIDTH))
                w_2 = load(memory.weight, i + WIDTH, WIDTH)
                flips = load(memory.flips, eight // 8, WIDTH)
                flip_1 = flips * w_1 * x_1
                flip_2 = flips * w_2 * x_2
                for b in range(3):
                    y_2 = scale * points.values[b]
                    r_2 = x_2 - y_2
                    e_2 = w_2 * r_2 * r_2
                    for a in range(3):
                        y_1 = scale * points.values[a]
                        r_1 = x_1 - y_1
                        to = WIDTH * (n * part + 3 * b + a)
                        store(memory.parts, to, w_1 * r_1 * r_1 + e_2)
                        if even == 1:
                            store(memory.part_flips, to, minimum(flip_1 * y_1, flip_2 * y_2))
            else:
                i = at + WIDTH * (2 * half + part)
                x = absolute(load(memory.tile, i, WIDTH))
                w = load(memory.weight, i, WIDTH)
                flip = load(memory.flips, eight // 8, WIDTH) * w * x
                for a in range(levels):
                    y = scale * points.values[a]
                    r = x - y
                    to = WIDTH * (n * part + a)
                    store(memory.parts, to, w * r * r)
                    if even == 1:
                        store(memory.part_flips, to, flip * y)
        for b in range(n):
            upper = load(memory.parts, WIDTH * (n + b), WIDTH)
            upper_flip = load(memory.part_flips, WIDTH * (n + b), WIDTH)
            for a in range(n):
                to = WIDTH * (n * n * half + n * b + a)
                error = load(memory.parts, WIDTH * a, WIDTH) + upper
                store(memory.halves, to, error)
                if even == 1:
                    flip = minimum(load(memory.part_flips, WIDTH * a, WIDTH), upper_flip)
                    store(memory.halves, to + WIDTH * 2 * n * n, error + flip)


@inline
def _least_of_group(points: Any, memory: Any, group: Any, even: Any) -> Any:
    """The least error of a group whose halves are added up, and with one sign changed."""
    n = 81 if group == 8 else 64
    least = splat(_INFINITY, WIDTH)
    least_flipped = least
    for b in range(n):
        start = points.starts[b]
        end = points.starts[b + 1]
        if start < end:
            plain = splat(_INFINITY, WIDTH)
            flipped = plain
            for k in range(start, end):
                at = points.lower[k]
                plain = minimum(load(memory.halves, at, WIDTH), plain)
                if even == 1:
                    flipped = minimum(load(memory.halves, at + WIDTH * 2 * n, WIDTH), flipped)
            upper = load(memory.halves, WIDTH * (n + b), WIDTH)
            least = minimum(upper + plain, least)
            if even == 1:
                upper_flipped = load(memory.halves, WIDTH * (3 * n + b), WIDTH)
                least_flipped = minimum(minimum(upper_flipped + plain, upper + flipped), least_flipped)
    return least, least_flipped


@inline
def _point_of_group(points: Any, memory: Any, group: Any, even: Any) -> Any:
    """The same with the keys of the points, the first of several."""
    n = 81 if group == 8 else 64
    least = splat(_INFINITY, WIDTH)
    least_flipped = least
    key = splat(points.keys[0], WIDTH)
    key_flipped = key
    for b in range(n):
        upper = load(memory.halves, WIDTH * (n + b), WIDTH)
        upper_flipped = load(memory.halves, WIDTH * (3 * n + b), WIDTH)
        for k in range(points.starts[b], points.starts[b + 1]):
            at = points.lower[k]
            lower = load(memory.halves, at, WIDTH)
            error = upper + lower
            better = error < least
            least = select(better, error, least)
            key = select(better, points.keys[k], key)
            if even == 1:
                flipped = load(memory.halves, at + WIDTH * 2 * n, WIDTH)
                error = minimum(upper_flipped + lower, upper + flipped)
                better = error < least_flipped
                least_flipped = select(better, error, least_flipped)
                key_flipped = select(better, points.keys[k], key_flipped)
    return least, key, least_flipped, key_flipped
