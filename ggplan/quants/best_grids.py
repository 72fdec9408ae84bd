"""iq3_*, iq2_* and iq1_* with less error than ggml's: an exact search of their grids.

Blocks are those of `encode_grids`, `iq1_s` and `iq1_m`, whose layouts `decode_grids` tells:

    iq3, iq2    weight = d (2 s + 1) unit (sign point)      unit 1, 1/4 or 1/8; s from 0 to 15
    iq1         weight = d (2 s + 1) (point +- 1/8)         s from 0 to 7

ggml rounds weights one by one, and where that gives no point of the grid tries some that are near. Signs it
settles before, by what they cost where all levels are free, and once the scales are rounded it never looks at
the points again. Here, for any scale, a group gets the best of all points with the best of all signs or
shifts (see `best_points`).

1. Fit: find the best real scale of each sub-block, of trials that give the largest weight about the highest
   value, and then by least squares under the points of the best.
2. Round together: try many d. The s nearest to a scale is best, and a deviation ds from the fit costs
   sum(w q^2) ds^2, q the point.
3. Choose: with d fixed, try the s found and its neighbours, and search all points anew for each.
4. Solve: with s and points fixed, d follows by least squares. Back to 3, until nothing moves.

More trials, more d or more rounds take less than a thousandth off the error. Sub-blocks of zeros are written
in their place, where ggml's iq3_s lets indices and signs move up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import encode_grids, iq1_m, iq1_s
from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.best import as_half, gather_tile, gather_weights, to_beat
from ggplan.quants.best_points import (
    EVEN,
    FREE,
    SHIFTED,
    error_of_levels,
    find_odd,
    least_error,
    new_choice,
    new_memory,
    place_of,
    points_of,
    sums_of_points,
    take_points,
)
from ggplan.quants.codecs import decoder
from ggplan.quants.grid_search import Found
from ggplan.quants.layout32 import flat
from ggplan.quants.superblock import SHIFT, SUPERBLOCK, TILE, new_floats
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
_HALF = np.float32(0.5)
_QUARTER = np.float32(0.25)
_EIGHTH = np.float32(0.125)
_INFINITY = np.float32(np.inf)
_TRIALS = 12
_UNITS = 24


class Rules(NamedTuple):
    """What differs between types with the same kind of groups.

    Attributes
    ----------
    size
        Weights in a sub-block.
    highest
        The highest s.
    together
        Whether a sub-block has one shift, not one for each group.
    rounds
        How often to choose.
    unit
        What d (2 s + 1) is multiplied by; float32.
    first, step
        Trial k is the scale that makes first + step k of the largest weight; float32.
    """

    size: int
    highest: int
    together: bool
    rounds: int
    unit: np.float32
    first: np.float32
    step: np.float32


# The points of iq1 are two thousand, and ggml's encoders are fast: one round has to do.
_RULES = {
    "iq3_s": Rules(32, 15, False, 3, _ONE, np.float32(11.3), np.float32(1.1)),
    "iq3_xxs": Rules(32, 15, False, 3, _QUARTER, np.float32(46), np.float32(4.6)),
    "iq2_s": Rules(16, 15, False, 3, _EIGHTH, np.float32(32), np.float32(3.2)),
    "iq2_xs": Rules(16, 15, False, 3, _EIGHTH, np.float32(32), np.float32(3.2)),
    "iq2_xxs": Rules(32, 15, False, 3, _EIGHTH, np.float32(32), np.float32(3.2)),
    "iq1_m": Rules(16, 7, False, 1, _ONE, np.float32(0.85), np.float32(0.15)),
    "iq1_s": Rules(32, 7, True, 1, _ONE, np.float32(0.85), np.float32(0.15)),
}


def encode_iq3_s(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 110 bytes for 256 weights."""
    encode_grids.encode_iq3_s(rows, importance, out)
    _improve("iq3_s", _refine_fours, encode_grids.pack_iq3_s, rows, importance, out)


def encode_iq3_xxs(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 98 bytes for 256 weights."""
    encode_grids.encode_iq3_xxs(rows, importance, out)
    _improve("iq3_xxs", _refine_even_fours, encode_grids.pack_iq3_xxs, rows, importance, out)


def encode_iq2_s(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 82 bytes for 256 weights."""
    encode_grids.encode_iq2_s(rows, importance, out)
    _improve("iq2_s", _refine_eights, encode_grids.pack_iq2_s, rows, importance, out)


def encode_iq2_xs(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 74 bytes for 256 weights."""
    encode_grids.encode_iq2_xs(rows, importance, out)
    _improve("iq2_xs", _refine_even_eights, encode_grids.pack_iq2_xs, rows, importance, out)


def encode_iq2_xxs(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 66 bytes for 256 weights."""
    encode_grids.encode_iq2_xxs(rows, importance, out)
    _improve("iq2_xxs", _refine_even_eights, encode_grids.pack_iq2_xxs, rows, importance, out)


def encode_iq1_m(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 56 bytes for 256 weights."""
    iq1_m.encode(rows, importance, out)
    _improve("iq1_m", _refine_shifted_eights, _pack_iq1_m, rows, importance, out)


def encode_iq1_s(rows: F32Array, importance: F32Array | None, out: Bytes) -> None:
    """Write 50 bytes for 256 weights."""
    iq1_s.encode(rows, importance, out)
    _improve("iq1_s", _refine_shifted_eights, _pack_iq1_s, rows, importance, out)


def _improve(
    name: str,
    refine: Callable[..., None],
    pack: Callable[[Found, Bytes], None],
    rows: F32Array,
    importance: F32Array | None,
    out: Bytes,
) -> None:
    """Improve the default's blocks in `out`, a piece of them at a time."""
    rules, decode = _RULES[name], decoder(name)
    points, index_of = points_of("iq1_s" if name == "iq1_m" else name)
    group = 8 if len(points.values) == 3 else 4
    weights = flat(rows)
    columns = flat(np.empty(0, np.float32) if importance is None else importance)
    count = weights.size // SUPERBLOCK
    blocks = out.reshape(count, -1) if count else out
    for first in range(0, count, _PIECE):
        these = blocks[first : first + _PIECE]
        n = len(these)
        decoded = np.empty((n, SUPERBLOCK), np.float32)
        found = Found(
            np.empty((n, SUPERBLOCK // group), np.uint16),
            np.empty((n, SUPERBLOCK // 8), np.uint8),
            np.empty((n, SUPERBLOCK // rules.size), np.int8),
            np.empty(n, np.float32),
        )
        better = np.empty(n, np.uint8)
        with np.errstate(all="ignore"):  # ggml's scales may be infinite
            decode(these, decoded)
        refine(weights, columns, first, decoded.reshape(-1), points, rules, found, better)
        packed = np.empty_like(these)
        pack(found._replace(indices=index_of[found.indices]), packed)
        these[better != 0] = packed[better != 0]


def _pack_iq1_s(found: Found, blocks: Bytes) -> None:
    blocks[:, :2] = found.scales.astype("<f2")[:, np.newaxis].view(np.uint8)
    blocks[:, 2:34] = found.indices.astype(np.uint8)
    words = found.levels.astype(np.uint16) << 12 | found.signs[:, ::4].astype(np.uint16) << 15
    for g in range(4):
        words |= found.indices[:, g::4] >> 8 << (3 * g)
    blocks[:, 34:] = words.astype("<u2").view(np.uint8)


def _pack_iq1_m(found: Found, blocks: Bytes) -> None:
    blocks[:, :32] = found.indices.astype(np.uint8)
    high = (found.indices >> 8).astype(np.uint8) | found.signs << 3
    blocks[:, 32:48] = high[:, ::2] | high[:, 1::2] << 4
    d = found.scales.astype(np.float16).view(np.uint16)
    words = d[:, np.newaxis] >> (4 * np.arange(4, dtype=np.uint16)) << 12
    for j in range(4):
        words |= found.levels[:, j::4].astype(np.uint16) << (3 * j)
    blocks[:, 48:] = words.astype("<u2").view(np.uint8)


@kernel
def _refine_fours(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 4, FREE)


@kernel
def _refine_even_fours(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 4, EVEN)


@kernel
def _refine_eights(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 8, FREE)


@kernel
def _refine_even_eights(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 8, EVEN)


@kernel
def _refine_shifted_eights(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
) -> None:
    _refine_superblocks(weights, importance, skipped, decoded, points, rules, found, better, 8, SHIFTED)


@inline
def _refine_superblocks(
    weights: Any,
    importance: Any,
    skipped: Any,
    decoded: Any,
    points: Any,
    rules: Any,
    found: Any,
    better: Any,
    group: Any,
    kind: Any,
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
    points, rules
        The grid, and the rules of the type.
    found, better
        Filled for each superblock: what the search found, keys for indices, and whether it is better. Signs
        of iq1 are 1 where a shift is down.
    group, kind
        Weights in a group; the kind of the search. Constants.
    """
    size = rules.size
    scratch = new_floats(SUPERBLOCK * TILE)
    before = new_floats(SUPERBLOCK * TILE)
    memory = new_memory(group)
    kept = new_choice(group)
    trial = new_choice(group)
    total = decoded.size // SUPERBLOCK
    for first in range(0, total, TILE):
        count = min(TILE, total - first)
        gather_tile(weights, skipped + first, count, weights.size // SUPERBLOCK, scratch, size, memory.tile)
        gather_weights(importance, skipped + first, count, scratch, size, memory.weight)
        gather_tile(decoded, first, count, total, scratch, size, before)
        error = splat(_ZERO, TILE)
        for at in range(0, SUPERBLOCK * TILE, TILE):
            residue = load(memory.tile, at, TILE) - load(before, at, TILE)
            error = error + load(memory.weight, at, TILE) * residue * residue
        if kind == EVEN:
            find_odd(memory)
        d, is_better = _refine(points, rules, memory, group, kind, to_beat(error), trial, kept)
        for r in range(count):
            better[first + r] = lane(is_better, r)
            found.scales[first + r] = lane(d, r)
            for j in range(SUPERBLOCK // size):
                found.levels[first + r, j] = kept.levels[j * TILE + r]
            for n in range(SUPERBLOCK // group):
                found.indices[first + r, n] = kept.keys[place_of(n * group, size, group) + r]
            for n in range(SUPERBLOCK // 8):
                found.signs[first + r, n] = kept.marks[place_of(n * 8, size, 8) + r]


@inline
def _refine(
    points: Any, rules: Any, memory: Any, group: Any, kind: Any, default_error: Any, trial: Any, kept: Any
) -> Any:
    """Improve sixteen superblocks; return d and the lanes in which it is, with `kept`, better."""
    size = rules.size
    least = default_error
    best_d = splat(_ZERO, TILE)
    any_better = best_d < _ZERO
    d = best_d
    fits = new_floats(2 * 16 * TILE)
    sums = new_floats(3 * WIDTH)
    for turn in range(2 + rules.rounds):
        searching = turn <= rules.rounds
        unit_d = repeat(d * rules.unit, WIDTH)
        error = splat(_ZERO, TILE)
        sum_rq = splat(_ZERO, TILE)
        sum_q2 = splat(_ZERO, TILE)
        for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
            # At first the real scale is searched, then its integer.
            largest = _largest_magnitude(memory.tile, size * at, size)
            middle = load(trial.levels, at, WIDTH)
            level = middle
            scale = splat(_ZERO, WIDTH)
            lowest = splat(_INFINITY, WIDTH)
            n_trials = 3 if searching else 0
            for k in range(n_trials if turn else _TRIALS):
                this = maximum(minimum(middle + (k - 1), rules.highest), 0)
                this_scale = unit_d * float_of(2 * this + 1)
                if turn == 0:
                    this_scale = largest / (rules.first + np.float32(k) * rules.step)
                if turn == 0 and kind == SHIFTED:
                    this_error = error_of_levels(points, rules, memory, at, this_scale)
                else:
                    this_error = least_error(points, rules, memory, group, kind, at, this_scale)
                better = this_error < lowest
                lowest = select(better, this_error, lowest)
                scale = select(better, this_scale, scale)
                level = select(better, this, level)
            if turn:
                scale = unit_d * float_of(2 * level + 1)
            if searching:
                take_points(points, rules, memory, group, kind, at, scale, trial)
            part, part_rq, part_q2 = sums_of_points(points, rules, memory, group, kind, at, scale, trial)
            if turn == 0:
                store(fits, at, scale + part_rq / part_q2)
                store(fits, 16 * TILE + at, part_q2)
            else:
                store(trial.levels, at, level)
                integer = float_of(2 * level + 1)
                store(sums, 0, part)
                store(sums, WIDTH, part_rq * integer)
                store(sums, 2 * WIDTH, part_q2 * integer * integer)
                for i in range(0, WIDTH, TILE):
                    error = error + load(sums, i, TILE)
                    sum_rq = sum_rq + load(sums, WIDTH + i, TILE)
                    sum_q2 = sum_q2 + load(sums, 2 * WIDTH + i, TILE)
        if turn == 0:
            d = _round_together(fits, rules, trial.levels)
        else:
            better = error < least
            any_better = any_better | better
            least = select(better, error, least)
            best_d = select(better, d, best_d)
            _keep(better, trial.levels, kept.levels, SUPERBLOCK // size)
            _keep(better, trial.keys, kept.keys, SUPERBLOCK // group)
            _keep(better, trial.marks, kept.marks, SUPERBLOCK // 8)
            if turn > 1 and not any_lane(better):
                break
            d = as_half(d + sum_rq / (sum_q2 * rules.unit))
    return best_d, any_better


@inline
def _keep(better: Any, trial: Any, kept: Any, count: Any) -> None:
    for at in range(0, count * TILE, TILE):
        store(kept, at, select(better, load(trial, at, TILE), load(kept, at, TILE)))


@inline
def _largest_magnitude(tile: Any, start: Any, size: Any) -> Any:
    largest = splat(_ZERO, WIDTH)
    for at in range(start, start + size * WIDTH, WIDTH):
        largest = maximum(largest, absolute(load(tile, at, WIDTH)))
    return largest


@inline
def _round_together(fits: Any, rules: Any, levels: Any) -> Any:
    """Find d, a half, and the s whose products come closest to `fits`."""
    count = SUPERBLOCK // rules.size
    highest = np.float32(2 * rules.highest + 1)
    largest = splat(_ZERO, TILE)
    for j in range(count):
        largest = maximum(largest, load(fits, j * TILE, TILE))
    best = largest / highest
    least = splat(_INFINITY, TILE)
    for k in range(_UNITS):
        share = highest * (np.float32(0.65) + np.float32(k) * np.float32(0.02))
        d = largest / share
        inverse = share / largest
        cost = splat(_ZERO, TILE)
        for j in range(count):
            scale = load(fits, j * TILE, TILE)
            ds = d * (_TWO * _nearest_level(scale * inverse, rules) + _ONE) - scale
            cost = cost + load(fits, (16 + j) * TILE, TILE) * ds * ds
        better = cost < least
        least = select(better, cost, least)
        best = select(better, d, best)
    d = as_half(best / rules.unit)
    inverse = _ONE / (d * rules.unit)
    for j in range(count):
        store(levels, j * TILE, integer_of(_nearest_level(load(fits, j * TILE, TILE) * inverse, rules)))
    return d


@inline
def _nearest_level(steps: Any, rules: Any) -> Any:
    """s, for which 2 s + 1 is nearest, float32."""
    highest = np.float32(rules.highest)
    return maximum(minimum((steps - _ONE) * _HALF + SHIFT, SHIFT + highest), SHIFT) - SHIFT
