"""The grid point with the least error, of those near a key: a comparison of many points in lanes.

The error of a point is the sum of its weights' errors, and each weight has few levels, so that an error's
terms are few: 4 levels (one unused) for each of eight weights, or 8 for each of four, 32 in all. Put into
registers once, they are looked up for many points at a time: each point is a word of eight or four fields
of four bits, and a field is the place of its weight's level in one register's terms.

    R entries of a register, L levels:      field i = level + L (i % (R / L)),    register i // (R / L)

With AVX-512, R is 16 and a look-up for sixteen points is one instruction; else R is 8, as AVX2 has it. Where
a weight has four levels, AVX has a look-up among four that early processors do in a fourth of the time.
Machines without such an instruction load the terms one by one.

The neighbours of a key (see `neighbours`) fill whole vectors of such words. The best is the one with the
least error, the first of several. ggml ends the process where all neighbours' errors are infinite or nan;
here the first one is taken.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.kernels import deferred, inline, intrinsic
from ggplan.quants.machine_code import has_avx
from ggplan.quants.memory import load
from ggplan.quants.searches.neighbours import NO_KEY, grid_neighbours
from ggplan.quants.vector import WIDTH, float_of, minimum, select, smallest_lane, splat

if TYPE_CHECKING:
    from llvmlite import ir

    from ggplan.quants import lanes as kinds
else:
    ir = deferred("llvmlite.ir")
    kinds = deferred("ggplan.quants.lanes")

TERMS = 32
_REGISTER = 16 if WIDTH == 32 else 8

_LARGEST = np.finfo(np.float32).max
_INFINITY = np.float32(np.inf)


class SearchTable(NamedTuple):
    """A grid and its neighbours; all arrays are int32 and read-only.

    Attributes
    ----------
    neighbours_of
        (keys,): 0 for a point; for any other key 256 times the first of its neighbours' vectors, plus their
        number.
    fields
        Vectors of neighbours, as many as a register has terms, the last filled up with its last neighbour.
        Each is what `point_errors` takes.
    keys
        Their keys.
    """

    neighbours_of: Any
    fields: Any
    keys: Any


@cache
def search_table(name: str) -> SearchTable:
    """The table of a grid, by its name in `formats.grids`."""
    found = grid_neighbours(name)
    size = found.points.shape[1]
    n_levels = TERMS // size
    place = n_levels * (np.arange(size) % (_REGISTER // n_levels))
    fields = ((found.points + place).astype(np.uint32) << (4 * np.arange(size, dtype=np.uint32))).sum(axis=1)

    off = np.flatnonzero((found.index_of < 0) & (found.index_of != NO_KEY))
    starts = ~found.index_of[off]
    counts = found.lists[starts].astype(np.intp)
    n_vectors = -(-counts // _REGISTER)
    firsts = n_vectors.cumsum() - n_vectors
    neighbours_of = np.zeros(found.index_of.size, np.int32)
    neighbours_of[off] = firsts << 8 | n_vectors
    owner = np.arange(off.size).repeat(n_vectors * _REGISTER)
    number = np.arange(owner.size) - firsts[owner] * _REGISTER
    neighbours = found.lists[starts[owner] + 1 + np.minimum(number, counts[owner] - 1)]

    table = SearchTable(
        neighbours_of,
        fields.astype(np.uint32)[neighbours].view(np.int32),
        found.keys[neighbours],
    )
    for array in table:
        array.flags.writeable = False
    return table


@cache
def index_of(name: str) -> NDArray[np.uint16]:
    """The index of each key of a point, read-only."""
    found = grid_neighbours(name).index_of.astype(np.uint16)
    found.flags.writeable = False
    return found


@inline
def best_neighbour(table: Any, listed: Any, terms: Any, group: Any) -> Any:
    """The key of the neighbour with the least error, the first of several; and how much more others have.

    `listed`, not 0, is what `neighbours_of` has for the key; `terms` are the errors of each weight's levels.
    """
    at = (listed >> 8) * _REGISTER
    count = listed & 255
    numbers = float_of(lane_numbers(_REGISTER))
    least = minimum(point_errors(terms, load(table.fields, at, _REGISTER), group), _LARGEST)
    second = splat(_LARGEST, _REGISTER)
    place = numbers
    for n in range(1, count):
        errors = point_errors(terms, load(table.fields, at + n * _REGISTER, _REGISTER), group)
        less = errors < least
        second = minimum(select(less, least, errors), second)
        least = select(less, errors, least)
        place = select(less, numbers + np.float32(n * _REGISTER), place)
    error = smallest_lane(least)
    best = smallest_lane(select(least == error, place, _INFINITY))
    others = select(place == best, second, minimum(least, second))
    return table.keys[at + int(best)], smallest_lane(others) - error


@intrinsic
def lane_numbers(typing_context: Any, count: Any) -> Any:
    """0, 1, 2... in `count` (a constant) int32 lanes."""
    lanes = kinds.Lanes("i32", count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return kinds.lane_indices(list(range(lanes.count)))

    return lanes(count), generate


@intrinsic
def stretch(typing_context: Any, value: Any) -> Any:
    """Repeat each lane until there are 32: a a a a b b b b ..."""
    lanes = kinds.Lanes(value.kind, TERMS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        order = kinds.lane_indices([n * value.count // TERMS for n in range(TERMS)])
        return builder.shuffle_vector(arguments[0], arguments[0], order)

    return lanes(value), generate


@intrinsic
def point_errors(typing_context: Any, terms: Any, fields: Any, size: Any) -> Any:
    """Add up the terms of points of `size` (a constant, 4 or 8) weights, each in the order of its weights.

    Parameters
    ----------
    terms
        32 float32 lanes, `32 / size` for each weight.
    fields
        int32 lanes, one for each point.

    Returns
    -------
    The sums, in as many lanes as `fields` has.
    """
    levels = TERMS // size.literal_value
    lanes = kinds.Lanes("f32", fields.count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        all_terms, words, _ = arguments

        def everywhere(number: int) -> ir.Constant:
            return ir.Constant(words.type, [number] * fields.count)

        total = None
        for i in range(size.literal_value):
            shifted = builder.lshr(words, everywhere(4 * i))
            if levels == 4 and _REGISTER == 8 and has_avx():
                own = [levels * i + n for n in range(levels)]
                register = builder.shuffle_vector(all_terms, all_terms, kinds.lane_indices(2 * own))
                look_up = kinds.llvm_function(
                    builder, "x86.avx.vpermilvar.ps.256", register.type, [register.type, words.type]
                )
                found = builder.call(look_up, [register, shifted])
            else:
                first = i * levels // _REGISTER * _REGISTER
                register = builder.shuffle_vector(
                    all_terms, all_terms, kinds.lane_indices(list(range(first, first + _REGISTER)))
                )
                places = builder.and_(shifted, everywhere(_REGISTER - 1))
                found = ir.Constant(lanes.llvm_type, ir.Undefined)
                # LLVM makes one permutation of this where the machine has one.
                for n in range(fields.count):
                    at = ir.Constant(ir.IntType(32), n)
                    term = builder.extract_element(register, builder.extract_element(places, at))
                    found = builder.insert_element(found, term, at)
            total = found if total is None else builder.fadd(total, found)
        return total

    return lanes(terms, fields, size), generate
