"""The fields of iq2_* and iq3_* as searches under a Hessian have them (`descent_grids`), and back.

Rows lie in tiles of sixteen (`row_tiles`), by superblock.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.formats.fields import F32Array, Grid
from ggplan.quants.formats.grids import grid
from ggplan.quants.kernels import F32, I64, F32s, I32s, U8s, U16s, kernel, scratch
from ggplan.quants.memory import load, store, transpose
from ggplan.quants.searches.descent_points import LANES, table_of
from ggplan.quants.searches.neighbours import grid_neighbours
from ggplan.quants.searches.superblock import SUPERBLOCK
from ggplan.quants.vector import float_of


class State(NamedTuple):
    """What is found for tiles of rows.

    Attributes
    ----------
    values
        float32 (superblocks, tiles, 256, 16): points with signs.
    residues
        As large: w - y.
    ds
        float32 (superblocks, tiles, 16).
    levels
        int32 (superblocks, tiles, sub-blocks, 16): s.
    """

    values: F32Array
    residues: F32Array
    ds: F32Array
    levels: NDArray[np.int32]


def by_superblock(rows: F32Array) -> F32Array:
    """Contiguous rows (m, n), filled up with zeros: float32 (superblocks, tiles, 256, 16)."""
    m, n = rows.shape
    tiles = _empty(n // SUPERBLOCK, m)
    whole, count = m // LANES, tiles.shape[1]
    _turn(rows, 0, whole, count, n, tiles)
    if whole < count:
        rest = np.zeros((LANES, n), np.float32)
        rest[: m % LANES] = rows[whole * LANES :]
        _turn(rest, whole, 1, count, n, tiles)
    return tiles


def read_fields(name: str, rules: tuple[Any, ...], found: Grid, weights: F32Array, m: int) -> State:
    """The state of the fields of m rows, given these by superblock; `descent_grids.Rules`."""
    n_superblocks, count = weights.shape[:2]
    group, _, size, unit = rules
    ds = found.d.astype(np.float32)
    is_negative = ds < 0  # a search takes positive ones
    signs = np.where(is_negative[:, np.newaxis], ~found.signs, found.signs)
    ds = np.where(is_negative, -ds, ds)
    state = State(
        _empty(n_superblocks, m),
        _empty(n_superblocks, m),
        np.ascontiguousarray(_in_lanes(ds[:, np.newaxis], m, count)[:, :, 0]),
        _in_lanes(found.scales.astype(np.int32), m, count),
    )
    points = grid(name).astype(np.float32)
    _read(m, n_superblocks, group, points, np.ascontiguousarray(found.indices), signs, state.values)
    _decode(n_superblocks * count, size, unit, weights, *state)
    return state


def write_fields(name: str, state: State, found: Grid, chosen: NDArray[np.bool_]) -> None:
    """Put what was found for the chosen rows into fields."""
    m, n_superblocks = len(chosen), len(state.ds)
    known = grid_neighbours(name)
    table = table_of(name)
    level_of = np.zeros(128, np.int32)
    level_of[table.values.astype(np.intp)] = np.arange(len(table.values))
    group = known.points.shape[1]
    indices, signs = np.empty_like(found.indices), np.empty_like(found.signs)
    _write(m, n_superblocks, group, known.bits, level_of, known.index_of, state.values, indices, signs)
    _put(found.d, _out_of_lanes(state.ds[:, :, np.newaxis], m), chosen)
    _put(found.scales, _out_of_lanes(state.levels, m), chosen)
    _put(found.indices, indices, chosen)
    _put(found.signs, signs, chosen)


def _put(field: NDArray[Any], new: NDArray[Any], chosen: NDArray[np.bool_]) -> None:
    """Replace a field (m superblocks, k) of the chosen rows, which may be a view of blocks."""
    m = len(chosen)
    rows = field.reshape(m, len(field) // m, -1)  # no copy, as one of whole rows would be
    np.copyto(rows, new.reshape(rows.shape), where=chosen[:, np.newaxis, np.newaxis], casting="unsafe")


def _empty(n_superblocks: int, m: int) -> F32Array:
    count = -(-m // LANES)
    return scratch(n_superblocks * count * SUPERBLOCK * LANES).reshape(
        n_superblocks, count, SUPERBLOCK, LANES
    )


def _in_lanes(fields: NDArray[Any], m: int, count: int) -> NDArray[Any]:
    """Fields (m superblocks, k) of m rows as (superblocks, tiles, k, 16), filled up with zeros."""
    k = fields.shape[1]
    rows = np.zeros((count * LANES, len(fields) // m, k), fields.dtype)
    rows[:m] = fields.reshape(m, -1, k)
    return np.ascontiguousarray(rows.reshape(count, LANES, -1, k).transpose(2, 0, 3, 1))


def _out_of_lanes(tiles: NDArray[Any], m: int) -> NDArray[Any]:
    """The fields (m, superblocks, k) of m rows."""
    n_superblocks, _, k, _ = tiles.shape
    return tiles.transpose(1, 3, 0, 2).reshape(-1, n_superblocks, k)[:m]


@kernel
def _turn(rows: F32s, first: I64, count: I64, n_tiles: I64, n: I64, tiles: F32s) -> None:
    for tile in range(count):
        for s in range(n // SUPERBLOCK):
            to = (s * n_tiles + first + tile) * SUPERBLOCK
            for column in range(0, SUPERBLOCK, LANES):
                at = tile * LANES * n + s * SUPERBLOCK + column
                transpose(rows, at, n, tiles, (to + column) * LANES, LANES)


@kernel
def _read(
    m: I64, n_superblocks: I64, group: I64, points: F32s, indices: U16s, signs: U8s, values: F32s
) -> None:
    """The points with signs of m rows; rows beside them get the last one."""
    n_tiles = (m + LANES - 1) // LANES
    for row in range(n_tiles * LANES):
        given = min(row, m - 1)
        for s in range(n_superblocks):
            number = given * n_superblocks + s
            to = (s * n_tiles + row // LANES) * SUPERBLOCK * LANES + row % LANES
            for g in range(SUPERBLOCK // group):
                index = indices[number * (SUPERBLOCK // group) + g]
                for i in range(group):
                    k = group * g + i
                    is_negative = (signs[(number * SUPERBLOCK + k) // 8] >> (k % 8)) & 1
                    values[to + k * LANES] = points[index * group + i] * np.float32(1 - 2 * is_negative)


@kernel
def _decode(
    count: I64, size: I64, unit: F32, weights: F32s, values: F32s, residues: F32s, ds: F32s, levels: I32s
) -> None:
    for tile in range(count):
        d = load(ds, tile * LANES, LANES)
        for sub in range(SUPERBLOCK // size):
            level = load(levels, (tile * (SUPERBLOCK // size) + sub) * LANES, LANES)
            scale = d * unit * float_of(2 * level + 1)
            for i in range(size):
                at = (tile * SUPERBLOCK + sub * size + i) * LANES
                store(residues, at, load(weights, at, LANES) - scale * load(values, at, LANES))


@kernel
def _write(
    m: I64, n_superblocks: I64, group: I64, bits: I64, level_of: I32s, index_of: I32s, values: F32s,
    indices: U16s, signs: U8s,
) -> None:  # fmt: skip
    n_tiles = (m + LANES - 1) // LANES
    for row in range(m):
        for s in range(n_superblocks):
            number = row * n_superblocks + s
            at = (s * n_tiles + row // LANES) * SUPERBLOCK * LANES + row % LANES
            for eight in range(0, SUPERBLOCK, 8):
                negative = 0
                for g in range(8 // group):
                    key = 0
                    for i in range(group):
                        value = int(values[at + (eight + group * g + i) * LANES])
                        negative |= (value < 0) << (group * g + i)
                        key |= level_of[abs(value)] << (bits * i)
                    indices[(number * SUPERBLOCK + eight) // group + g] = index_of[key]
                signs[(number * SUPERBLOCK + eight) // 8] = negative
