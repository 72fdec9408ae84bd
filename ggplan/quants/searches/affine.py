"""ggml's search for superblocks of scales and minimums: q2_K, q4_K, q5_K.

Each sub-block gets a scale and an offset of its own (`ggml.affine_search`); these become integers under d and
dmin; then every weight is rounded again by what the block stores.

Without an importance matrix the error of a weight x counts |x| + rms, the root mean square of its sub-block,
in q4_K and q5_K. In q2_K it is not squared and counts |x|. The largest scale and offset get the highest
integer. With an importance matrix an error counts importance * sqrt(energy ms + x^2), ms the mean square of
the superblock, and d and dmin are searched for too.

From llama.cpp's `ggml/src/ggml-quants.c`: quantize_row_q2_K_ref and _impl, and q4_K's and q5_K's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.formats.fields import Affine, empty_affine, memory_of
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.kernels import F32, I64, F32s, U8s, U16s, Weights, inline, kernel
from ggplan.quants.memory import load, store
from ggplan.quants.searches.ggml import affine_search, quantize_scales, scales_by_largest
from ggplan.quants.searches.superblock import (
    SUPERBLOCK,
    TILE,
    Superblocks,
    first_superblock,
    load_tile,
    requantize,
    store_codes,
    store_fit,
    store_small,
    sum_of_squares,
    tile_in,
    weigh_by_importance,
)
from ggplan.quants.vector import WIDTH, absolute, float_of, minimum, splat, square_root

_ZERO = np.float32(0)


class Rules(NamedTuple):
    """What differs between types.

    Attributes
    ----------
    size
        Weights in a sub-block.
    highest, largest
        The highest code, and the largest scale and min.
    first, step, trials
        Those of `ggml.affine_search`.
    energy
        How much of the superblock's mean square weighs errors, with an importance matrix.
    """

    size: int
    highest: int
    largest: int
    first: float
    step: float
    trials: int
    energy: float = 0


def search(rules: Rules, with_importance: Rules, given: Superblocks) -> Affine:
    """The fields that ggml gives superblocks, by these rules or, with an importance matrix, by the others."""
    found = empty_affine(given.n, SUPERBLOCK // rules.size)
    if given.columns is not None:
        _with_importance(*given, *with_importance, *memory_of(found))
    elif rules.size == 16:
        _plain_q2_k(*given, *rules, *memory_of(found))
    else:
        _plain(*given, *rules, *memory_of(found))
    return found


def _search(
    weigh: Callable[..., None],
    round_scales: Callable[..., Any],
    limit: Callable[..., None],
    absolute_error: bool,
) -> Callable[..., None]:
    """A kernel of the search.

    Parameters
    ----------
    weigh
        Weighs the errors of sub-blocks side by side: (tile, start, size, energy).
    round_scales
        Makes integers of scales and gives their unit: (scales, weights, count, largest, integers).
    limit
        Makes of scales and mins, which are the bytes that ggml has them in, what its blocks hold of them:
        (tile, sub-blocks, highest, largest).
    absolute_error
        Whether errors count by their magnitude, not by their square.
    """

    @kernel
    def kernel_of_affine(
        weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s,
        size: I64, highest: I64, largest: I64, first_trial: F32, step: F32, trials: I64, energy: F32,
        d: U16s, dmin: U16s, scales: U8s, mins: U8s, codes: U8s,
    ) -> None:  # fmt: skip
        tile = tile_in(room)
        n = SUPERBLOCK // size
        mean = splat(_ZERO, TILE)
        for number in range((count + TILE - 1) // TILE):
            first = first_superblock(number, count)
            load_tile(weights, first, size, tile.weights)
            if per_row > 0:
                load_tile(columns, (skipped + first) % per_row, size, tile.columns)
                mean = energy * sum_of_squares(tile.weights, size) / np.float32(SUPERBLOCK)
            for at in range(0, n * TILE, WIDTH):
                start = size * at
                weigh(tile, start, size, mean)
                found = affine_search(
                    tile.weights, start, size, tile.errors, tile.scratch, np.float32(highest), first_trial,
                    step, trials, absolute_error,
                )  # fmt: skip
                store_fit(tile.fit, at, found)
            unit = round_scales(tile.fit.scale, tile.fit.weight, n, np.float32(largest), tile.scales)
            unit_min = round_scales(tile.fit.offset, tile.fit.weight, n, np.float32(largest), tile.mins)
            limit(tile, n, highest, largest)
            round_weights(tile, unit, unit_min, size, highest)
            store(d, first, halves_of(unit))
            store(dmin, first, halves_of(unit_min))
            store_small(tile.scales, n, scales, first)
            store_small(tile.mins, n, mins, first)
            store_codes(tile.levels, codes, first)

    return kernel_of_affine


@inline
def _weigh_by_size(tile: Any, start: Any, size: Any, mean: Any) -> None:
    """Let an error weigh the weight's size and the root mean square of its sub-block."""
    total = splat(_ZERO, WIDTH)
    for i in range(0, size * WIDTH, WIDTH):
        x = load(tile.weights, start + i, WIDTH)
        total = total + x * x
    rms = square_root(total / np.float32(size))
    for i in range(0, size * WIDTH, WIDTH):
        store(tile.errors, i, rms + absolute(load(tile.weights, start + i, WIDTH)))


@inline
def _weigh_by_magnitude(tile: Any, start: Any, size: Any, mean: Any) -> None:
    for i in range(0, size * WIDTH, WIDTH):
        store(tile.errors, i, absolute(load(tile.weights, start + i, WIDTH)))


@inline
def _weigh_by_importance(tile: Any, start: Any, size: Any, mean: Any) -> None:
    weigh_by_importance(tile.weights, tile.columns, start, size, mean, tile.errors)


@inline
def _by_largest(values: Any, weight: Any, count: Any, largest: Any, integers: Any) -> Any:
    return scales_by_largest(values, count, largest, integers)


@inline
def _clamp(tile: Any, n: Any, highest: Any, largest: Any) -> None:
    for at in range(0, n * TILE, TILE):
        store(tile.scales, at, minimum(load(tile.scales, at, TILE), largest))
        store(tile.mins, at, minimum(load(tile.mins, at, TILE), largest))


@inline
def _spill(tile: Any, n: Any, highest: Any, largest: Any) -> None:
    """As `_clamp` for q5_K alone. In the others what needs more bits, such as 255 for a negative scale, takes
    those of what is stored beside it.
    """
    if n == 16:
        _spill_q2_k(tile, n, highest, largest)
    elif highest == 15:
        _spill_pairs(tile.scales)
        _spill_pairs(tile.mins)
    else:
        _clamp(tile, n, highest, largest)


@inline
def _spill_q2_k(tile: Any, n: Any, highest: Any, largest: Any) -> None:
    for at in range(0, SUPERBLOCK, TILE):
        both = load(tile.scales, at, TILE) | (load(tile.mins, at, TILE) << 4)
        store(tile.scales, at, both & 15)
        store(tile.mins, at, (both >> 4) & 15)


@inline
def _spill_pairs(integers: Any) -> None:
    for j in range(4):
        near = load(integers, j * TILE, TILE)
        far = load(integers, (j + 4) * TILE, TILE)
        both = near | ((far >> 4) << 6)
        store(integers, j * TILE, both & 63)
        store(integers, (j + 4) * TILE, (far & 15) | (((both >> 6) & 3) << 4))


@inline
def round_weights(tile: Any, unit: Any, unit_min: Any, size: Any, highest: Any) -> None:
    """Round all weights by the scales and mins that are stored, in these units."""
    unit = floats_of(halves_of(unit))
    unit_min = floats_of(halves_of(unit_min))
    for j in range(SUPERBLOCK // size):
        store(tile.fit.scale, j * TILE, unit * float_of(load(tile.scales, j * TILE, TILE)))
        store(tile.fit.offset, j * TILE, unit_min * float_of(load(tile.mins, j * TILE, TILE)))
        requantize(tile.weights, tile.weights, tile.fit, j, size, 0, highest, tile.levels)


_plain = _search(_weigh_by_size, _by_largest, _clamp, absolute_error=False)
_plain_q2_k = _search(_weigh_by_magnitude, _by_largest, _spill_q2_k, absolute_error=True)
_with_importance = _search(_weigh_by_importance, quantize_scales, _spill, absolute_error=False)
