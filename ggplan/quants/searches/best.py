"""What the searches of `effort="best"` share: they take a block that ggml's encoder made, and make it better.

The default encoders repeat ggml's arithmetic, bit for bit. A search here ends in the same layout and size,
and is free in all else. What it makes small is the plain measure of the damage,

    sum of w (x - y)^2        x the weight, y what a reader will find; w the importance of the column, or 1

while ggml's own searches weigh by w sqrt(energy + x^2), by x^2 or by |x|, and choose the scales of sub-blocks
before they round them. Every search begins with ggml's block and writes another only where that measure, with
each y worked out as a decoder does, falls by more than float32 can be wrong about. So no block is ever worse
than the default, and blocks that no search can judge (errors beyond float32, no importance at all) are the
default's bytes.

Searches run on tiles (`superblock`, `blocks`), like ggml's: a block's result depends on nothing but its
weights, their importance and what ggml's search found for it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.formats.levels import IQ4_LEVELS
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.kernels import inline
from ggplan.quants.memory import load, store
from ggplan.quants.searches.blocks import GROUP, load_blocks
from ggplan.quants.searches.superblock import SUPERBLOCK, TILE, Superblocks, load_tile
from ggplan.quants.vector import WIDTH, maximum, minimum, rounded, select, splat

# An error must fall below this part of the default's to count as less: some hundred sums of float32
# are off by 2^-17 of their result at most.
_LESS = np.float32(1 - 2.0**-14)

# Errors below this, with the largest weight counting 1, are made of numbers that float32 rounds coarsely.
_SMALLEST = np.float32(1e-30)

# Kinds of levels: whole numbers in a row; iq4_nl's; -1 and 1.
EVEN, IQ4, SIGNS = 0, 1, 2

_IQ4_THRESHOLDS = (IQ4_LEVELS[1:] + IQ4_LEVELS[:-1]) / np.float32(2)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITY = np.float32(np.inf)
_LARGEST_FLOAT = np.finfo(np.float32).max
_LARGEST_HALF = np.float32(65504)


def weighed(given: Superblocks) -> Superblocks:
    """The same, but `columns` is what errors count: the importance of columns, the largest of a superblock's
    being 1. Without an importance matrix all count 1, as in a row of one superblock.
    """
    if given.columns is None:
        return given._replace(columns=_ones(), per_row=1, skipped=0)
    columns = given.columns.reshape(-1, SUPERBLOCK)
    largest = np.fmax.reduce(columns, axis=1, keepdims=True, initial=_ZERO)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(largest > _ZERO, np.minimum(_ONE / largest, _LARGEST_FLOAT), _ZERO)
        return given._replace(columns=(columns * inverse).reshape(-1))


@cache
def _ones() -> NDArray[np.float32]:
    return np.ones(TILE * SUPERBLOCK, np.float32)


@inline
def load_both(
    weights: Any, columns: Any, per_row: Any, skipped: Any, first: Any, size: Any, tile: Any
) -> None:
    """Load sixteen superblocks, and what their errors count (`weighed`)."""
    load_tile(weights, first, size, tile.weights)
    load_tile(columns, (skipped + first) % per_row, size, tile.errors)


@inline
def weigh_blocks(columns: Any, per_row: Any, first: Any, size: Any, errors: Any, done: Any) -> Any:
    """Let the errors of a group of blocks, a tile of `searches.blocks`, count likewise.

    `columns` has the importance of `per_row` blocks and repeats it. `done` is what was returned for the group
    before, or -1: groups that begin at the same place of a row need no work.
    """
    place = first % per_row if per_row else 0
    if place != done:
        if per_row == 0:
            for at in range(0, size * GROUP, GROUP):
                store(errors, at, splat(_ONE, GROUP))
        else:
            load_blocks(columns, place, size, errors)
            largest = splat(_ZERO, GROUP)
            for at in range(0, size * GROUP, GROUP):
                largest = maximum(load(errors, at, GROUP), largest)
            inverse = minimum(select(largest > _ZERO, _ONE / largest, _ZERO), _LARGEST_FLOAT)
            for at in range(0, size * GROUP, GROUP):
                store(errors, at, load(errors, at, GROUP) * inverse)
    return place


@inline
def nearest_level(values: Any, kind: Any, lowest: Any, highest: Any) -> Any:
    """The level nearest to each of `WIDTH` lanes; `lowest` and `highest`, float32, limit even ones."""
    if kind == SIGNS:
        return select(values < _ZERO, -_ONE, splat(_ONE, WIDTH))
    if kind == IQ4:
        level = splat(IQ4_LEVELS[0], WIDTH)
        for i in range(15):
            level = select(values < _IQ4_THRESHOLDS[i], level, IQ4_LEVELS[i + 1])
        return level
    return maximum(minimum(rounded(values), highest), lowest)


@inline
def as_half(values: Any) -> Any:
    """The half nearest to each lane, never infinite; what is no number becomes zero."""
    values = select(values == values, values, _ZERO)
    return floats_of(halves_of(maximum(minimum(values, _LARGEST_HALF), -_LARGEST_HALF)))


@inline
def to_beat(errors: Any) -> Any:
    """Below what an error is certainly less than that of the default; that may be infinite or no number."""
    errors = select(errors < _INFINITY, errors * _LESS, _INFINITY)
    return select(errors > _SMALLEST, errors, _ZERO)
