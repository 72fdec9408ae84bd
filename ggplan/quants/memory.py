"""What kernels do with memory: load lanes (`vector`), store them, transpose them, and have room of their own.

Indices count elements of a flat array and are not checked. Instead of an array there may be a pointer: Numba
passes seven numbers for an array and counts its owners, so steps that share many arrays compile in half the
time with pointers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ggplan.quants.accelerate import deferred, intrinsic

if TYPE_CHECKING:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.np import arrayobj as arrays

    from ggplan.quants import lanes as kinds
else:
    ir = deferred("llvmlite.ir")
    types = deferred("numba.types")
    cgutils = deferred("numba.core.cgutils")
    arrays = deferred("numba.np.arrayobj")
    kinds = deferred("ggplan.quants.lanes")


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    if isinstance(array_type, types.CPointer):
        return array
    return context.make_array(array_type)(context, builder, array).data


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: int) -> Any:
    vector = ir.VectorType(context.get_data_type(array_type.dtype), count)
    data = _data(context, builder, array_type, array)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def read_lanes(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: int) -> Any:
    """LLVM code that reads `count` neighbours of an array; for use in intrinsics."""
    value = builder.load(_address(context, builder, array_type, array, index, count))
    value.align = array_type.dtype.bitwidth // 8
    return value


def _write(context: Any, builder: Any, array_type: Any, array: Any, index: Any, value: Any) -> None:
    count = value.type.count
    if array_type.dtype in (types.uint8, types.uint16):
        value = builder.trunc(value, ir.VectorType(ir.IntType(array_type.dtype.bitwidth), count))
    address = _address(context, builder, array_type, array, index, count)
    builder.store(value, address).align = array_type.dtype.bitwidth // 8


def read_weights(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: int) -> Any:
    """As `read_lanes`, but what is uint16 are the bits of bfloat16: they become float32."""
    value = read_lanes(context, builder, array_type, array, index, count)
    if array_type.dtype != types.uint16:
        return value
    wide = ir.VectorType(ir.IntType(32), count)
    bits = builder.shl(builder.zext(value, wide), ir.Constant(wide, [16] * count))
    return builder.bitcast(bits, ir.VectorType(ir.FloatType(), count))


@intrinsic
def load_weights(typing_context: Any, array: Any, index: Any, count: Any) -> Any:
    """Read `count` (a constant) neighbours of rows, float32 or the bits of bfloat16 in uint16, as float32."""
    lanes = kinds.Lanes("f32", count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return read_weights(context, builder, array, arguments[0], arguments[1], lanes.count)

    return lanes(array, types.intp, count), generate


@intrinsic
def load(typing_context: Any, array: Any, index: Any, count: Any) -> Any:
    """Read `count` (a constant) neighbours: float32 and int32 as they are, shorter ones as unsigned."""
    lanes = kinds.Lanes("f32" if array.dtype == types.float32 else "i32", count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = read_lanes(context, builder, array, arguments[0], arguments[1], lanes.count)
        return builder.zext(value, lanes.llvm_type) if array.dtype in (types.uint8, types.uint16) else value

    return lanes(array, types.intp, count), generate


@intrinsic
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write lanes to neighbours; to arrays of uint8 or uint16 go the low bits of each int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _write(context, builder, array, *arguments)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def store_bytes(typing_context: Any, array: Any, index: Any, number: Any, count: Any) -> Any:
    """Write the lowest `count` (a constant) bytes of an integer to an array of uint8, the lowest first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to_array, at, integer, _ = arguments
        n_bytes = count.literal_value
        lowest = builder.trunc(integer, ir.IntType(8 * n_bytes))
        lanes = builder.bitcast(lowest, ir.VectorType(ir.IntType(8), n_bytes))
        _write(context, builder, array, to_array, at, lanes)
        return context.get_dummy_value()

    return types.void(array, types.intp, number, count), generate


def _new(element: str) -> Callable[..., Any]:
    def new(typing_context: Any, count: Any) -> Any:
        array_type = types.Array(getattr(types, element), 1, "C")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            size = ir.Constant(ir.IntType(64), array_type.dtype.bitwidth // 8)
            owner = context.nrt.meminfo_alloc_aligned(
                builder, builder.mul(arguments[0], size), ir.Constant(ir.IntType(32), 64)
            )
            data = context.nrt.meminfo_data(builder, owner)
            array = context.make_array(array_type)(context, builder)
            data = builder.bitcast(data, array.data.type)
            arrays.populate_array(array, data, [arguments[0]], [size], size, owner)
            return array._getvalue()

        return array_type(types.intp), generate

    return new


# Room for so many numbers, from the beginning of a cache line on: lanes that straddle two lines cost more.
new_floats = intrinsic(_new("float32"))
new_integers = intrinsic(_new("int32"))


def _pointer(element: str) -> Callable[..., Any]:
    def pointer(typing_context: Any, array: Any, index: Any) -> Any:
        pointer_type = types.CPointer(getattr(types, element))

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = _data(context, builder, array, arguments[0])
            address = builder.gep(data, [arguments[1]])
            return builder.bitcast(address, context.get_data_type(pointer_type))

        return pointer_type(array, types.intp), generate

    return pointer


# A pointer to an element of an array, or of what another pointer points to; `pointer[i]` counts from there.
# It keeps nothing alive: the array must still be in use.
floats_at = intrinsic(_pointer("float32"))
integers_at = intrinsic(_pointer("int32"))


@intrinsic
def pointers(typing_context: Any, arrays: Any) -> Any:
    """Pointers to the first elements of a named tuple's arrays, in a tuple of the same names."""
    pointer_types = [types.CPointer(array.dtype) for array in arrays.types]
    result = types.NamedTuple(pointer_types, arrays.instance_class)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        items = [
            _data(context, builder, array, builder.extract_value(arguments[0], n))
            for n, array in enumerate(arrays.types)
        ]
        return context.make_tuple(builder, result, items)

    return result(arrays), generate


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

            from_array, start, step, to_array, to_start, to_step = arguments
            rows = [
                read_weights(context, builder, source, from_array, nth(start, step, n), 16)
                for n in range(runs)
            ]
            if runs == 64:
                rows = [_four_bytes(builder, rows[n : n + 4]) for n in range(0, 64, 4)]
            for n, column in enumerate(_turned(builder, rows)):
                if runs == 64:
                    column = builder.bitcast(column, ir.VectorType(ir.IntType(8), 64))
                _write(context, builder, target, to_array, nth(to_start, to_step, n), column)
            return context.get_dummy_value()

        intp = types.intp
        return types.void(source, intp, intp, target, intp, intp), generate

    return transposition


# Turn 16 runs of 16 numbers, a stride apart, into the 16 columns of 16 runs, another stride apart: float32 or
# the bits of bfloat16 to float32, int32 to int32, the low 8 bits of int32 to uint8. And 64 runs of such low
# 8 bits into 16 runs of 64 uint8, with no more shuffles: four bytes are turned as one number. Both take
# (source, index, stride, target, target_index, target_stride).
transpose = intrinsic(_transposition(16))
transpose_bytes = intrinsic(_transposition(64))


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of an element that is soon to be read; it need not exist."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        i32 = ir.IntType(32)
        pointer = builder.bitcast(
            builder.gep(_data(context, builder, array, arguments[0]), [arguments[1]]),
            ir.IntType(8).as_pointer(),
        )
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32]),
            "llvm.prefetch.p0",
        )
        builder.call(function, [pointer, ir.Constant(i32, 0), ir.Constant(i32, 2), ir.Constant(i32, 1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
