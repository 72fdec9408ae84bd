"""Kernels of q4_0, q4_1, q5_0 and q5_1 that an imatrix guides.

The blocks are those of `blocks32`. Instead of taking the scale from the extreme weights, ggml tries scales
around that one (`search`) and keeps the one of the least error, in which a weight x counts

    importance of its column * sqrt(sum(x^2) / columns + x^2)

The sum runs over the whole row: of all ggml's types, only these have blocks that depend on the rest of their
row. From llama.cpp b11434, `quantize_row_q4_0_impl` and its like in `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.half import halves_of
from ggplan.quants.layout32 import LANES, TILE_SIZE
from ggplan.quants.memory import load, load_weights, new_floats, new_integers, store, transpose
from ggplan.quants.search import affine_search, symmetric_search
from ggplan.quants.superblock import nearest
from ggplan.quants.vector import maximum, minimum, splat, square_root

_ZERO = np.float32(0)

# The trials of affine_search: (highest - 0.9 + 0.05 k) / range, for k from 0 to 36.
_FIRST = np.float32(-0.9)
_STEP = np.float32(0.05)
_TRIALS = 37

_ROWS = 16  # rows whose squares are summed side by side
_LARGEST_BLOCK = 24


def symmetric(weights: Rows, importance: NDArray[np.float32], middle: int, out: NDArray[np.uint8]) -> None:
    """Encode to q4_0 (`middle` 8) or q5_0 (16): weight = d (q - middle).

    Parameters
    ----------
    weights
        float32 (n_rows * n_columns,), n_columns a multiple of 32.
    importance
        float32 (n_columns,).
    out
        uint8 (n_rows * row_bytes,).
    """
    _encode(_symmetric, weights, importance, middle, out)


def affine(weights: Rows, importance: NDArray[np.float32], highest: int, out: NDArray[np.uint8]) -> None:
    """Encode to q4_1 (`highest` 15) or q5_1 (31): weight = d q + m. Arguments as of `symmetric`."""
    _encode(_affine, weights, importance, highest, out)


def _encode(
    kernel: Callable[..., None],
    weights: Rows,
    importance: NDArray[np.float32],
    parameter: int,
    out: NDArray[np.uint8],
) -> None:
    """Call a kernel, which takes whole tiles of blocks and of rows, for any number of them.

    Fewer get others beside them, which are forgotten. Importance is lengthened by its beginning for tiles
    that begin in one row and end in the next.
    """
    blocks = weights.size // 32
    if blocks == 0:
        return
    enough = max(_ROWS * importance.size, 32 * LANES)
    if weights.size < enough:
        weights = np.resize(weights, -(-enough // importance.size) * importance.size)
    whole = out if blocks >= LANES else np.empty(out.size // blocks * LANES, np.uint8)
    ring = np.resize(importance, importance.size + 32 * (LANES - 1))
    kernel(weights, ring, parameter, max(blocks, LANES), whole)
    if whole is not out:
        out[:] = whole[: out.size]


@kernel
def _symmetric(weights: Any, importance: Any, middle: Any, blocks: Any, out: Any) -> None:
    block_bytes = 18 if middle == 8 else 22
    tile = _new_tile(weights, importance, blocks)
    scratch = new_floats(TILE_SIZE)
    block = new_integers(_LARGEST_BLOCK * LANES)
    for tile_number in range((blocks + LANES - 1) // LANES):
        first = _load_tile(weights, importance, tile_number, blocks, tile)
        scale, kept_scale, kept_offset = symmetric_search(
            tile.weights, 0, 32, LANES, tile.errors, scratch, np.float32(middle), True
        )
        _store_half(block, 0, scale)
        _store_quants(tile.weights, kept_scale, kept_offset, -middle, middle - 1, block, 2)
        _store_blocks(block, block_bytes, out, first)


@kernel
def _affine(weights: Any, importance: Any, highest: Any, blocks: Any, out: Any) -> None:
    block_bytes = 20 if highest == 15 else 24
    tile = _new_tile(weights, importance, blocks)
    scratch = new_floats(TILE_SIZE)
    block = new_integers(_LARGEST_BLOCK * LANES)
    for tile_number in range((blocks + LANES - 1) // LANES):
        first = _load_tile(weights, importance, tile_number, blocks, tile)
        scale, offset, kept_scale, kept_offset, _ = affine_search(
            tile.weights, 0, 32, tile.errors, scratch, np.float32(highest), _FIRST, _STEP, _TRIALS, False
        )
        _store_half(block, 0, scale)
        _store_half(block, 2, -offset)
        _store_quants(tile.weights, kept_scale, kept_offset, 0, highest, block, 4)
        _store_blocks(block, block_bytes, out, first)


class _Tile(NamedTuple):
    """What a kernel keeps of the tile at hand.

    Attributes
    ----------
    weights, errors
        The weights, and how much the error of each counts.
    importance
        Importance in the layout of tiles: of the first `cycle` tiles, after which columns come round again.
    energies
        The mean square of each row.
    blocks_per_row, cycle
        Numbers.
    """

    weights: Any
    errors: Any
    importance: Any
    energies: Any
    blocks_per_row: Any
    cycle: Any


@inline
def _new_tile(weights: Any, importance: Any, blocks: Any) -> Any:
    """Room for tiles, and what all of them need."""
    blocks_per_row = importance.size // 32 - (LANES - 1)
    cycle = blocks_per_row
    while cycle % 2 == 0 and cycle // 2 * LANES % blocks_per_row == 0:
        cycle //= 2
    cycle = min(cycle, (blocks + LANES - 1) // LANES)
    return _Tile(
        new_floats(TILE_SIZE),
        new_floats(TILE_SIZE),
        new_floats(cycle * TILE_SIZE),
        _row_energies(weights, 32 * blocks_per_row),
        blocks_per_row,
        cycle,
    )


@inline
def _load_tile(weights: Any, importance: Any, tile_number: Any, blocks: Any, tile: Any) -> Any:
    """Lay blocks into the lanes of a tile and weigh their errors; returns the number of the first block.

    The last tile reaches back to be whole.
    """
    first = min(tile_number * LANES, blocks - LANES)
    _lay(weights, first, tile.weights, 0)
    place = tile_number % tile.cycle * TILE_SIZE
    if tile_number < tile.cycle or first < tile_number * LANES:
        _lay(importance, first % tile.blocks_per_row, tile.importance, place)
    for lane in range(LANES):
        tile.errors[lane] = tile.energies[(first + lane) // tile.blocks_per_row]
    energy = load(tile.errors, 0, LANES)
    for at in range(0, TILE_SIZE, LANES):
        x = load(tile.weights, at, LANES)
        store(tile.errors, at, load(tile.importance, place + at, LANES) * square_root(energy + x * x))
    return first


@inline
def _lay(source: Any, first: Any, tile: Any, place: Any) -> None:
    """Lay blocks of `source`, from number `first` on, into the lanes of the tile at `place`."""
    for lane in range(0, LANES, 16):
        for i in range(0, 32, 16):
            transpose(source, 32 * (first + lane) + i, 32, tile, place + LANES * i + lane, LANES)


@inline
def _row_energies(weights: Any, columns: Any) -> Any:
    """The mean square of each row, summed in the order of the columns; sixteen rows at once, in lanes.

    By way of a copy: rows are often a power of two apart, where the cache has room for few of them.
    """
    rows = weights.size // columns
    energies = new_floats(rows)
    piece = new_floats(_ROWS * 32)
    turned = new_floats(_ROWS * 16)
    for start in range(0, rows, _ROWS):
        first = min(start, rows - _ROWS)
        total = splat(_ZERO, _ROWS)
        for column in range(0, columns, 32):
            for row in range(_ROWS):
                store(piece, 32 * row, load_weights(weights, (first + row) * columns + column, 32))
            for half in range(0, 32, 16):
                transpose(piece, half, 32, turned, 0, _ROWS)
                for i in range(0, _ROWS * 16, _ROWS):
                    x = load(turned, i, _ROWS)
                    total = total + x * x
        store(energies, first, total / np.float32(columns))
    return energies


@inline
def _store_half(block: Any, byte: Any, value: Any) -> None:
    """Write lanes to two bytes of their blocks, in half precision."""
    half = halves_of(value)
    store(block, byte * LANES, half)
    store(block, (byte + 1) * LANES, half >> 8)


@inline
def _store_quants(
    tile: Any, scale: Any, offset: Any, lowest: Any, highest: Any, block: Any, byte: Any
) -> None:
    """Write the levels that a search ended with, `lowest` as quant 0."""
    fifth = splat(0, LANES)
    nibbles = byte + (4 if highest - lowest > 15 else 0)
    for i in range(16):
        low = _quant(load(tile, LANES * i, LANES), scale, offset, lowest, highest)
        high = _quant(load(tile, LANES * (i + 16), LANES), scale, offset, lowest, highest)
        store(block, (nibbles + i) * LANES, (low & 15) | ((high & 15) << 4))
        fifth = fifth | ((low >> 4) << i) | ((high >> 4) << (i + 16))
    if nibbles > byte:
        for k in range(4):
            store(block, (byte + k) * LANES, fifth >> (8 * k))


@inline
def _quant(x: Any, scale: Any, offset: Any, lowest: Any, highest: Any) -> Any:
    """The quant of lanes."""
    return maximum(minimum(nearest((x + offset) * scale), highest), lowest) - lowest


@inline
def _store_blocks(block: Any, block_bytes: Any, out: Any, first: Any) -> None:
    """Write the blocks of a tile; the lanes from `LANES * k` on have their byte k."""
    for lane in range(0, LANES, 16):
        for byte in (0, block_bytes - 16):
            start = (first + lane) * block_bytes + byte
            transpose(block, byte * LANES + lane, LANES, out, start, block_bytes)
