"""The upper half with the least error of a grid's points, in code without loops.

Which lower halves go with an upper one differs from one to the next, and short loops over them take longer
than the comparisons in them. A grid is known when a kernel is compiled, so all are written out for it: 256 to
1024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ggplan.quants.kernels import deferred, intrinsic
from ggplan.quants.memory import read_lanes
from ggplan.quants.vector import WIDTH

if TYPE_CHECKING:
    from llvmlite import ir
    from numba import types

    from ggplan.quants import lanes as kinds
else:
    ir = deferred("llvmlite.ir")
    types = deferred("numba.types")
    kinds = deferred("ggplan.quants.lanes")


def least_of(lower_halves: Callable[[], list[list[int]]], n: int, has_other: bool, only_other: bool) -> Any:
    """A step that finds the least error of a group in `WIDTH` lanes.

    Parameters
    ----------
    lower_halves
        The lower halves that go with each upper half; called when a kernel is compiled.
    n
        Of how many numbers a part of a half is.
    has_other, only_other
        Whether the error with the cheapest sign changed is to be found too, and whether nothing else.

    Returns
    -------
    (halves, parts, other_parts, least, upper): the errors of lower halves and of the upper one's parts are
    given as `best_memory.Memory` has them. What is least is written to float32 `least`, first the error and
    then the other; to int32 `upper` the upper halves that have them, the first of several, -1 for none.
    """

    def search(typing_context: Any, halves: Any, parts: Any, other_parts: Any, least: Any, upper: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            errors = kinds.Lanes("f32", WIDTH).llvm_type
            numbers = kinds.Lanes("i32", WIDTH).llvm_type

            def read(argument: int, number: int) -> Any:
                place = ir.Constant(ir.IntType(64), WIDTH * number)
                return read_lanes(builder, halves.dtype, arguments[argument], place, WIDTH)

            def minimum(left: Any, right: Any) -> Any:
                return builder.select(builder.fcmp_ordered("<", left, right), left, right)

            found = [
                [ir.Constant(errors, [float("inf")] * WIDTH), ir.Constant(numbers, [-1] * WIDTH)]
                for _ in range(2)
            ]

            def compare(kind: int, error: Any, number: int) -> None:
                less = builder.fcmp_ordered("<", error, found[kind][0])
                found[kind][0] = builder.select(less, error, found[kind][0])
                found[kind][1] = builder.select(less, ir.Constant(numbers, [number] * WIDTH), found[kind][1])

            for number, lower in enumerate(lower_halves()):
                if not lower:
                    continue
                # LLVM would keep what upper halves share, and there are not so many registers.
                builder.fence("seq_cst", "singlethread")
                low, high = number % n, n + number // n
                error = builder.fadd(read(1, low), read(1, high))
                minima = [read(0, other * n * n + lower[0]) for other in range(1 + has_other)]
                for half in lower[1:]:
                    minima = [
                        minimum(least, read(0, other * n * n + half)) for other, least in enumerate(minima)
                    ]
                if not only_other:
                    compare(0, builder.fadd(error, minima[0]), number)
                if has_other:
                    changed = builder.fadd(error, minimum(read(2, low), read(2, high)))
                    in_upper, in_lower = builder.fadd(changed, minima[0]), builder.fadd(error, minima[1])
                    compare(1, minimum(in_upper, in_lower), number)
            for kind, both in enumerate(found):
                for value, memory in zip(both, arguments[3:], strict=True):
                    place = builder.gep(memory, [ir.Constant(ir.IntType(64), WIDTH * kind)])
                    builder.store(value, builder.bitcast(place, value.type.as_pointer())).align = 4
            return context.get_dummy_value()

        return types.void(halves, parts, other_parts, least, upper), generate

    return intrinsic(search)
