"""The least errors of lower halves for each upper half of a grid's points, in code without loops.

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


def minima_of(lower_halves: Callable[[], list[list[int]]]) -> Any:
    """A step that writes the minima of `WIDTH` lanes.

    Parameters
    ----------
    lower_halves
        The lower halves that go with each upper half; called when a kernel is compiled.

    Returns
    -------
    (memory, start, out, to): of float32 [start + WIDTH half + lane] the least of each upper half, written to
    out [to + WIDTH upper_half + lane]; infinity for one without any.
    """

    def minima(typing_context: Any, memory: Any, start: Any, out: Any, to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            numbers, first, results, target = arguments
            lanes = kinds.Lanes("f32", WIDTH)

            def address(begin: Any, half: int) -> Any:
                return builder.add(begin, ir.Constant(ir.IntType(64), WIDTH * half))

            for upper, lower in enumerate(lower_halves()):
                least = ir.Constant(lanes.llvm_type, [float("inf")] * WIDTH)
                for n, half in enumerate(lower):
                    error = read_lanes(builder, memory.dtype, numbers, address(first, half), WIDTH)
                    if n:
                        error = builder.select(builder.fcmp_ordered("<", least, error), least, error)
                    least = error
                place = builder.gep(results, [address(target, upper)])
                builder.store(least, builder.bitcast(place, lanes.llvm_type.as_pointer())).align = 4
            return context.get_dummy_value()

        return types.void(memory, types.intp, out, types.intp), generate

    return intrinsic(minima)
