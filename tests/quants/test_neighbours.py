"""Each key of a grid leads to its point, or to the neighbours that ggml's encoders try, in their order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ggplan.quants.formats.grids import grid
from ggplan.quants.searches.neighbours import NO_KEY, grid_neighbours

# The number of least distances that ggml calls `nwant`.
N_DISTANCES = {"iq2_xxs": 2, "iq2_xs": 2, "iq2_s": 1, "iq3_xxs": 2, "iq3_s": 3, "iq1_s": 3}

each_grid = pytest.mark.parametrize("name", N_DISTANCES)

PROGRAM = """
import sys, zlib
from ggplan.quants.searches.neighbours import grid_neighbours
found = grid_neighbours("iq3_s")
print(zlib.crc32(found.index_of.tobytes() + found.lists.tobytes()))
"""


@each_grid
def test_the_key_of_a_point_gives_its_index(name: str) -> None:
    found = grid_neighbours(name)
    shifts = found.bits * np.arange(found.points.shape[1])
    keys = (found.points.astype(int) << shifts).sum(axis=1)
    assert found.keys.tolist() == keys.tolist()
    assert found.index_of[keys].tolist() == list(range(len(found.points)))
    assert keys[0] == 0  # what stands for the points of nothing
    assert (found.index_of >= 0).sum() == len(found.points)
    assert np.array_equal(np.unique(grid(name))[found.points], grid(name))


@each_grid
def test_any_other_key_gives_its_nearest_points(name: str) -> None:
    """As ggml finds them: sort all points by distance and index, stop where one distance too many begins."""
    found = grid_neighbours(name)
    n_levels = 8 if found.bits == 3 else 3
    rng = np.random.default_rng(1)
    tried = 0
    for levels in rng.integers(0, n_levels, (150, found.points.shape[1])):
        start = ~found.index_of[(levels << (found.bits * np.arange(levels.size))).sum()]
        if start < 0:
            continue
        tried += 1
        distances = ((found.points - levels) ** 2).sum(axis=1).tolist()
        nearest = sorted(set(distances))[: N_DISTANCES[name]]
        expected = sorted((d, index) for index, d in enumerate(distances) if d in nearest)
        listed = found.lists[start + 1 : start + 1 + found.lists[start]]
        assert listed.tolist() == [index for _, index in expected]
    assert tried > 50


@each_grid
def test_keys_of_levels_that_do_not_exist_give_nothing(name: str) -> None:
    found = grid_neighbours(name)
    levels = np.arange(found.index_of.size)[:, np.newaxis] >> (found.bits * np.arange(found.points.shape[1]))
    impossible = ((levels & ((1 << found.bits) - 1)) > found.points.max()).any(axis=1)
    assert ((found.index_of == NO_KEY) == impossible).all()


def run(**environment: str) -> str:
    everything = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_CACHE_DIR": "", **environment}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=everything, capture_output=True, text=True, check=True).stdout


def test_what_was_found_is_kept_and_a_damaged_file_replaced(tmp_path: Path) -> None:
    found = run(NUMBA_CACHE_DIR=str(tmp_path))
    (kept,) = tmp_path.glob("*/*")
    good = kept.read_bytes()
    assert run(NUMBA_CACHE_DIR=str(tmp_path)) == found
    for bad in (b"", b"nonsense", good[:1000], good[:5000] + b"\0" + good[5001:]):
        kept.write_bytes(bad)
        assert run(NUMBA_CACHE_DIR=str(tmp_path)) == found
        assert kept.read_bytes()[:5000] == good[:5000]
    assert list(tmp_path.glob("*/*")) == [kept]
    assert run(XDG_CACHE_HOME="/dev/null") == found
