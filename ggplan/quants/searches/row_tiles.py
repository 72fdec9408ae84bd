"""Rows sixteen at a time, one in each lane, and their products with packed matrices.

A search that works on whole rows takes sixteen of them as a tile, turned around once:

    tile[16 * column + r]       the number of row r in a column

so each step is one operation on all sixteen, and rows never meet. The last tile is filled up with rows of
zeros. A matrix (n, n) that such rows are multiplied with is packed by panels of 256 rows, the last of which
may be shorter, and in these by four columns:

    packed[n * first + (column // 4 * k + i) * 4 + column % 4]      row first + i, of the k from `first` on

Sums have one order: products are added one after the other, in the order of the matrix's rows, to what is
there, each multiplication fused with its addition (`vector.fused`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.kernels import I64, F32s, inline, kernel, scratch
from ggplan.quants.memory import load, store, transpose
from ggplan.quants.vector import fused

F32Array = NDArray[np.float32]

PANEL = 256
TILE = 16
NARROW = 1024
"""Rows of so many columns at most are narrow, and gone through more than once: products of more take most of
the time."""
_TOGETHER = 128  # columns of a packed panel that stay in the second cache while tiles pass
_ZERO = np.float32(0)


def tiles_of(rows: F32Array) -> F32Array:
    """Rows (m, n), n a multiple of 16, as tiles: float32 (tiles, n, 16)."""
    m, n = rows.shape
    tiles = new_tiles(m, n)
    whole = m // TILE
    if whole:
        _turn(np.ascontiguousarray(rows[: whole * TILE]), whole, n, tiles)
    if m % TILE:
        rest = np.zeros((TILE, n), np.float32)
        rest[: m % TILE] = rows[whole * TILE :]
        _turn(rest, 1, n, tiles[whole:])
    return tiles


def rows_of(tiles: F32Array, first: int = 0, end: int | None = None) -> F32Array:
    """The rows (16 tiles, columns) of tiles, of some columns: whole sixteens from `first` up to `end`."""
    count, n, _ = tiles.shape
    end = n if end is None else end
    rows = scratch(count * TILE * (end - first)).reshape(count * TILE, end - first)
    _turn_back(tiles, count, n, first, end, rows)
    return rows


def new_tiles(m: int, n: int) -> F32Array:
    """Room for m rows of n numbers."""
    count = -(-m // TILE)
    return scratch(count * n * TILE).reshape(count, n, TILE)


def pack(matrix: F32Array) -> F32Array:
    """Pack a matrix (n, n), n a multiple of 4, by panels, in its own memory; float32 (n * n,)."""
    n = len(matrix)
    out = matrix.reshape(-1)
    for first, end in panels(n):
        _pack(matrix[first:end].copy(), out[n * first : n * end])
    return out


def packed_blocks(blocks: Iterable[F32Array], n: int) -> F32Array:
    """The square on the diagonal that belongs to each panel of a matrix (n, n), packed by itself.

    That of the panel that begins at row `first` begins at 256 * first; float32 (256 * n,).
    """
    out = scratch(PANEL * n)
    for (first, end), block in zip(panels(n), blocks, strict=True):
        _pack(block, out[PANEL * first : PANEL * first + (end - first) ** 2])
    return out


def _pack(rows: F32Array, out: F32Array) -> None:
    k, n = rows.shape
    out.reshape(n // 4, k, 4)[:] = rows.reshape(k, n // 4, 4).swapaxes(0, 1)


def panels(n: int) -> list[tuple[int, int]]:
    """The first row of each panel, and the end."""
    return [(first, min(first + PANEL, n)) for first in range(0, n, PANEL)]


def first_quarter(n: int) -> int:
    """Of n columns how many the first quarter has, in whole panels: they relied most on those after them."""
    return -(-n // (4 * PANEL)) * PANEL


def add_products(
    tiles: F32Array, left: F32Array, right: F32Array, k: int, columns: tuple[int, int], origin: int = 0
) -> None:
    """Add to some columns of tiles (t, n, 16) the products of a panel.

    Parameters
    ----------
    left
        float32 (t, at least k, 16): what the panel's k rows are multiplied with.
    right
        The panel, or square, of a packed matrix.
    columns
        The first column, a multiple of 4, and the end.
    origin
        The column that `right` begins with.
    """
    count, n, _ = tiles.shape
    if count and columns[0] < columns[1]:
        _add_products(tiles, count, n, left, left.shape[1], right, k, *columns, origin)


def add_triangle(
    tiles: F32Array, left: F32Array, square: F32Array, k: int, *, is_lower: bool = False
) -> None:
    """Add to tiles (t, k, 16) the products of `left`, as large, and a packed square that is a triangle.

    All else in it is zero: the upper one, or the lower one.
    """
    _add_triangle(tiles, len(tiles), left, square, k, int(is_lower))


@kernel
def _turn(rows: F32s, count: I64, n: I64, tiles: F32s) -> None:
    for tile in range(count):
        for column in range(0, n, TILE):
            transpose(rows, tile * TILE * n + column, n, tiles, (tile * n + column) * TILE, TILE)


@kernel
def _turn_back(tiles: F32s, count: I64, n: I64, first: I64, end: I64, rows: F32s) -> None:
    width = end - first
    for tile in range(count):
        for column in range(first, end, TILE):
            to = tile * TILE * width + column - first
            transpose(tiles, (tile * n + column) * TILE, TILE, rows, to, width)


@inline
def add_four(tile: Any, at: Any, left: Any, left_at: Any, count: Any, right: Any, right_at: Any) -> None:
    """Add to four neighbouring columns of a tile, from `at` on, `count` products."""
    sum0 = load(tile, at, TILE)
    sum1 = load(tile, at + TILE, TILE)
    sum2 = load(tile, at + 2 * TILE, TILE)
    sum3 = load(tile, at + 3 * TILE, TILE)
    for i in range(count):
        x = load(left, left_at + TILE * i, TILE)
        sum0 = fused(x, right[right_at + 4 * i], sum0)
        sum1 = fused(x, right[right_at + 4 * i + 1], sum1)
        sum2 = fused(x, right[right_at + 4 * i + 2], sum2)
        sum3 = fused(x, right[right_at + 4 * i + 3], sum3)
    store(tile, at, sum0)
    store(tile, at + TILE, sum1)
    store(tile, at + 2 * TILE, sum2)
    store(tile, at + 3 * TILE, sum3)


@kernel
def _add_products(
    tiles: F32s, count: I64, n: I64, left: F32s, left_columns: I64, right: F32s, k: I64, first: I64, end: I64,
    origin: I64,
) -> None:  # fmt: skip
    for start in range(first, end, _TOGETHER):
        stop = min(start + _TOGETHER, end)
        for tile in range(count):
            for column in range(start, stop, 4):
                at = (tile * n + column) * TILE
                add_four(tiles, at, left, tile * left_columns * TILE, k, right, (column - origin) * k)


@kernel
def _add_triangle(tiles: F32s, count: I64, left: F32s, square: F32s, k: I64, is_lower: I64) -> None:
    for tile in range(count):
        begin = tile * k * TILE
        for column in range(0, k, 4):
            first = column if is_lower else 0
            rows = k - first if is_lower else column + 4
            at = begin + column * TILE
            add_four(tiles, at, left, begin + first * TILE, rows, square, column * k + 4 * first)
