"""What the k-quants share: superblocks of 256 weights, sixteen at a time, one in each lane.

A superblock is made of sub-blocks of 16 or 32 weights, each with a scale and, in some types, a minimum.
Sixteen superblocks make a tile, turned around once so that the lanes of a vector hold the same weight of
each. From there on every step of ggml's encoder, from the search to the packing of bits, is a vector
operation on all sixteen, and the finished blocks are turned back on their way out.

In a tile, weight i of sub-block j of the superblock in lane r stands at

    tile[position(j, i, size) + r]        size: weights in a sub-block

so that `WIDTH` lanes from there on are weight i of `WIDTH // 16` neighbouring sub-blocks, which the searches
take side by side. A type may lay out its tiles for another number of lanes, `width`.

Rounding
--------
ggml rounds by adding 1.5 x 2^23: the integer is then in the low bits of the sum (`nearest_int`). Here numbers
stay in that domain, where the floats from 2^23 to 2^24 are the integers from -2^22 to 2^22 shifted by
`SHIFT`, until they are clamped. ggml masks the low 23 bits, which makes some integer of that range even of
larger values, infinities and nans; 2^23's exponent above the same 23 bits makes the same integer of them.
Where all numbers are known to be within 2^22, one instruction rounds them (`vector.rounded`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline
from ggplan.quants.codecs import Rows
from ggplan.quants.memory import load, new_floats, prefetch, store, transpose, transpose_bytes
from ggplan.quants.vector import (
    WIDTH,
    any_lane,
    bits_of,
    float_of_bits,
    maximum,
    minimum,
    repeat,
    select,
    splat,
    square_root,
)

SUPERBLOCK = 256
TILE = 16
SHIFT = np.float32(3 << 22)

_SHIFT_BITS = int(SHIFT.view(np.int32))
_ZERO = np.float32(0)


class Fit(NamedTuple):
    """What a search finds, for each sub-block j and lane r at [16 j + r]; float32.

    Attributes
    ----------
    scale, offset
        weight = scale * level - offset. First as the search finds them, then as the block stores them.
    kept_scale, kept_offset
        The levels that the search ended with are the rounded (weight + kept_offset) * kept_scale.
    weight
        The sum of the weights of the sub-block's errors.
    """

    scale: Any
    offset: Any
    kept_scale: Any
    kept_offset: Any
    weight: Any


def encode_superblocks(
    kernel: Callable[..., None],
    rows: Rows,
    importance: NDArray[np.float32] | None,
    out: NDArray[np.uint8],
    *parameters: Any,
) -> None:
    """Call `kernel(weights, importance, out, *parameters)` on all superblocks of `rows`.

    Superblocks know nothing of each other, so the kernel takes the rows as one run of them, and its last tile
    may overlap the one before. Only fewer than sixteen need padding.

    Parameters
    ----------
    rows
        float32 (n_rows, n_columns), C-contiguous, n_columns a multiple of 256.
    importance
        float32 (n_columns,), or None. The kernel gets an empty array for None; else the columns and, from the
        first on again, fifteen superblocks more, for tiles that begin in one row and end in the next.
    out
        uint8 (n_rows, row_bytes), C-contiguous.
    """
    count = rows.size // SUPERBLOCK
    if count == 0:
        return
    weights = rows.reshape(-1)
    blocks = out.reshape(count, -1)
    if count < TILE:
        weights = np.zeros(TILE * SUPERBLOCK, rows.dtype)
        weights[: rows.size] = rows.reshape(-1)
        blocks = np.empty((TILE, blocks.shape[1]), np.uint8)
    columns = np.empty(0, np.float32)
    if importance is not None:
        columns = np.resize(importance, importance.size + (TILE - 1) * SUPERBLOCK)
    # To Numba a read-only array has a type of its own; let it see no other, and compile once.
    weights = weights.view()
    weights.flags.writeable = columns.flags.writeable = False
    kernel(weights, columns, blocks.reshape(-1), *parameters)
    if count < TILE:
        out.reshape(count, -1)[:] = blocks[:count]


@inline
def new_fit() -> Any:
    """Room for what searches find in a tile."""
    return Fit(
        new_floats(SUPERBLOCK),
        new_floats(SUPERBLOCK),
        new_floats(SUPERBLOCK),
        new_floats(SUPERBLOCK),
        new_floats(SUPERBLOCK),
    )


@inline
def store_fit(fit: Any, at: Any, found: Any) -> None:
    """Keep what `affine_search` found for the sub-blocks whose results begin at `at`."""
    scale, offset, kept_scale, kept_offset, weight = found
    store(fit.scale, at, scale)
    store(fit.offset, at, offset)
    store(fit.kept_scale, at, kept_scale)
    store(fit.kept_offset, at, kept_offset)
    store(fit.weight, at, weight)


@inline
def first_superblock(tile_number: Any, count: Any) -> Any:
    """The superblock in lane 0 of a tile; the last tile reaches back to be whole."""
    return min(tile_number * TILE, count - TILE)


@inline
def position(sub_block: Any, i: Any, size: Any, width: Any = WIDTH) -> Any:
    """Where weight `i` of a sub-block of `size` weights stands in a tile."""
    side_by_side = width // TILE
    return ((sub_block // side_by_side) * size + i) * width + sub_block % side_by_side * TILE


@inline
def load_tile(source: Any, first: Any, size: Any, tile: Any, width: Any = WIDTH) -> None:
    """Lay sixteen superblocks of `source`, from number `first` on, into the lanes of `tile`.

    The next sixteen are asked for, since memory is slow to guess that so many runs go on.
    """
    for column in range(0, SUPERBLOCK, TILE):
        target = position(column // size, column % size, size, width)
        transpose(source, first * SUPERBLOCK + column, SUPERBLOCK, tile, target, width)
        for lane in range(first + TILE, first + 2 * TILE):
            prefetch(source, lane * SUPERBLOCK + column)


@inline
def store_blocks(block: Any, block_bytes: Any, out: Any, first: Any) -> None:
    """Write sixteen blocks; byte k of the block in lane r is the low 8 bits of `block[16 k + r]`."""
    # To write four bytes at a time takes a quarter of the work.
    if block_bytes >= 64:
        for byte in range(0, block_bytes, 64):
            byte = min(byte, block_bytes - 64)
            transpose_bytes(block, byte * TILE, TILE, out, first * block_bytes + byte, block_bytes)
    else:
        for byte in range(0, block_bytes, TILE):
            byte = min(byte, block_bytes - TILE)
            transpose(block, byte * TILE, TILE, out, first * block_bytes + byte, block_bytes)


@inline
def sum_of_squares(tile: Any, size: Any) -> Any:
    """The sum of the squares of each superblock's weights, in their order."""
    total = splat(_ZERO, TILE)
    for sub_block in range(SUPERBLOCK // size):
        for i in range(size):
            x = load(tile, position(sub_block, i, size), TILE)
            total = total + x * x
    return total


@inline
def weigh_by_importance(tile: Any, columns: Any, start: Any, size: Any, energy: Any, weight: Any) -> None:
    """Let the errors of neighbouring sub-blocks weigh importance * sqrt(energy + x^2)."""
    energy = repeat(energy, WIDTH)
    for i in range(size):
        x = load(tile, start + WIDTH * i, WIDTH)
        store(weight, WIDTH * i, load(columns, start + WIDTH * i, WIDTH) * square_root(energy + x * x))


@inline
def nearest(values: Any) -> Any:
    """What ggml's `nearest_int` makes of any values, in int32 lanes."""
    return (bits_of(values + SHIFT) & 0x7FFFFF) - 0x400000


@inline
def shifted_nearest(values: Any, lowest: Any, highest: Any) -> Any:
    """The same integers in the domain of `SHIFT`, clamped to limits that are in it too."""
    shifted = float_of_bits((bits_of(values + SHIFT) & 0x7FFFFF) | 0x4B000000)
    return maximum(minimum(shifted, highest), lowest)


@inline
def requantize(
    tile: Any,
    kept_tile: Any,
    fit: Any,
    sub_block: Any,
    size: Any,
    lowest: Any,
    highest: Any,
    levels: Any,
    width: Any = WIDTH,
) -> None:
    """Round a sub-block to the levels from `lowest` to `highest`, with the scale that the block stores.

    Where that is zero, ggml leaves the levels that the search ended with. They are made anew of `kept_tile`,
    which is `tile` unless the search keeps levels. `levels[16 (size j + i) + r]` gets level - lowest.
    """
    scale = load(fit.scale, sub_block * TILE, TILE)
    offset = load(fit.offset, sub_block * TILE, TILE)
    kept_scale = load(fit.kept_scale, sub_block * TILE, TILE)
    kept_offset = load(fit.kept_offset, sub_block * TILE, TILE)
    kept = scale == _ZERO
    any_kept = any_lane(kept)
    floor = SHIFT + np.float32(lowest)
    ceiling = SHIFT + np.float32(highest)
    for i in range(size):
        value = (load(tile, position(sub_block, i, size, width), TILE) + offset) / scale
        if any_kept:
            kept_value = (
                load(kept_tile, position(sub_block, i, size, width), TILE) + kept_offset
            ) * kept_scale
            value = select(kept, kept_value, value)
        level = bits_of(shifted_nearest(value, floor, ceiling)) - (_SHIFT_BITS + lowest)
        store(levels, (sub_block * size + i) * TILE, level)
