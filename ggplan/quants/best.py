"""What the searches of `effort="best"` share: they take a block that ggml's encoder made, and make it better.

The default encoders repeat ggml's arithmetic, bit for bit. A search here ends in the same layout and size,
and is free in all else. What it makes small is the plain measure of the damage,

    sum of w (x - y)^2        x the weight, y what a reader will find; w the importance of the column, or 1

while ggml's own searches weigh by w sqrt(energy + x^2), by x^2 or by |x|, and settle the scales of sub-blocks
before they round them. Every search begins with ggml's block and writes another only where that measure, with
each y worked out as a decoder does, falls by more than float32 can be wrong about. So no block is ever worse
than the default, and blocks that no search can judge (errors beyond float32, no importance at all) are the
default's bytes.

Like the encoders of k-quants, searches run on tiles (`superblock`): sixteen superblocks at once, one in each
lane. A superblock's result depends on nothing but its weights, their importance and its default bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.accelerate import inline
from ggplan.quants.decode import IQ4_NL_LEVELS
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.memory import load, load_weights, store, transpose
from ggplan.quants.superblock import SUPERBLOCK, TILE, load_tile, new_fit, store_blocks
from ggplan.quants.vector import WIDTH, lane, maximum, minimum, rounded, select, splat

# An error must fall below this part of the default's to count as less: some hundred sums of float32
# are off by 2^-17 of their result at most.
_LESS = np.float32(1 - 2.0**-14)

# Errors below this, with the largest weight counting 1, are made of numbers that float32 rounds coarsely.
_SMALLEST = np.float32(1e-30)

# Kinds of levels: whole numbers in a row; iq4_nl's; -1 and 1.
EVEN, IQ4, SIGNS = 0, 1, 2

_IQ4_LEVELS = np.array(IQ4_NL_LEVELS, np.float32)
_IQ4_THRESHOLDS = (_IQ4_LEVELS[1:] + _IQ4_LEVELS[:-1]) / np.float32(2)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITY = np.float32(np.inf)
_LARGEST_FLOAT = np.finfo(np.float32).max
_LARGEST_HALF = np.float32(65504)


@inline
def gather_tile(source: Any, first: Any, count: Any, cycle: Any, scratch: Any, size: Any, tile: Any) -> None:
    """Lay superblocks of `source`, from number `first` on, into the lanes of `tile`.

    Numbers wrap around at `cycle`. Lanes from `count` on repeat the last superblock; nobody looks at them.
    `scratch` is as large as `tile`.
    """
    for r in range(TILE):
        number = (first + min(r, count - 1)) % cycle
        for i in range(0, SUPERBLOCK, TILE):
            store(scratch, r * SUPERBLOCK + i, load_weights(source, number * SUPERBLOCK + i, TILE))
    load_tile(scratch, 0, size, tile)


@inline
def gather_weights(importance: Any, first: Any, count: Any, scratch: Any, size: Any, weight: Any) -> None:
    """Let `weight`, a tile, have the importance of each weight, 1 for the largest of a superblock."""
    if importance.size == 0:
        for at in range(0, SUPERBLOCK * TILE, TILE):
            store(weight, at, splat(_ONE, TILE))
        return
    gather_tile(importance, first, count, importance.size // SUPERBLOCK, scratch, size, weight)
    _normalize(weight, SUPERBLOCK * TILE, TILE)


@inline
def gather_blocks(
    source: Any, first: Any, count: Any, cycle: Any, scratch: Any, size: Any, tile: Any
) -> None:
    """Lay blocks of `size` weights into `WIDTH` lanes: weight i at `tile[WIDTH * i + lane]`.

    `size` is a multiple of 16; the rest is as of `gather_tile`.
    """
    start = first % cycle
    if count == WIDTH and start + WIDTH <= cycle:
        _turn_blocks(source, start, size, tile)
    else:
        for r in range(WIDTH):
            number = (first + min(r, count - 1)) % cycle
            for i in range(0, size, TILE):
                store(scratch, r * size + i, load_weights(source, number * size + i, TILE))
        _turn_blocks(scratch, 0, size, tile)


@inline
def _turn_blocks(source: Any, start: Any, size: Any, tile: Any) -> None:
    for group in range(0, WIDTH, TILE):
        for i in range(0, size, TILE):
            transpose(source, (start + group) * size + i, size, tile, WIDTH * i + group, WIDTH)


@inline
def gather_block_weights(
    importance: Any, first: Any, count: Any, scratch: Any, size: Any, weight: Any
) -> None:
    """Let `weight`, a tile of blocks, have the importance of each weight, 1 for the largest of a block."""
    gather_blocks(importance, first, count, importance.size // size, scratch, size, weight)
    _normalize(weight, size * WIDTH, WIDTH)


@inline
def _normalize(weight: Any, count: Any, width: Any) -> None:
    """Divide lanes by their largest number."""
    largest = splat(_ZERO, width)
    for at in range(0, count, width):
        largest = maximum(load(weight, at, width), largest)
    inverse = minimum(select(largest > _ZERO, _ONE / largest, _ZERO), _LARGEST_FLOAT)
    for at in range(0, count, width):
        store(weight, at, load(weight, at, width) * inverse)


@inline
def write_better(
    block: Any, block_bytes: Any, better: Any, count: Any, scratch: Any, out: Any, first: Any
) -> None:
    """Write the blocks of the first `count` lanes, where they are better; `scratch` has room for sixteen."""
    store_blocks(block, block_bytes, scratch, 0)
    for r in range(count):
        if lane(better, r):
            for i in range(block_bytes):
                out[(first + r) * block_bytes + i] = scratch[r * block_bytes + i]


@inline
def nearest_level(values: Any, kind: Any, lowest: Any, highest: Any) -> Any:
    """The level nearest to each of `WIDTH` lanes; `lowest` and `highest`, float32, limit even ones."""
    if kind == SIGNS:
        return select(values < _ZERO, -_ONE, splat(_ONE, WIDTH))
    if kind == IQ4:
        level = splat(_IQ4_LEVELS[0], WIDTH)
        for i in range(15):
            level = select(values < _IQ4_THRESHOLDS[i], level, _IQ4_LEVELS[i + 1])
        return level
    return maximum(minimum(rounded(values), highest), lowest)


@inline
def as_half(values: Any) -> Any:
    """The half nearest to each lane, never infinite; what is no number becomes zero."""
    values = select(values == values, values, _ZERO)
    return floats_of(halves_of(maximum(minimum(values, _LARGEST_HALF), -_LARGEST_HALF)))


@inline
def half_at(data: Any, at: Any) -> Any:
    """The bits of the half in two bytes."""
    return np.int32(data[at]) | (np.int32(data[at + 1]) << 8)


@inline
def to_beat(errors: Any) -> Any:
    """Below what an error is certainly less than that of the default; that may be infinite or no number."""
    errors = select(errors < _INFINITY, errors * _LESS, _INFINITY)
    return select(errors > _SMALLEST, errors, _ZERO)


@inline
def empty_fit() -> Any:
    """A `Fit` of zeros: where the stored scale is zero, `requantize` then gives level 0."""
    fit = new_fit()
    for array in (fit.scale, fit.offset, fit.kept_scale, fit.kept_offset, fit.weight):
        for at in range(0, SUPERBLOCK, TILE):
            store(array, at, splat(_ZERO, TILE))
    return fit
