"""q2_K, q4_K and q5_K with less error than ggml's: weight = d * scale * level - dmin * min.

Blocks are those of `q2_k` and `q45_k`. Four sets of numbers make one: d and dmin, the integer scales and mins
of sub-blocks, and the levels of weights. For given scales and offsets each level follows by rounding; what to
search is the rest, and it takes turns:

1. Fit: the best real scale s and offset o of each sub-block by `search.affine_search`, then by least squares
   over the levels that these give. About the optimum the error is E(s, o) = E + A ds^2 - 2 B ds do + C do^2
   with A = sum w q^2, B = sum w q, C = sum w, while the levels stay.
2. Round together: try d and dmin in pairs around largest / highest; for each, every sub-block takes the scale
   above or below s / d, and the min that is best beside it. E tells what all that costs, without a
   look at the weights.
3. Choose: with d and dmin fixed, try the scales and mins around each sub-block's, and round all its weights
   anew for each pair. Levels move against each other, so the error has many small valleys: a search only
   downhill would stay in the first. A scale that grows takes the min along, so that the middle of the range
   stays in place.
4. Solve: with integers and levels fixed, the error is quadratic in d and dmin; two equations. Back to 3.

The better of ggml's block and of what 2 and 3 find goes through 4 and 3 until nothing moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import q2_k, q45_k
from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.best import (
    as_half,
    empty_fit,
    gather_tile,
    gather_weights,
    half_at,
    to_beat,
    write_better,
)
from ggplan.quants.codecs import Rows
from ggplan.quants.half import floats_of
from ggplan.quants.layout32 import flat
from ggplan.quants.memory import load, new_floats, new_integers, store
from ggplan.quants.search import affine_search
from ggplan.quants.superblock import SHIFT, SUPERBLOCK, TILE, position, requantize
from ggplan.quants.vector import (
    WIDTH,
    absolute,
    any_lane,
    float_of,
    integer_of,
    maximum,
    minimum,
    repeat,
    select,
    splat,
)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_INFINITY = np.float32(np.inf)
_FIRST, _STEP, _TRIALS = np.float32(-0.9), np.float32(0.1), 19
_POLISHES = 2
_PAIRS = 12
_ROUNDS = 4

# How far from a sub-block's scale and min to look for better ones, at first and then. ggml itself takes twice
# as long with an importance matrix.
_RADII = np.array((3, 2), np.int64)
_RADII_WITH_IMPORTANCE = np.array((5, 3), np.int64)
_SINGULAR = np.float32(1e-5)


def encode_q2_k(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 84 bytes for 256 weights."""
    q2_k.encode(rows, importance, out)
    columns = np.empty(0, np.float32) if importance is None else importance
    _refine_q2_k(flat(rows), flat(columns), 16, _radii(importance), out.reshape(-1))


def encode_q4_k(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 144 bytes for 256 weights."""
    q45_k.encode_q4_k(rows, importance, out)
    columns = np.empty(0, np.float32) if importance is None else importance
    _refine_q45_k(flat(rows), flat(columns), 32, 15, _radii(importance), out.reshape(-1))


def encode_q5_k(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 176 bytes for 256 weights."""
    q45_k.encode_q5_k(rows, importance, out)
    columns = np.empty(0, np.float32) if importance is None else importance
    _refine_q45_k(flat(rows), flat(columns), 32, 31, _radii(importance), out.reshape(-1))


def _radii(importance: NDArray[np.float32] | None) -> NDArray[np.int64]:
    return _RADII if importance is None else _RADII_WITH_IMPORTANCE


@kernel
def _refine_q2_k(weights: Any, importance: Any, size: Any, radii: Any, out: Any) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(SUPERBLOCK * TILE)
    scratch = new_floats(SUPERBLOCK * TILE)
    scales = new_integers(16 * TILE)
    mins = new_integers(16 * TILE)
    units = new_integers(2 * TILE)
    levels = new_integers(SUPERBLOCK * TILE)
    block = new_integers(84 * TILE)
    blocks = np.empty(84 * TILE, np.uint8)
    fit = empty_fit()
    total = weights.size // SUPERBLOCK
    for first in range(0, total, TILE):
        count = min(TILE, total - first)
        gather_tile(weights, first, count, total, scratch, size, tile)
        gather_weights(importance, first, count, scratch, size, weight)
        for r in range(TILE):
            at = (first + min(r, count - 1)) * 84
            for j in range(16):
                scales[j * TILE + r] = out[at + j] & 15
                mins[j * TILE + r] = out[at + j] >> 4
            units[r] = half_at(out, at + 80)
            units[TILE + r] = half_at(out, at + 82)
        d, dmin, better = _refine(tile, weight, size, 3, 15, units, scales, mins, radii, scratch)
        if any_lane(better):
            q2_k.pack_scales(d, dmin, scales, mins, block, fit)
            for j in range(16):
                requantize(tile, tile, fit, j, size, 0, 3, levels)
            q2_k.pack_levels(levels, block)
            write_better(block, 84, better, count, blocks, out, first)


@kernel
def _refine_q45_k(weights: Any, importance: Any, size: Any, highest: Any, radii: Any, out: Any) -> None:
    block_bytes = 144 if highest == 15 else 176
    tile = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(SUPERBLOCK * TILE)
    scratch = new_floats(SUPERBLOCK * TILE)
    scales = new_integers(8 * TILE)
    mins = new_integers(8 * TILE)
    units = new_integers(2 * TILE)
    levels = new_integers(SUPERBLOCK * TILE)
    block = new_integers(block_bytes * TILE)
    blocks = np.empty(block_bytes * TILE, np.uint8)
    fit = empty_fit()
    total = weights.size // SUPERBLOCK
    for first in range(0, total, TILE):
        count = min(TILE, total - first)
        gather_tile(weights, first, count, total, scratch, size, tile)
        gather_weights(importance, first, count, scratch, size, weight)
        for r in range(TILE):
            at = (first + min(r, count - 1)) * block_bytes
            for j in range(4):
                last = out[at + 12 + j]
                scales[j * TILE + r] = out[at + 4 + j] & 63
                mins[j * TILE + r] = out[at + 8 + j] & 63
                scales[(4 + j) * TILE + r] = (last & 15) | (out[at + 4 + j] >> 6 << 4)
                mins[(4 + j) * TILE + r] = (last >> 4) | (out[at + 8 + j] >> 6 << 4)
            units[r] = half_at(out, at)
            units[TILE + r] = half_at(out, at + 2)
        d, dmin, better = _refine(tile, weight, size, highest, 63, units, scales, mins, radii, scratch)
        if any_lane(better):
            q45_k.pack_scales(d, dmin, scales, mins, 63, block, fit)
            for j in range(8):
                requantize(tile, tile, fit, j, size, 0, highest, levels)
            if highest == 31:
                q45_k.pack_fifth_bits(levels, block)
            q45_k.pack_levels(levels, block, block_bytes - 128)
            write_better(block, block_bytes, better, count, blocks, out, first)


@inline
def _refine(
    tile: Any,
    weight: Any,
    size: Any,
    highest: Any,
    largest: Any,
    units: Any,
    scales: Any,
    mins: Any,
    radii: Any,
    scratch: Any,
) -> Any:
    """Improve sixteen superblocks.

    Parameters
    ----------
    tile, weight
        The weights and what their errors count, laid out as `superblock` says.
    size, highest, largest
        Weights in a sub-block; the highest level; the largest scale and min.
    units, scales, mins
        What the default encoder found: the bits of d and dmin, then the integers, which are improved.
    radii
        How far to look for better integers, at first and then.
    scratch
        As large as the tile.

    Returns
    -------
    tuple
        d, dmin, and the lanes in which the three are better than the default's.
    """
    count = SUPERBLOCK // size
    new_scales = new_integers(16 * TILE)
    new_mins = new_integers(16 * TILE)
    fits = new_floats(5 * 16 * TILE)
    d = floats_of(load(units, 0, TILE))
    dmin = floats_of(load(units, TILE, TILE))
    least = splat(_INFINITY, TILE)
    default_error = least
    error = least
    moved = True
    for turn in range(2 + _ROUNDS):
        error, solved_d, solved_dmin = _measure(tile, weight, size, highest, d, dmin, scales, mins)
        if turn == 0:
            least = to_beat(error)
            default_error = least
        if turn == 1 + _ROUNDS or not moved:
            break
        if turn == 0:
            _fit(tile, weight, size, highest, scratch, fits)
            this_d, this_dmin = _round_together(fits, count, largest, new_scales, new_mins)
        else:
            this_d, this_dmin = solved_d, solved_dmin
            _keep(d == d, count, scales, mins, new_scales, new_mins)
        this_error = _choose(
            tile, weight, size, highest, largest, this_d, this_dmin, new_scales, new_mins,
            radii[min(turn, 1)],
        )  # fmt: skip
        better = this_error < least
        moved = turn == 0 or any_lane(better)
        least = select(better, this_error, least)
        d = select(better, this_d, d)
        dmin = select(better, this_dmin, dmin)
        _keep(better, count, new_scales, new_mins, scales, mins)
    return d, dmin, error < default_error


@inline
def _keep(better: Any, count: Any, new_scales: Any, new_mins: Any, scales: Any, mins: Any) -> None:
    """Take the new integers in the lanes that are better."""
    """Take the new integers in the lanes that are better."""
    for at in range(0, count * TILE, TILE):
        store(scales, at, select(better, load(new_scales, at, TILE), load(scales, at, TILE)))
        store(mins, at, select(better, load(new_mins, at, TILE), load(mins, at, TILE)))


@inline
def _choose(
    tile: Any,
    weight: Any,
    size: Any,
    highest: Any,
    largest: Any,
    d: Any,
    dmin: Any,
    scales: Any,
    mins: Any,
    radius: Any,
) -> Any:
    """Move `scales` and `mins` to the best integers within `radius`; return the error of superblocks."""
    ceiling = SHIFT + np.float32(highest)
    wide_d = repeat(d, WIDTH)
    wide_dmin = repeat(dmin, WIDTH)
    mins_per_scale = select(
        wide_dmin > _ZERO, np.float32(highest) * _HALF * absolute(wide_d) / wide_dmin, _ZERO
    )
    mins_per_scale = minimum(mins_per_scale, np.float32(largest))
    total = splat(_ZERO, TILE)
    errors = new_floats(WIDTH)
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        start = size * at
        middle_scale = load(scales, at, WIDTH)
        middle_min = float_of(load(mins, at, WIDTH))
        best_scale = middle_scale
        best_min = load(mins, at, WIDTH)
        least = splat(_INFINITY, WIDTH)
        for step in range(-radius, radius + 1):
            this_scale = maximum(minimum(middle_scale + step, largest), 0)
            scale = wide_d * float_of(this_scale)
            inverse = _ONE / scale
            middle = middle_min + mins_per_scale * float_of(this_scale - middle_scale) + _HALF
            for side in range(-radius, radius + 1):
                this_min = maximum(minimum(integer_of(middle) + side, largest), 0)
                offset = wide_dmin * float_of(this_min)
                error = splat(_ZERO, WIDTH)
                for i in range(0, size * WIDTH, WIDTH):
                    value = load(tile, start + i, WIDTH) + offset
                    level = maximum(minimum(value * inverse + SHIFT, ceiling), SHIFT) - SHIFT
                    residue = scale * level - value
                    error = error + load(weight, start + i, WIDTH) * residue * residue
                better = error < least
                least = select(better, error, least)
                best_scale = select(better, this_scale, best_scale)
                best_min = select(better, this_min, best_min)
        store(scales, at, best_scale)
        store(mins, at, best_min)
        store(errors, 0, least)
        for part in range(0, WIDTH, TILE):
            total = total + load(errors, part, TILE)
    return total


@inline
def _fit(tile: Any, weight: Any, size: Any, highest: Any, scratch: Any, fits: Any) -> None:
    """Find each sub-block's real scale and offset, and what moving them costs: s, o, A, B and C in `fits`."""
    ceiling = SHIFT + np.float32(highest)
    for at in range(0, SUPERBLOCK // size * TILE, WIDTH):
        start = size * at
        scale, offset, _, _, sum_w = affine_search(
            tile, start, size, weight[start:], scratch, np.float32(highest), _FIRST, _STEP, _TRIALS, False
        )
        sum_q = sum_w
        sum_q2 = sum_w
        for _ in range(_POLISHES):
            inverse = _ONE / scale
            sum_q = splat(_ZERO, WIDTH)
            sum_q2 = splat(_ZERO, WIDTH)
            sum_r = splat(_ZERO, WIDTH)
            sum_rq = splat(_ZERO, WIDTH)
            for i in range(0, size * WIDTH, WIDTH):
                value = load(tile, start + i, WIDTH) + offset
                q = maximum(minimum(value * inverse + SHIFT, ceiling), SHIFT) - SHIFT
                w = load(weight, start + i, WIDTH)
                wr = w * (value - scale * q)
                wq = w * q
                sum_q = sum_q + wq
                sum_q2 = sum_q2 + wq * q
                sum_r = sum_r + wr
                sum_rq = sum_rq + wr * q
            determinant = sum_w * sum_q2 - sum_q * sum_q
            solvable = determinant > _SINGULAR * sum_w * sum_q2
            scale = scale + select(solvable, (sum_w * sum_rq - sum_q * sum_r) / determinant, _ZERO)
            offset = offset + select(solvable, (sum_q * sum_rq - sum_q2 * sum_r) / determinant, _ZERO)
        store(fits, at, scale)
        store(fits, 16 * TILE + at, offset)
        store(fits, 32 * TILE + at, sum_q2)
        store(fits, 48 * TILE + at, sum_q)
        store(fits, 64 * TILE + at, sum_w)


@inline
def _assign(fits: Any, j: Any, d: Any, dmin: Any, inverse_d: Any, inverse_dmin: Any, largest: Any) -> Any:
    """The integers nearest to a fit, in the sense of its error: the scale, the min, what they cost."""
    scale = load(fits, j * TILE, TILE)
    offset = load(fits, (16 + j) * TILE, TILE)
    a = load(fits, (32 + j) * TILE, TILE)
    b = load(fits, (48 + j) * TILE, TILE)
    c = load(fits, (64 + j) * TILE, TILE)
    slope = b / c
    least = splat(_INFINITY, TILE)
    best_scale = splat(0, TILE)
    best_min = splat(0, TILE)
    below = maximum(minimum(scale * inverse_d, np.float32(largest)), _ZERO)
    for side in range(2):
        this_scale = minimum(integer_of(below) + side, largest)
        ds = d * float_of(this_scale) - scale
        value = (offset + slope * ds) * inverse_dmin
        value = maximum(minimum(value, np.float32(largest)), _ZERO)
        this_min = integer_of(value + _HALF)
        do = dmin * float_of(this_min) - offset
        cost = a * ds * ds - (b + b) * ds * do + c * do * do
        better = cost < least
        least = select(better, cost, least)
        best_scale = select(better, this_scale, best_scale)
        best_min = select(better, this_min, best_min)
    return best_scale, best_min, least


@inline
def _round_together(fits: Any, count: Any, largest: Any, scales: Any, mins: Any) -> Any:
    """Find d and dmin, both halves, and the integers whose products come closest to `fits`."""
    largest_scale = splat(_ZERO, TILE)
    largest_offset = splat(_ZERO, TILE)
    for j in range(count):
        largest_scale = maximum(load(fits, j * TILE, TILE), largest_scale)
        largest_offset = maximum(load(fits, (16 + j) * TILE, TILE), largest_offset)
    best_d = largest_scale / np.float32(largest)
    best_dmin = largest_offset / np.float32(largest)
    least = splat(_INFINITY, TILE)
    finest = np.float32(largest) + _ONE
    step = np.float32(np.float32(0.25) * finest / np.float32(_PAIRS))
    for k in range(_PAIRS):
        inverse_d = (finest - step * np.float32(k)) / largest_scale
        d = largest_scale / (finest - step * np.float32(k))
        for m in range(_PAIRS):
            inverse_dmin = (finest - step * np.float32(m)) / largest_offset
            dmin = largest_offset / (finest - step * np.float32(m))
            total = splat(_ZERO, TILE)
            for j in range(count):
                _, _, cost = _assign(fits, j, d, dmin, inverse_d, inverse_dmin, largest)
                total = total + cost
            better = total < least
            least = select(better, total, least)
            best_d = select(better, d, best_d)
            best_dmin = select(better, dmin, best_dmin)
    d = as_half(best_d)
    dmin = as_half(best_dmin)
    for j in range(count):
        scale, low, _ = _assign(fits, j, d, dmin, _ONE / d, _ONE / dmin, largest)
        store(scales, j * TILE, scale)
        store(mins, j * TILE, low)
    return d, dmin


@inline
def _measure(
    tile: Any, weight: Any, size: Any, highest: Any, d: Any, dmin: Any, scales: Any, mins: Any
) -> Any:
    """Look at superblocks as they stand.

    Returns their error, each weight worked out as by a decoder, and the d and dmin, as halves, that are best
    for these integers and levels.
    """
    ceiling = SHIFT + np.float32(highest)
    total = splat(_ZERO, TILE)
    a = splat(_ZERO, TILE)
    b = splat(_ZERO, TILE)
    c = splat(_ZERO, TILE)
    along_d = splat(_ZERO, TILE)
    along_dmin = splat(_ZERO, TILE)
    for j in range(SUPERBLOCK // size):
        integer_scale = float_of(load(scales, j * TILE, TILE))
        integer_min = float_of(load(mins, j * TILE, TILE))
        scale = d * integer_scale
        offset = dmin * integer_min
        inverse = _ONE / scale
        sum_w = splat(_ZERO, TILE)
        sum_q = splat(_ZERO, TILE)
        sum_q2 = splat(_ZERO, TILE)
        sum_r = splat(_ZERO, TILE)
        sum_r2 = splat(_ZERO, TILE)
        sum_rq = splat(_ZERO, TILE)
        for i in range(size):
            at = position(j, i, size)
            x = load(tile, at, TILE)
            w = load(weight, at, TILE)
            q = maximum(minimum((x + offset) * inverse + SHIFT, ceiling), SHIFT) - SHIFT
            r = x - (scale * q - offset)
            wr = w * r
            wq = w * q
            sum_w = sum_w + w
            sum_q = sum_q + wq
            sum_q2 = sum_q2 + wq * q
            sum_r = sum_r + wr
            sum_r2 = sum_r2 + wr * r
            sum_rq = sum_rq + wr * q
        total = total + sum_r2
        a = a + integer_scale * integer_scale * sum_q2
        b = b + integer_scale * integer_min * sum_q
        c = c + integer_min * integer_min * sum_w
        along_d = along_d + integer_scale * sum_rq
        along_dmin = along_dmin - integer_min * sum_r
    # a dd - b dm = along_d, c dm - b dd = along_dmin
    determinant = a * c - b * b
    solvable = determinant > _SINGULAR * a * c
    dd = select(solvable, (along_d * c + along_dmin * b) / determinant, along_d / a)
    dm = select(solvable, (along_dmin * a + along_d * b) / determinant, _ZERO)
    return total, as_half(d + dd), as_half(dmin + dm)
