"""Where a grid's encoders look for the best point: each point's number, and the neighbours of all others.

An encoder of iq1, iq2 or iq3 first rounds each weight of a group to a level by itself. Mostly the levels it
gets are not a point of the grid. Then it tries the points nearby, its neighbours, and takes the one with the
least error of the weights, the first of several.

The levels of a group are packed into a key, the first in the lowest bits, as `grids.txt` packs points:

    eight weights of a level from 0 to 2     two bits each, 65536 keys
    four weights of a level from 0 to 7      three bits each, 4096 keys

Neighbours are all points at the least distances there are from the key: one distance for iq2_s, two for
iq2_xxs, iq2_xs and iq3_xxs, three for iq3_s and iq1_s. Distance is the sum of the squared differences of
levels. Neighbours stand in order of distance, and of index at the same distance, which the first of several
best depends on.

From llama.cpp b11434, `ggml/src/ggml-quants.c`: iq2xs_init_impl and iq3xs_init_impl. They also give
neighbours to keys with a fourth level of two bits, which no encoder can arrive at.

Finding all neighbours takes up to a quarter of a second, so they are kept beside the kernels' machine code.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.formats.grids import grid
from ggplan.quants.machine_code import cache_folder, make_cache_folder

# How many different distances from a key count as near.
_DISTANCES = {"iq2_xxs": 2, "iq2_xs": 2, "iq2_s": 1, "iq3_xxs": 2, "iq3_s": 3, "iq1_s": 3}

# Keys whose distances to all points are held in memory at once.
_KEYS_AT_ONCE = 729


@dataclass(frozen=True, slots=True)
class GridNeighbours:
    """What `grid_neighbours` returns; all arrays are read-only.

    Attributes
    ----------
    points
        int8 (points, weights): the levels of each point, from 0.
    bits
        The bits of a level in a key.
    keys
        int32 (points,): the key of each point.
    index_of
        int32 (keys,): a point's index for the key of a point; for any other key k, `~start` of its
        neighbours in `lists`. `NO_KEY` for keys with a level that does not exist.
    lists
        uint16: for each key that is not a point the number of its neighbours, then their indices.
    """

    points: NDArray[np.int8]
    bits: int
    keys: NDArray[np.int32]
    index_of: NDArray[np.int32]
    lists: NDArray[np.uint16]


NO_KEY = np.iinfo(np.int32).min

_Tables = tuple[NDArray[np.int32], NDArray[np.uint16]]


@cache
def grid_neighbours(name: str) -> GridNeighbours:
    """The points and neighbours of a grid, by its name in `formats.grids`."""
    values = grid(name)
    levels = np.unique(values)
    points = levels.searchsorted(values).astype(np.int8)
    bits = 2 if len(levels) == 3 else 3
    keys = (points.astype(np.int32) << (bits * np.arange(points.shape[1]))).sum(axis=1, dtype=np.int32)
    # The name of a kept file tells the grid it was made of, that of its folder the code that made it.
    file = cache_folder() / f"neighbours-{name}-{zlib.crc32(values.tobytes()):08x}.npz"
    found = _read(file)
    if found is None:
        found = _find(points, keys, bits, len(levels), _DISTANCES[name])
        _keep(file, *found)
    index_of, lists = found
    for table in (points, keys, index_of, lists):
        table.flags.writeable = False
    return GridNeighbours(points, bits, keys, index_of, lists)


def _find(
    points: NDArray[np.int8], keys_of_points: NDArray[np.int32], bits: int, n_levels: int, n_distances: int
) -> _Tables:
    """Find the neighbours of all keys with `n_levels` levels."""
    size = points.shape[1]
    weights_of_bits = 1 << (bits * np.arange(size))
    index_of = np.full(1 << (bits * size), NO_KEY, np.int32)
    index_of[keys_of_points] = np.arange(len(points))

    groups = np.indices((n_levels,) * size, np.int8).reshape(size, -1).T
    groups = groups[index_of[groups @ weights_of_bits] < 0]
    keys = groups @ weights_of_bits
    order = keys.argsort()
    keys, groups = keys[order], groups[order]

    lists = []
    end = 0
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        distances = _distances(groups[first : first + _KEYS_AT_ONCE], points)
        rows, indices = _nearest(distances, n_distances)
        counts = np.bincount(rows, minlength=len(distances))
        starts = end + np.concatenate(([0], (counts + 1).cumsum()))
        index_of[keys[first : first + _KEYS_AT_ONCE]] = ~starts[:-1]
        run = np.empty(starts[-1] - end, np.uint16)
        run[starts[:-1] - end] = counts
        run[np.arange(len(rows)) + rows + 1] = indices
        lists.append(run)
        end = starts[-1]
    return index_of, np.concatenate(lists)


def _distances(groups: NDArray[np.int8], points: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The squared distances, at most 196, of all groups (g, weights) from all points (p, weights): (g, p)."""
    a, b = groups.astype(np.float32), points.astype(np.float32)
    squares = (a * a).sum(axis=1)[:, np.newaxis] + (b * b).sum(axis=1)
    distances: NDArray[np.uint8] = (squares - 2 * (a @ b.T)).astype(np.uint8)
    return distances


def _nearest(distances: NDArray[np.uint8], n_distances: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of each row's entries of its `n_distances` smallest values, ordered by value."""
    farther = distances
    for _ in range(n_distances):
        limits = farther.min(axis=1, keepdims=True)
        farther = np.where(distances > limits, distances, 255)
    rows, columns = np.nonzero(distances <= limits)
    order = (rows * 256 + distances[rows, columns]).argsort(kind="stable")
    return rows, columns[order]


def _read(file: Path) -> _Tables | None:
    """The tables in a kept file, or None where there is no good one."""
    try:
        with np.load(file, allow_pickle=False) as tables:
            return tables["index_of"], tables["lists"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(file: Path, index_of: NDArray[np.int32], lists: NDArray[np.uint16]) -> None:
    """Keep tables for later processes, where that can be done: they see a whole file or none."""
    with contextlib.suppress(OSError):
        make_cache_folder()
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            new = Path(folder) / file.name
            np.savez(new, index_of=index_of, lists=lists)
            os.replace(new, file)
