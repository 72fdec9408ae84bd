"""The grids of iq2_*, iq3_* and iq1_*: which combinations of weights these types can tell apart.

These types do not round weights one by one. A group of eight (iq2, iq1) or four (iq3) takes the nearest
point of a grid of 256 to 2048 points, and the block keeps the point's number, its index. The points of iq2
and iq3 are magnitudes, with the signs kept beside them; those of iq1 have signs of their own.

    grid       of             points x weights   levels
    iq2_xxs    iq2_xxs        256 x 8            8 25 43
    iq2_xs     iq2_xs         512 x 8            8 25 43
    iq2_s      iq2_s          1024 x 8           8 25 43
    iq3_xxs    iq3_xxs        256 x 4            4 12 20 28 36 44 52 62
    iq3_s      iq3_s          512 x 4            1 3 5 7 9 11 13 15
    iq1_s      iq1_s, iq1_m   2048 x 8           -1 0 1

Signs: a byte has bit j set where weight j of eight is negative. iq2_xxs, iq2_xs and iq3_xxs keep seven bits
of it and have the eighth make the number of negative weights even.

No formula gives the points: llama.cpp's author chose those that models' weights need most. They are part of
the format, and are kept in `grids.txt`: for each grid a line with its name and levels, then its points in
ascending order, in hexadecimal. A point has the number of weight 0's level in its lowest bits, and so on: two
bits for each of eight weights, three for each of four.
`tools/make_grids.py` writes that file from llama.cpp's `ggml/src/ggml-common.h` (b11434, MIT licence).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.formats.fields import Grid

Table = NDArray[np.int8]
Small = TypeVar("Small", np.int8, np.uint8)


def grid(name: str) -> Table:
    """The points of a grid: int8 (points, weights), read-only."""
    return _grids()[name]


@cache
def signs() -> Table:
    """What to multiply eight magnitudes with, for each byte of signs: int8 (256, 8), read-only."""
    return _frozen((1 - 2 * _bits(np.arange(256), 8)).astype(np.int8))


@cache
def even_signs() -> NDArray[np.uint8]:
    """The byte of signs for each seven of them, from which the eighth follows: uint8 (128,), read-only."""
    first = np.arange(128)
    eighth = _bits(first, 7).sum(axis=1) & 1
    return _frozen((first | eighth << 7).astype(np.uint8))


@cache
def _grids() -> dict[str, Table]:
    """All grids, by name."""
    grids: dict[str, Table] = {}
    text = files("ggplan.quants.formats").joinpath("grids.txt").read_text(encoding="utf-8")
    for paragraph in text.split("\n\n"):
        heading, _, points = paragraph.partition("\n")
        name, *levels = heading.split()
        # Three levels take two bits, and leave room for a group of eight in 16 bits; eight levels take three.
        bits, size = (2, 8) if len(levels) == 3 else (3, 4)
        numbers = np.array([int(point, 16) for point in points.split()])
        indices = numbers[:, np.newaxis] >> (bits * np.arange(size)) & ((1 << bits) - 1)
        grids[name] = _frozen(np.array(levels, np.int8)[indices])
    return grids


def look_up(table: Table, numbers: NDArray[np.unsignedinteger]) -> Table:
    """The rows of a table (n, 4 or 8) with numbers (blocks, m), side by side in one row for each block."""
    rows = table.view(f"u{table.shape[1]}")[:, 0]  # a row is one number: that is much faster
    return np.take(rows, numbers).view(np.int8)


def signed(name: str, fields: Grid) -> Table:
    """Points of a grid with their signs: (n, 256)."""
    return look_up(grid(name), fields.indices) * look_up(signs(), fields.signs)


def multiply(
    scale: NDArray[np.float32], levels: NDArray[np.int8] | NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Write `scale * levels` to `out` (n, 256), one scale (n, k) for each of k equal parts."""
    parts = (*scale.shape, 256 // scale.shape[1])
    np.multiply(levels.reshape(parts), scale[:, :, np.newaxis], out=out.reshape(parts))


def _bits(numbers: NDArray[np.integer], count: int) -> NDArray[np.integer]:
    return numbers[:, np.newaxis] >> np.arange(count) & 1


def _frozen(table: NDArray[Small]) -> NDArray[Small]:
    """The table, now read-only: all callers share it."""
    table.flags.writeable = False
    return table
