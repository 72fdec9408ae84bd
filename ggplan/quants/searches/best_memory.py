"""What the search for the best points of a grid works on (`best_points`), and what it chooses."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

from ggplan.quants.kernels import inline
from ggplan.quants.memory import floats_at, integers_at, load, store
from ggplan.quants.searches.superblock import SUPERBLOCK, TILE
from ggplan.quants.vector import WIDTH, select


class Memory(NamedTuple):
    """What a search works on: sixteen superblocks, and the errors of each group of eight weights.

    Attributes
    ----------
    weights, errors
        The weights and what their errors count, laid out as in `superblock`.
    columns
        As large: the importance of columns, or what ggml's fields are read as.
    flips
        float32 [WIDTH eight + lane]: 4 where the number of negative weights is odd and must be even, else 0.
    parts, other_parts
        float32 [WIDTH (n part + number) + lane]: of the upper half's two parts the errors and the others, for
        `EVEN` what it costs to change the cheapest sign.
    halves
        float32 [WIDTH (n other + number) + lane]: the errors of lower halves, and the others.
    minima
        float32 [WIDTH (n other + number) + lane]: the least errors, and others, of the lower halves that go
        with each upper half.
    least
        [WIDTH other + lane]: float32, the least errors; and, two runs on, int32, the upper halves that have
        them, -1 where all are beyond float32.
    """

    weights: Any
    errors: Any
    columns: Any
    flips: Any
    parts: Any
    other_parts: Any
    halves: Any
    minima: Any
    least: Any


class PointChoice(NamedTuple):
    """What is chosen for sixteen superblocks; groups stand where their weights do in a tile.

    Attributes
    ----------
    levels
        int32 [16 sub_block + lane]: s.
    keys
        int32: the points of groups.
    marks
        int32: the signs of eight weights, a bit each; or 1 where their shift is down.
    other_keys
        int32: the points of groups with the other shift.
    """

    levels: Any
    keys: Any
    marks: Any
    other_keys: Any


# How many numbers of four bytes take `Memory` and `PointChoice`, for groups of 8 and of 4.
_PARTS = (
    _ALL := SUPERBLOCK * TILE,
    _ALL,
    _ALL,
    _ALL // 8,
    36 * WIDTH,
    36 * WIDTH,
    256 * WIDTH,
    162 * WIDTH,
    8 * WIDTH,
)
_CHOICES = (16 * TILE, _ALL // 4, _ALL // 8, _ALL // 4)
_STARTS, _CHOICE_STARTS = tuple(accumulate(_PARTS, initial=0)), tuple(accumulate(_CHOICES, initial=0))
MEMORY_ROOM, CHOICE_ROOM = _STARTS[-1], _CHOICE_STARTS[-1]
_CHOSEN = _CHOICE_STARTS[3]


@inline
def memory_in(room: Any) -> Any:
    """Part memory of `MEMORY_ROOM` numbers."""
    return Memory(
        room,
        floats_at(room, _STARTS[1]),
        floats_at(room, _STARTS[2]),
        floats_at(room, _STARTS[3]),
        floats_at(room, _STARTS[4]),
        floats_at(room, _STARTS[5]),
        floats_at(room, _STARTS[6]),
        floats_at(room, _STARTS[7]),
        floats_at(room, _STARTS[8]),
    )


@inline
def choice_in(room: Any) -> Any:
    """Part memory of `CHOICE_ROOM` numbers."""
    return PointChoice(
        room,
        integers_at(room, _CHOICE_STARTS[1]),
        integers_at(room, _CHOICE_STARTS[2]),
        integers_at(room, _CHOICE_STARTS[3]),
    )


@inline
def keep(better: Any, choice: Any, kept: Any) -> None:
    """Take a choice, but for what was not chosen (`other_keys`), in the lanes that are better."""
    for at in range(0, _CHOSEN, TILE):
        store(kept.levels, at, select(better, load(choice.levels, at, TILE), load(kept.levels, at, TILE)))


@inline
def place_of(i: Any, size: Any, group: Any) -> Any:
    """Where lane 0 of the group of a superblock's weight i stands."""
    at = i // size * TILE
    inside = at % WIDTH
    return (size * (at - inside) + WIDTH * (i % size)) // group + inside
