"""What kernels do with memory: load lanes (`vector`), store them, transpose them.

Memory is a pointer to numbers of one type (`kernels`); indices count from it and are not checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ggplan.quants.kernels import deferred, intrinsic

if TYPE_CHECKING:
    from llvmlite import ir
    from numba import types

    from ggplan.quants import lanes as kinds
else:
    ir = deferred("llvmlite.ir")
    types = deferred("numba.types")
    kinds = deferred("ggplan.quants.lanes")

_CACHE_LINE = 64  # bytes


def _address(builder: Any, element: Any, memory: Any, index: Any, count: int) -> Any:
    vector = ir.VectorType(kinds.llvm_type_of(element), count)
    return builder.bitcast(builder.gep(memory, [index]), vector.as_pointer())


def read_lanes(builder: Any, element: Any, memory: Any, index: Any, count: int) -> Any:
    """LLVM code that reads neighbours as they are."""
    value = builder.load(_address(builder, element, memory, index, count))
    value.align = element.bitwidth // 8
    return value


def _write(builder: Any, element: Any, memory: Any, index: Any, value: Any) -> None:
    count = value.type.count
    if element in (types.uint8, types.uint16):
        value = builder.trunc(value, ir.VectorType(ir.IntType(element.bitwidth), count))
    builder.store(value, _address(builder, element, memory, index, count)).align = element.bitwidth // 8


def read_weights(builder: Any, element: Any, memory: Any, index: Any, count: int) -> Any:
    """LLVM code that reads neighbours; what is uint16 are the bits of bfloat16, and becomes float32."""
    value = read_lanes(builder, element, memory, index, count)
    if element != types.uint16:
        return value
    wide = ir.VectorType(ir.IntType(32), count)
    bits = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * count))
    return builder.bitcast(bits, ir.VectorType(ir.FloatType(), count))


@intrinsic
def load_weights(typing_context: Any, memory: Any, index: Any, count: Any) -> Any:
    """Read `count` (a constant) neighbouring weights, float32 or the bits of bfloat16, as float32."""
    lanes = kinds.Lanes("f32", count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return read_weights(builder, memory.dtype, arguments[0], arguments[1], lanes.count)

    return lanes(memory, types.intp, count), generate


@intrinsic
def load(typing_context: Any, memory: Any, index: Any, count: Any) -> Any:
    """Read `count` (a constant) neighbours: float32 and int32 as they are, shorter ones as unsigned."""
    lanes = kinds.Lanes("f32" if memory.dtype == types.float32 else "i32", count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = read_lanes(builder, memory.dtype, arguments[0], arguments[1], lanes.count)
        is_short = memory.dtype in (types.uint8, types.uint16)
        return builder.zext(value, lanes.llvm_type) if is_short else value

    return lanes(memory, types.intp, count), generate


@intrinsic
def store(typing_context: Any, memory: Any, index: Any, value: Any) -> Any:
    """Write lanes to neighbours; to uint8 or uint16 go the low bits of each int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _write(builder, memory.dtype, *arguments)
        return context.get_dummy_value()

    return types.void(memory, types.intp, value), generate


@intrinsic
def store_bytes(typing_context: Any, memory: Any, index: Any, number: Any, count: Any) -> Any:
    """Write the lowest `count` (a constant) bytes of an integer to memory with uint8, the lowest first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to_memory, at, integer, _ = arguments
        n_bytes = count.literal_value
        lowest = builder.trunc(integer, ir.IntType(8 * n_bytes))
        lanes = builder.bitcast(lowest, ir.VectorType(ir.IntType(8), n_bytes))
        _write(builder, memory.dtype, to_memory, at, lanes)
        return context.get_dummy_value()

    return types.void(memory, types.intp, number, count), generate


def _part(element: str) -> Callable[..., Any]:
    def part(typing_context: Any, memory: Any, index: Any) -> Any:
        pointer_type = types.CPointer(getattr(types, element))

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = builder.gep(arguments[0], [arguments[1]])
            return builder.bitcast(address, kinds.llvm_type_of(pointer_type.dtype).as_pointer())

        return pointer_type(memory, types.intp), generate

    return part


# The memory from an element on, as numbers of a type.
floats_at = intrinsic(_part("float32"))
integers_at = intrinsic(_part("int32"))
shorts_at = intrinsic(_part("uint16"))
bytes_at = intrinsic(_part("uint8"))


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of 16 rows: four rounds, each of which swaps the off-diagonal squares of half the size."""
    rows = rows[:]
    for half in (8, 4, 2, 1):
        upper = kinds.lane_indices([lane if not lane & half else 16 + lane - half for lane in range(16)])
        lower = kinds.lane_indices([lane + half if not lane & half else 16 + lane for lane in range(16)])
        for n in range(16):
            if not n & half:
                pair = rows[n], rows[n + half]
                rows[n] = builder.shuffle_vector(*pair, upper)
                rows[n + half] = builder.shuffle_vector(*pair, lower)
    return rows


def _four_bytes(builder: Any, rows: list[Any]) -> Any:
    """The low 8 bits of four rows in one, those of the first lowest."""
    low, *shifts = (ir.Constant(rows[0].type, [number] * 16) for number in (255, 0, 8, 16, 24))
    bytes_ = [builder.shl(builder.and_(row, low), shift) for row, shift in zip(rows, shifts, strict=True)]
    return functools.reduce(builder.or_, bytes_)


def _transposition(runs: int) -> Callable[..., Any]:
    def transposition(
        typing_context: Any, source: Any, index: Any, stride: Any, target: Any, to_index: Any, to_stride: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def nth(start: Any, step: Any, n: int) -> Any:
                return builder.add(start, builder.mul(step, ir.Constant(ir.IntType(64), n)))

            from_memory, start, step, to_memory, to_start, to_step = arguments
            rows = [
                read_weights(builder, source.dtype, from_memory, nth(start, step, n), 16) for n in range(runs)
            ]
            if runs == 8:
                rows += rows
            if runs == 64:
                rows = [_four_bytes(builder, rows[n : n + 4]) for n in range(0, 64, 4)]
            for n, column in enumerate(_turned(builder, rows)):
                if runs == 64:
                    column = builder.bitcast(column, ir.VectorType(ir.IntType(8), 64))
                if runs == 8:
                    column = builder.shuffle_vector(column, column, kinds.lane_indices(list(range(8))))
                _write(builder, target.dtype, to_memory, nth(to_start, to_step, n), column)
            return context.get_dummy_value()

        intp = types.intp
        return types.void(source, intp, intp, target, intp, intp), generate

    return transposition


# Turn 16 runs of 16 numbers, a stride apart, into the 16 columns of 16 runs, another stride apart: float32
# or the bits of bfloat16 to float32, int32 to int32, the low 8 bits of int32 to uint8. The same for 8 runs,
# into 16 columns of 8. And 64 runs of such low 8 bits into 16 runs of 64 uint8, with no more shuffles: four
# bytes are turned as one number. All take (source, index, stride, target, target_index, target_stride).
transpose = intrinsic(_transposition(16))
transpose_eight = intrinsic(_transposition(8))
transpose_bytes = intrinsic(_transposition(64))


@intrinsic
def prefetch(typing_context: Any, memory: Any, index: Any, count: Any) -> Any:
    """Ask for the cache lines of `count` (a constant) elements that are read soon; they need not exist."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        i32 = ir.IntType(32)
        first = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(8).as_pointer())
        function = kinds.llvm_function(builder, "prefetch.p0", ir.VoidType(), [first.type, i32, i32, i32])
        for offset in range(0, count.literal_value * memory.dtype.bitwidth // 8, _CACHE_LINE):
            address = builder.gep(first, [ir.Constant(i32, offset)])
            # To read, of middling use afterwards, data.
            builder.call(function, [address, ir.Constant(i32, 0), ir.Constant(i32, 2), ir.Constant(i32, 1)])
        return context.get_dummy_value()

    return types.void(memory, types.intp, count), generate
