"""The two steps of the grids' search that are written as LLVM code.

The error of a point is the sum of its weights' errors, and each weight has few levels, so that an error's
terms are few: 4 values (one unused) for each of eight weights, or 8 for each of four, 32 in all. Put into
registers once, they are looked up for many points at a time: each point is a word of eight or four fields
of four bits, and a field is the place of its weight's level in one register's terms.

    R entries of a register, L levels:      field i = level + L (i % (R / L)),    register i // (R / L)

With AVX-512, R is 16 and a look-up for sixteen points is one instruction; else R is 8, as AVX2 has it.
Machines without such an instruction load the terms one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ggplan.quants.accelerate import deferred, intrinsic
from ggplan.quants.vector import WIDTH

if TYPE_CHECKING:
    from llvmlite import ir

    from ggplan.quants import lanes as kinds
else:
    ir = deferred("llvmlite.ir")
    kinds = deferred("ggplan.quants.lanes")

TERMS = 32
REGISTER = 16 if WIDTH == 32 else 8
POINTS_AT_ONCE = REGISTER


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
            first = i * levels // REGISTER * REGISTER
            register = builder.shuffle_vector(
                all_terms, all_terms, kinds.lane_indices(list(range(first, first + REGISTER)))
            )
            places = builder.and_(builder.lshr(words, everywhere(4 * i)), everywhere(REGISTER - 1))
            found = ir.Constant(lanes.llvm_type, ir.Undefined)
            # LLVM makes one permutation of this where the machine has one.
            for n in range(fields.count):
                at = ir.Constant(ir.IntType(32), n)
                term = builder.extract_element(register, builder.extract_element(places, at))
                found = builder.insert_element(found, term, at)
            total = found if total is None else builder.fadd(total, found)
        return total

    return lanes(terms, fields, size), generate
