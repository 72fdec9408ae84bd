"""The neighbours that ggml's search for iq2_* and iq3_* takes under its trial scales (`grids`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.kernels import inline
from ggplan.quants.memory import load
from ggplan.quants.searches.grid_points import TERMS, best_neighbour, lane_numbers, stretch
from ggplan.quants.searches.superblock import TILE
from ggplan.quants.vector import WIDTH, absolute, float_of, smallest_lane, square_root

# In a key, whether the levels as rounded were no point.
OFF = 1 << 16

GAP = TILE  # between trials in `points`: a power of two from one to the next is slow in the cache

# How far two trials are apart at most whose best neighbours are compared.
_APART = 4

_ROUNDING = np.float32(2.0**-17)
_SMALLEST = np.float32(2.0**-120)


@inline
def take_points(table: Any, memory: Any, count: Any, size: Any, group: Any) -> None:
    """Replace the keys of all trials that are no point by the best neighbour's, with `OFF` set.

    Trials side by side mostly have the same key, and the same neighbours then. Where two have the same best
    one, so have those between: a point's error under the scale s is A - 2 B s + C s^2 and A is the same for
    all, so the difference of two, divided by s, is a line. It must be more than rounding makes.
    """
    for g in range(size // group):
        for r in range(WIDTH):
            first = WIDTH * g + r
            allowed = _rounding(memory, size, group, g, r)
            trial = 0
            while trial < count:
                key = memory.points[stride(size, group) * trial + first]
                end = trial + 1
                while end < count and memory.points[stride(size, group) * end + first] == key:
                    end = end + 1
                listed = table.neighbours_of[key]
                if listed != 0:
                    found, margin = _neighbour(table, memory, listed, trial, size, group, g, r)
                    memory.points[stride(size, group) * trial + first] = OFF | found
                    while trial + 1 < end:
                        last = min(trial + _APART, end - 1)
                        other, other_margin = _neighbour(table, memory, listed, last, size, group, g, r)
                        is_same = found == other and margin > allowed and other_margin > allowed
                        for k in range(trial + 1, last):
                            if not is_same:
                                found, margin = _neighbour(table, memory, listed, k, size, group, g, r)
                            memory.points[stride(size, group) * k + first] = OFF | found
                        memory.points[stride(size, group) * last + first] = OFF | other
                        found, margin = other, other_margin
                        trial = last
                trial = end


@inline
def stride(size: Any, group: Any) -> Any:
    """How far the points of two trials are apart."""
    return size // group * WIDTH + GAP


@inline
def _neighbour(
    table: Any, memory: Any, listed: Any, trial: Any, size: Any, group: Any, g: Any, r: Any
) -> Any:
    """The best neighbour of a group in lane r, under the scale of a trial."""
    values = float_of(2 * (lane_numbers(TERMS) & (TERMS // group - 1)) + 1)
    magnitudes = stretch(load(memory.lanes, 2 * size * r + group * g, group))
    roots = stretch(square_root(load(memory.lanes, 2 * size * r + size + group * g, group)))
    error = memory.trials[WIDTH * trial + r] * values - magnitudes
    return best_neighbour(table, listed, roots * error * error, group)


@inline
def _rounding(memory: Any, size: Any, group: Any, g: Any, r: Any) -> Any:
    """By how much errors of a group in lane r must differ for that to be no matter of rounding.

    A sum of eight products is off by 12 * 2^-24 of sum(root (m + s q)^2) at most, m the magnitude; that is
    taken eightfold, with the largest s q, which the first trial has.
    """
    highest = np.float32(2 * (TERMS // group) - 1)
    magnitudes = absolute(load(memory.lanes, 2 * size * r + group * g, group))
    roots = square_root(load(memory.lanes, 2 * size * r + size + group * g, group))
    most = magnitudes + highest * memory.trials[r]
    return -smallest_lane(-(roots * most * most)) * np.float32(group) * _ROUNDING + _SMALLEST
