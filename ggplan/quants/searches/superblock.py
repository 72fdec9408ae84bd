"""Superblocks of 256 weights, sixteen at a time, one in each lane.

A superblock is made of sub-blocks of 16 or 32 weights, each with a scale and, in some types, a minimum.
Sixteen superblocks make a tile, turned around once so that the lanes of a vector hold the same weight of
each. From there on every step of a search is a vector operation on all sixteen, and what it finds is turned
back on its way out, into the fields of `formats.fields`.

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
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.codecs import Rows
from ggplan.quants.formats.fields import first_of
from ggplan.quants.kernels import inline, scratch
from ggplan.quants.memory import (
    floats_at,
    integers_at,
    load,
    prefetch,
    store,
    transpose,
    transpose_bytes,
    transpose_eight,
)
from ggplan.quants.vector import (
    WIDTH,
    any_lane,
    bits_of,
    float_of_bits,
    lane,
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

# Superblocks whose fields are found before they are packed: many, since each batch costs Python a tenth of a
# millisecond.
_BATCH = 4096

_SHIFT_BITS = int(SHIFT.view(np.int32))
_ZERO = np.float32(0)

Fields = TypeVar("Fields", bound=tuple[Any, ...])


class Superblocks(NamedTuple):
    """What a search is given: superblocks, at least sixteen.

    Attributes
    ----------
    weights
        float32 (256 n,), or the bits of bfloat16.
    n
        How many.
    columns
        float32, or None without an importance matrix: the importance of a row's columns and, from the first
        on again, of fifteen superblocks more, for tiles that begin in one row and end in the next.
    per_row, skipped
        Superblocks in a row; those before the first of these. 0 without an importance matrix.
    room
        Memory for the search, `ROOM` numbers.
    """

    weights: Rows
    n: int
    columns: NDArray[np.float32] | None
    per_row: int
    skipped: int
    room: NDArray[np.float32]


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


class Tile(NamedTuple):
    """What a search works on: sixteen superblocks.

    Attributes
    ----------
    weights, columns
        float32: the weights, and the importance of their columns.
    errors
        float32: what the error of each weight counts; all of a tile, or only sub-blocks side by side.
    scratch
        float32, as large as `weights`.
    fit
        What is found.
    scales, mins
        int32 [16 sub_block + lane]: the integers that are stored.
    levels
        int32 [16 (size sub_block + i) + lane]: levels, from 0 up.
    """

    weights: Any
    columns: Any
    errors: Any
    scratch: Any
    fit: Any
    scales: Any
    mins: Any
    levels: Any


_ALL = SUPERBLOCK * TILE
ROOM = 5 * _ALL + 7 * SUPERBLOCK
"""How many numbers of four bytes take a `Tile`."""


@inline
def tile_in(room: Any) -> Any:
    """Part memory of `ROOM` numbers."""
    rest = floats_at(room, 4 * _ALL)
    fit = Fit(
        rest,
        floats_at(rest, SUPERBLOCK),
        floats_at(rest, 2 * SUPERBLOCK),
        floats_at(rest, 3 * SUPERBLOCK),
        floats_at(rest, 4 * SUPERBLOCK),
    )
    return Tile(
        room,
        floats_at(room, _ALL),
        floats_at(room, 2 * _ALL),
        floats_at(room, 3 * _ALL),
        fit,
        integers_at(rest, 5 * SUPERBLOCK),
        integers_at(rest, 6 * SUPERBLOCK),
        integers_at(rest, 7 * SUPERBLOCK),
    )


def encode_superblocks(
    search: Callable[[Superblocks], Fields],
    pack: Callable[[Fields, NDArray[np.uint8]], None],
    rows: Rows,
    importance: NDArray[np.float32] | None,
    out: NDArray[np.uint8],
) -> None:
    """Search all superblocks of `rows`, and pack what is found.

    Superblocks know nothing of each other, so a search takes the rows as one run of them, and the last tile
    may overlap the one before. Only fewer than sixteen need padding.

    Parameters
    ----------
    rows
        float32 (n_rows, n_columns), C-contiguous, n_columns a multiple of 256.
    importance
        float32 (n_columns,), or None.
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
    columns, per_row = None, 0
    if importance is not None:
        columns = np.resize(importance, importance.size + (TILE - 1) * SUPERBLOCK)
        per_row = importance.size // SUPERBLOCK
    room = scratch(ROOM)
    first, total = 0, max(count, TILE)
    while first < total:
        left = total - first
        n = left if left < _BATCH + TILE else _BATCH
        these = weights[first * SUPERBLOCK : (first + n) * SUPERBLOCK]
        found = search(Superblocks(these, n, columns, per_row, first, room))
        pack(first_of(found, count) if count < TILE else found, blocks[first : first + n])
        first += n


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
        for r in range(first + TILE, first + 2 * TILE):
            prefetch(source, r * SUPERBLOCK + column, TILE)


@inline
def store_codes(levels: Any, codes: Any, first: Any) -> None:
    """Write the levels of sixteen superblocks, from number `first` on, to `codes`, uint8 (n, 256)."""
    for i in range(0, SUPERBLOCK, 64):
        transpose_bytes(levels, i * TILE, TILE, codes, first * SUPERBLOCK + i, SUPERBLOCK)


@inline
def store_small(integers: Any, count: Any, out: Any, first: Any) -> None:
    """Write the low bits of `integers`, those of sub-block j and lane r at [16 j + r], to `out` (n, count).

    `count` is 8 or 16.
    """
    if count == TILE:
        transpose(integers, 0, TILE, out, first * TILE, TILE)
    else:
        transpose_eight(integers, 0, TILE, out, first * 8, 8)


@inline
def load_small(source: Any, count: Any, first: Any, integers: Any) -> None:
    """Read what `store_small` has written, as numbers from 0 up."""
    for r in range(TILE):
        for j in range(count):
            integers[j * TILE + r] = source[(first + r) * count + j]


@inline
def load_signed(source: Any, count: Any, first: Any, integers: Any) -> None:
    """As `load_small`, but the highest of eight bits is the sign."""
    load_small(source, count, first, integers)
    for at in range(0, count * TILE, TILE):
        store(integers, at, (load(integers, at, TILE) << 24) >> 24)


@inline
def keep_better(better: Any, old: Any, new: Any, width: Any, first: Any) -> None:
    """Put back the old fields of superblocks, the sixteen from number `first` on, that are not better.

    `old` and `new` are uint8 (n, width), `width` a multiple of 8.
    """
    for r in range(TILE):
        if not lane(better, r):
            for i in range((first + r) * width, (first + r + 1) * width, 8):
                store(new, i, load(old, i, 8))


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

    Where that is zero, ggml leaves the levels that the search ended with. They are made again of `kept_tile`,
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
