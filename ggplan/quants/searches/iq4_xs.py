"""ggml's search for iq4_xs: iq4_nl's, for each of the eight sub-blocks of 32 weights.

With an importance matrix the error of a weight x counts importance * sqrt(2 ms + x^2), ms the mean square
of all 256 weights, else x^2. Then d is set so that the scale of the largest magnitude becomes -32, and each
weight takes the level nearest to it under its rounded scale; d is rounded to a half only when it is stored.
Where all scales are zero, that half is -0.0.

From llama.cpp b11434, `ggml/src/ggml-quants.c`: quantize_row_iq4_nl_impl with a superblock of 256.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.formats.fields import Symmetric, empty_symmetric, memory_of
from ggplan.quants.half import halves_of
from ggplan.quants.kernels import I64, F32s, U8s, U16s, Weights, inline, kernel, scratch
from ggplan.quants.memory import floats_at, load, store
from ggplan.quants.searches.iq4 import TERMS_ROOM, best_scales, nearest_index, weigh_by_square
from ggplan.quants.searches.superblock import (
    SUPERBLOCK,
    TILE,
    Superblocks,
    first_superblock,
    load_tile,
    nearest,
    position,
    sum_of_squares,
    tile_in,
    weigh_by_importance,
)
from ggplan.quants.searches.symmetric import store_fields
from ggplan.quants.vector import WIDTH, absolute, float_of, maximum, minimum, select, splat

_SIZE = 32
_COUNT = SUPERBLOCK // _SIZE

_ZERO = np.float32(0)
_ONE = np.float32(1)


def search(given: Superblocks) -> Symmetric:
    """The fields that ggml gives superblocks."""
    found = empty_symmetric(given.n, _COUNT)
    _search(*given, scratch(TERMS_ROOM), *memory_of(found))
    return found


@kernel
def _search(
    weights: Weights, count: I64, columns: F32s, per_row: I64, skipped: I64, room: F32s, terms: F32s,
    d: U16s, scales: U8s, codes: U8s,
) -> None:  # fmt: skip
    tile = tile_in(room)
    energy = splat(_ZERO, TILE)
    for number in range((count + TILE - 1) // TILE):
        first = first_superblock(number, count)
        load_tile(weights, first, _SIZE, tile.weights)
        if per_row > 0:
            load_tile(columns, (skipped + first) % per_row, _SIZE, tile.columns)
            energy = sum_of_squares(tile.weights, _SIZE) * np.float32(2 / SUPERBLOCK)
        for at in range(0, _COUNT * TILE, WIDTH):
            # As many sub-blocks as there are lanes make a tile of iq4_nl's.
            sub_blocks = floats_at(tile.weights, _SIZE * at)
            if per_row > 0:
                weigh_by_importance(tile.weights, tile.columns, _SIZE * at, _SIZE, energy, tile.errors)
            else:
                weigh_by_square(sub_blocks, tile.errors)
            store(tile.fit.scale, at, best_scales(sub_blocks, tile.errors, terms))
        unit = _round_scales(tile.fit.scale, tile.scales)
        round_to_levels(tile, unit)
        store_fields(tile, halves_of(unit), _COUNT, first, d, scales, codes)


@inline
def _round_scales(scales: Any, integers: Any) -> Any:
    """Give the scale of largest magnitude the integer -32, the others their share; return their scale."""
    extreme = splat(_ZERO, TILE)
    largest = splat(_ZERO, TILE)
    for j in range(_COUNT):
        scale = load(scales, j * TILE, TILE)
        larger = absolute(scale) > largest
        largest = select(larger, absolute(scale), largest)
        extreme = select(larger, scale, extreme)
    d = -extreme / np.float32(32)
    inverse = _inverse_or_zero(d)
    for j in range(_COUNT):
        integer = nearest(inverse * load(scales, j * TILE, TILE))
        store(integers, j * TILE, maximum(minimum(integer, 31), -32))
    return d


@inline
def round_to_levels(tile: Any, unit: Any) -> None:
    """Give all weights the codes of the nearest levels, by the scales that are stored, in this unit."""
    for j in range(_COUNT):
        inverse = _inverse_or_zero(unit * float_of(load(tile.scales, j * TILE, TILE)))
        for i in range(_SIZE):
            value = load(tile.weights, position(j, i, _SIZE), TILE) * inverse
            store(tile.levels, (_SIZE * j + i) * TILE, nearest_index(value))


@inline
def _inverse_or_zero(values: Any) -> Any:
    return select(values == _ZERO, _ZERO, _ONE / values)
