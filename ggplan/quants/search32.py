"""Kernels of q4_0, q4_1, q5_0 and q5_1 that an imatrix guides.

The blocks are those of `blocks32`. Instead of taking the scale from the extreme weights, ggml tries scales
around that one (`search`) and keeps the one of the least error, in which a weight x counts

    importance of its column * sqrt(sum(x^2) / columns + x^2)

The sum runs over the whole row: of all ggml's types, only these have blocks that depend on the rest of their
row. From llama.cpp b11434, `quantize_row_q4_0_impl` and its like in `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.layout32 import LANES, TILE_SIZE, fill_tile, store_half, store_quants
from ggplan.quants.search import affine_search, symmetric_search
from ggplan.quants.superblock import nearest
from ggplan.quants.vector import load, maximum, minimum, splat, square_root, store, transpose

_ZERO = np.float32(0)

# The trials of affine_search: (highest - 0.9 + 0.05 k) / range, for k from 0 to 36.
_FIRST = np.float32(-0.9)
_STEP = np.float32(0.05)
_TRIALS = 37


@kernel
def symmetric(weights: Any, importance: Any, middle: Any, out: Any) -> None:
    """Encode to q4_0 (`middle` 8) or q5_0 (16): weight = d (q - middle)."""
    block_bytes = 18 if middle == 8 else 22
    energies = _row_energies(weights, importance.size)
    tile = np.empty(TILE_SIZE, np.float32)
    errors = np.empty(TILE_SIZE, np.float32)
    scratch = np.empty(TILE_SIZE, np.float32)
    found = np.empty((3, LANES), np.float32)
    blocks = weights.size // 32
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        fill_tile(weights, first, count, blocks, scratch, tile)
        _fill_error_weights(importance, energies, first, count, tile, scratch, errors)
        scale, kept_scale, kept_offset = symmetric_search(
            tile, 0, 32, LANES, errors, 0, scratch, np.float32(middle)
        )
        store(found[0], 0, scale)
        store(found[1], 0, kept_scale)
        store(found[2], 0, kept_offset)
        for lane in range(count):
            at = (first + lane) * block_bytes
            store_half(out, at, found[0, lane])
            start = (first + lane) * 32
            low = _levels(weights, start, found[1, lane], found[2, lane], -middle, middle - 1) + middle
            high = _levels(weights, start + 16, found[1, lane], found[2, lane], -middle, middle - 1) + middle
            store_quants(out, at + 2, low, high, 2 * middle - 1)


@kernel
def affine(weights: Any, importance: Any, highest: Any, out: Any) -> None:
    """Encode to q4_1 (`highest` 15) or q5_1 (31): weight = d q + m."""
    block_bytes = 20 if highest == 15 else 24
    energies = _row_energies(weights, importance.size)
    tile = np.empty(TILE_SIZE, np.float32)
    errors = np.empty(TILE_SIZE, np.float32)
    scratch = np.empty(TILE_SIZE, np.float32)
    found = np.empty((4, LANES), np.float32)
    blocks = weights.size // 32
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        fill_tile(weights, first, count, blocks, scratch, tile)
        _fill_error_weights(importance, energies, first, count, tile, scratch, errors)
        scale, offset, kept_scale, kept_offset, _ = affine_search(
            tile, 0, 32, errors, scratch, np.float32(highest), _FIRST, _STEP, _TRIALS, False
        )
        store(found[0], 0, scale)
        store(found[1], 0, kept_scale)
        store(found[2], 0, kept_offset)
        store(found[3], 0, -offset)
        for lane in range(count):
            at = (first + lane) * block_bytes
            store_half(out, at, found[0, lane])
            store_half(out, at + 2, found[3, lane])
            start = (first + lane) * 32
            low = _levels(weights, start, found[1, lane], found[2, lane], 0, highest)
            high = _levels(weights, start + 16, found[1, lane], found[2, lane], 0, highest)
            store_quants(out, at + 4, low, high, highest)


@inline
def _levels(weights: Any, start: Any, scale: Any, offset: Any, lowest: Any, highest: Any) -> Any:
    """The levels of sixteen weights that a search ended with."""
    level = nearest((load(weights, start, 16) + offset) * scale)
    return maximum(minimum(level, highest), lowest)


@inline
def _fill_error_weights(
    importance: Any, energies: Any, first: Any, count: Any, tile: Any, scratch: Any, errors: Any
) -> None:
    """What the errors of the weights in `tile` count, in its layout."""
    blocks_per_row = importance.size // 32
    fill_tile(importance, first, count, blocks_per_row, scratch, errors)
    for lane in range(LANES):
        scratch[lane] = energies[(first + min(lane, count - 1)) // blocks_per_row]
    energy = load(scratch, 0, LANES)
    for at in range(0, TILE_SIZE, LANES):
        x = load(tile, at, LANES)
        store(errors, at, load(errors, at, LANES) * square_root(energy + x * x))


@inline
def _row_energies(weights: Any, columns: Any) -> Any:
    """The mean square of each row, summed in the order of the columns; sixteen rows at once, in lanes."""
    rows = weights.size // columns
    energies = np.empty((rows + 15) // 16 * 16, np.float32)
    piece = np.empty(256, np.float32)
    turned = np.empty(256, np.float32)
    for first in range(0, rows, 16):
        total = splat(_ZERO, 16)
        for column in range(0, columns, 16):
            for lane in range(16):
                row = min(first + lane, rows - 1)
                store(piece, 16 * lane, load(weights, row * columns + column, 16))
            transpose(piece, 0, 16, turned, 0, 16)
            for i in range(0, 256, 16):
                x = load(turned, i, 16)
                total = total + x * x
        store(energies, first, total / np.float32(columns))
    return energies
