"""Points of iq2_* and iq3_* by error feedback: groups of eight weights, one after the other.

With H = U D U^T and r = w - y, the error of a row is the sum over groups g of eight columns of

    z_g D_g z_g^T        z_g = sum over t <= g of r_t U_tg

Groups are chosen from the first to the last. Each takes the best of all points for what the groups before it
ask, as if the weights after it could make good all that it leaves: the error of a move delta is then

    delta S delta^T - 2 (z_g D_g U_gg^T) delta        S = U_gg D_g U_gg^T

which `descent_points` searches. Scales stay. (For weights that are rounded one by one that is GPTQ.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.kernels import F32, I64, F32s, I32s, kernel, scratch
from ggplan.quants.memory import floats_at, load
from ggplan.quants.searches.descent_points import (
    EIGHT_ROOM,
    LANES,
    Table,
    at,
    eight_in,
    put,
    search_eight,
    table_of,
)
from ggplan.quants.searches.row_tiles import add_four
from ggplan.quants.searches.superblock import SUPERBLOCK
from ggplan.quants.vector import any_lane, float_of, select, splat

F32Array = NDArray[np.float32]

_ZERO = np.float32(0)


class Groups(NamedTuple):
    """What groups of eight columns of a superblock are searched by, all float32 (32, 64).

    Attributes
    ----------
    turned
        U_gg D_g.
    hessians, inverses
        S, and what it is divided by.
    """

    turned: F32Array
    hessians: F32Array
    inverses: F32Array


def groups_of(squares: F32Array, pivots: F32Array) -> list[Groups]:
    """Of each superblock, from packed squares of U (`row_tiles`) and D."""
    upper = own_parts(squares)
    n = len(upper)
    turned = upper * pivots.reshape(n, 1, 8)
    hessians = np.zeros((n, 8, 8))
    for k in range(8):  # in this order everywhere
        hessians += turned[:, :, k, np.newaxis] * upper[:, np.newaxis, :, k]
    inverses = inverses_of(hessians)
    found = (
        part.astype(np.float32).reshape(-1, SUPERBLOCK // 8, 64) for part in (turned, hessians, inverses)
    )
    return [Groups(*parts) for parts in zip(*found, strict=True)]


def own_parts(squares: F32Array) -> NDArray[np.float64]:
    """Of packed squares of 256 columns, the part of each eight columns that is their own: (n / 8, 8, 8)."""
    k = SUPERBLOCK // 8
    parts = squares.reshape(-1, k, 2, k, 8, 4)[:, np.arange(k), :, np.arange(k)]
    return parts.transpose(1, 0, 3, 2, 4).reshape(-1, 8, 8).astype(np.float64)


def inverses_of(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverses of positive matrices (n, 8, 8)."""
    parts = matrices.copy()
    inverse = np.tile(np.eye(8), (len(parts), 1, 1))
    for k in range(8):  # Gauss and Jordan's, whose order is the same everywhere; LAPACK's is not
        pivot = parts[:, k : k + 1, k : k + 1].copy()
        parts[:, k : k + 1] /= pivot
        inverse[:, k : k + 1] /= pivot
        shares = parts[:, :, k : k + 1].copy()
        shares[:, k] = 0
        parts -= shares * parts[:, k : k + 1]
        inverse -= shares * inverse[:, k : k + 1]
    return inverse


def choose_points(
    name: str, rules: tuple[Any, ...], asked: F32Array, packed: F32Array, pivots: F32Array, groups: Groups,
    values: F32Array, residues: F32Array, ds: F32Array, levels: NDArray[np.int32], turned: F32Array,
) -> None:  # fmt: skip
    """Choose all points of a superblock of rows anew, in place.

    Parameters
    ----------
    name, rules
        Of the grid; `descent_grids.Rules`.
    asked
        float32 (tiles, 256, 16): what z is made of by the superblocks before it.
    packed, pivots, groups
        Its square of U, packed (`row_tiles`), its part of D, and that of `groups_of`.
    values, residues, ds, levels
        As `descent_fields` has them for the superblock.
    turned
        Where z D is written, float32 (tiles, 256, 16), with what was chosen.
    """
    _choose(
        len(values), *rules, asked, packed, pivots, *groups, values, residues, ds, levels, turned,
        *table_of(name), scratch(8 * LANES + EIGHT_ROOM),
    )  # fmt: skip


@kernel
def _choose(
    count: I64, group: I64, is_even: I64, size: I64, unit: F32,
    asked: F32s, square: F32s, pivots: F32s, turned: F32s, hessians: F32s, inverses: F32s,
    values: F32s, residues: F32s, ds: F32s, levels: I32s, out: F32s,
    point_values: F32s, starts: I32s, lower: I32s, keys: I32s, n_points: I64, is_dense: I64, room: F32s,
) -> None:  # fmt: skip
    table = Table(point_values, starts, lower, keys, n_points, is_dense)
    z = room
    eight = eight_in(floats_at(room, 8 * LANES))
    n_scales = SUPERBLOCK // size
    for tile in range(count):
        begin = tile * SUPERBLOCK * LANES
        v, r, given = floats_at(values, begin), floats_at(residues, begin), floats_at(asked, begin)
        to = floats_at(out, begin)
        d = load(ds, tile * LANES, LANES)
        for number in range(SUPERBLOCK // 8):
            first = 8 * number
            scale = (
                d * unit * float_of(2 * load(levels, (tile * n_scales + first // size) * LANES, LANES) + 1)
            )
            for i in range(8):
                put(z, i, at(given, first + i))
            for i in range(0, 8, 4):
                add_four(z, i * LANES, r, 0, first + 8, square, SUPERBLOCK * (first + i))
            for i in range(8):
                put(eight.values, i, at(v, first + i))
                slope = splat(_ZERO, LANES)
                for k in range(8):
                    place = 64 * number + 8 * i + k
                    slope = slope + at(z, k) * turned[place]
                    eight.hessian[8 * i + k] = hessians[place]
                put(eight.gradients, i, slope)
            cost = search_eight(table, group, is_even, eight, floats_at(inverses, 64 * number), scale)
            better = cost < _ZERO
            if any_lane(better):
                for i in range(8):
                    put(v, first + i, select(better, at(eight.found, 8 + i), at(v, first + i)))
                    step = select(better, at(eight.found, i), _ZERO)
                    put(r, first + i, at(r, first + i) - step)
                    for k in range(i, 8):
                        column = first + k
                        share = square[(column // 4 * SUPERBLOCK + first + i) * 4 + column % 4]
                        put(z, k, at(z, k) - step * share)
            for i in range(8):
                put(to, first + i, at(z, i) * pivots[first + i])
