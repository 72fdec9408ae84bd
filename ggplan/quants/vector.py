"""The steps that kernels are written in: loads, stores, choices and conversions of N lanes (`lanes.Lanes`).

Why not leave it to the compiler: ggml's searches are long chains of sums whose order is part of the result,
so LLVM may not vectorise them along a block. They must run across blocks, one block per lane, and a loop
over lanes inside such code gets a third of the speed at best (measured on q4_K). Written with lanes, each
scalar of the C code becomes one value here and each branch a `select`, in the order of the source.

LLVM lowers the same code to AVX-512, AVX2, SSE or NEON registers, however many it takes, and gets no
fast-math flag: each lane is rounded exactly as a scalar would be. `minimum` and `maximum` are C's too:
`minimum(a, b)` is `a < b ? a : b`, also where one of them is a nan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ggplan.quants.accelerate import deferred, intrinsic
from ggplan.quants.machine_code import has_rounding, target

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

# Lanes that a kernel works on at once: two AVX-512 registers hide each other's latency; else 16.
# Nothing but speed depends on it.
WIDTH = 32 if "+avx512f" in target()[1].split(",") else 16


# --- Memory ------------------------------------------------------------------------------------------
# Indices count elements of a flat array and are not checked. Instead of an array there may be a pointer:
# Numba passes seven numbers for an array and counts its owners, so that steps that share many of them compile
# in half the time with pointers.


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    if isinstance(array_type, types.CPointer):
        return array
    return context.make_array(array_type)(context, builder, array).data


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: int) -> Any:
    vector = ir.VectorType(context.get_data_type(array_type.dtype), count)
    data = _data(context, builder, array_type, array)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _read(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: int) -> Any:
    value = builder.load(_address(context, builder, array_type, array, index, count))
    value.align = array_type.dtype.bitwidth // 8
    return value


def _write(context: Any, builder: Any, array_type: Any, array: Any, index: Any, value: Any) -> None:
    count = value.type.count
    if array_type.dtype in (types.uint8, types.uint16):
        value = builder.trunc(value, ir.VectorType(ir.IntType(array_type.dtype.bitwidth), count))
    address = _address(context, builder, array_type, array, index, count)
    builder.store(value, address).align = array_type.dtype.bitwidth // 8


@intrinsic
def load(typing_context: Any, array: Any, index: Any, count: Any) -> Any:
    """Read `count` (a constant) neighbours: float32 and int32 as they are, shorter ones as unsigned."""
    lanes = kinds.Lanes("f32" if array.dtype == types.float32 else "i32", count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _read(context, builder, array, arguments[0], arguments[1], lanes.count)
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
new_bytes = intrinsic(_new("uint8"))


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
            rows = [_read(context, builder, source, from_array, nth(start, step, n), 16) for n in range(runs)]
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


# Turn 16 runs of 16 numbers, a stride apart, into the 16 columns of 16 runs, another stride apart: float32 to
# float32, int32 to int32, the low 8 bits of int32 to uint8. And 64 runs of such low 8 bits into 16 runs of 64
# uint8, with no more shuffles: four bytes are turned as one number. Both take
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


# --- Making, choosing, testing -----------------------------------------------------------------------


@intrinsic
def splat(typing_context: Any, scalar: Any, count: Any) -> Any:
    """Repeat a float32 or an integer in `count` (a constant) lanes."""
    lanes = kinds.Lanes("f32" if scalar == types.float32 else "i32", count.literal_value)
    scalar = types.unliteral(scalar)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return kinds.spread(builder, lanes, arguments[0], scalar)

    return lanes(scalar, count), generate


@intrinsic
def repeat(typing_context: Any, value: Any, count: Any) -> Any:
    """Repeat all lanes of `value` until there are `count` (a constant)."""
    lanes = kinds.Lanes(value.kind, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        order = kinds.lane_indices([n % value.count for n in range(lanes.count)])
        return builder.shuffle_vector(arguments[0], arguments[0], order)

    return lanes(value, count), generate


@intrinsic
def lane(typing_context: Any, value: Any, index: Any) -> Any:
    """The scalar in one lane."""
    scalar = {"f32": types.float32, "i32": types.int32, "mask": types.boolean}[value.kind]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_element(*arguments)

    return scalar(value, types.int32), generate


@intrinsic
def select(typing_context: Any, mask: Any, chosen: Any, other: Any) -> Any:
    """Lane by lane: `chosen` where the mask is set, else `other`; one of them may be a scalar."""
    lanes = kinds.common_lanes(chosen, other)
    assert lanes is not None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(
            arguments[0],
            kinds.spread(builder, lanes, arguments[1], chosen),
            kinds.spread(builder, lanes, arguments[2], other),
        )

    return lanes(mask, chosen, other), generate


def _extremum(symbol: str) -> Callable[..., Any]:
    def extremum(typing_context: Any, left: Any, right: Any) -> Any:
        lanes = kinds.common_lanes(left, right)
        assert lanes is not None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a = kinds.spread(builder, lanes, arguments[0], left)
            b = kinds.spread(builder, lanes, arguments[1], right)
            compare = builder.fcmp_ordered if lanes.kind == "f32" else builder.icmp_signed
            return builder.select(compare(symbol, a, b), a, b)

        return lanes(left, right), generate

    return extremum


minimum = intrinsic(_extremum("<"))  # a < b ? a : b
maximum = intrinsic(_extremum(">"))  # a > b ? a : b


def _call(builder: Any, name: str, value: Any) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(value.type, [value.type]), f"llvm.{name}.v{value.type.count}f32"
    )
    return builder.call(function, [value])


def _function(name: str) -> Callable[..., Any]:
    def function(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _call(builder, name, arguments[0])

        return value(value), generate

    return function


square_root = intrinsic(_function("sqrt"))
absolute = intrinsic(_function("fabs"))

_SHIFT = 1.5 * 2**23  # adding this leaves no room for a fraction


@intrinsic
def rounded(typing_context: Any, value: Any) -> Any:
    """The nearest whole number, the even one of two, of float32 lanes between -2^22 and 2^22."""
    _, in_one_step = _function("roundeven")(typing_context, value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if has_rounding():
            return in_one_step(context, builder, signature, arguments)
        shift = ir.Constant(value.llvm_type, [_SHIFT] * value.count)
        return builder.fsub(builder.fadd(arguments[0], shift), shift)

    return value(value), generate


def _conversion(kind: str, operation: str) -> Callable[..., Any]:
    def conversion(typing_context: Any, value: Any) -> Any:
        lanes = kinds.Lanes(kind, value.count)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, operation)(arguments[0], lanes.llvm_type)

        return lanes(value), generate

    return conversion


bits_of = intrinsic(_conversion("i32", "bitcast"))  # the bits of float32 lanes
float_of_bits = intrinsic(_conversion("f32", "bitcast"))
float_of = intrinsic(_conversion("f32", "sitofp"))  # the value of int32 lanes
integer_of = intrinsic(_conversion("i32", "fptosi"))  # whole float32 lanes within int32 only


@intrinsic
def pair_products(typing_context: Any, value: Any) -> Any:
    """Lane 0 times lane 1, 2 times 3 and so on, as unsigned numbers of 32 bits: half as many int64."""
    lanes = kinds.Lanes("i64", value.count // 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pairs = builder.bitcast(arguments[0], lanes.llvm_type)
        low, half = (ir.Constant(lanes.llvm_type, [number] * lanes.count) for number in (0xFFFFFFFF, 32))
        return builder.mul(builder.and_(pairs, low), builder.lshr(pairs, half))

    return lanes(value), generate


@intrinsic
def any_lane(typing_context: Any, mask: Any) -> Any:
    """Whether the mask is set in any lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(mask.count))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), generate


@intrinsic
def all_lanes(typing_context: Any, mask: Any) -> Any:
    """Whether the mask is set in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(mask.count))
        return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, (1 << mask.count) - 1))

    return types.boolean(mask), generate


# --- Across the lanes --------------------------------------------------------------------------------


def _fold(symbol: str) -> Callable[..., Any]:
    """Reduce a power-of-two number of float32 lanes to one of them, half by half."""

    def fold(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = arguments[0]
            while (count := lanes.type.count) > 1:
                undefined = ir.Constant(lanes.type, ir.Undefined)
                first = builder.shuffle_vector(lanes, undefined, kinds.lane_indices(list(range(count // 2))))
                second = builder.shuffle_vector(
                    lanes, undefined, kinds.lane_indices(list(range(count // 2, count)))
                )
                lanes = builder.select(builder.fcmp_ordered(symbol, first, second), first, second)
            return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))

        return types.float32(value), generate

    return fold


# Which of two equal lanes is taken (-0.0 or +0.0) is left open.
smallest_lane = intrinsic(_fold("<"))
largest_lane = intrinsic(_fold(">"))


def _evens_and_odds(unit: int) -> tuple[Any, Any]:
    """Which of twice 16 lanes to take to part the even from the odd units of `unit` lanes, in fours of units.

    Fours of lanes and fours of four lanes: x86 shuffles these in one instruction.
    """
    evens = []
    for lane in range(16):
        four, place, rest = lane // (4 * unit), lane // unit % 4, lane % unit
        evens.append(16 * (place // 2) + (4 * four + 2 * (place % 2)) * unit + rest)
    return kinds.lane_indices(evens), kinds.lane_indices([lane + unit for lane in evens])


def _fold_blocks(symbol: str, of_magnitudes: bool = False) -> Callable[..., Any]:
    """Reduce each of 16 neighbouring blocks of 32 float32 to one of them.

    Alone, a block takes five rounds that wait for each other, each on half as many lanes. So two blocks share
    a vector: a round folds the even units of both with the odd ones, which leaves room for one of them, and
    16 blocks come to 16 lanes in 15 such steps.
    """

    def fold(typing_context: Any, array: Any, start: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def extreme(first: Any, second: Any) -> Any:
                return builder.select(builder.fcmp_ordered(symbol, first, second), first, second)

            def sixteen(offset: int) -> Any:
                at = builder.add(arguments[1], ir.Constant(ir.IntType(64), offset))
                lanes = _read(context, builder, array, arguments[0], at, 16)
                return _call(builder, "fabs", lanes) if of_magnitudes else lanes

            def folded(block: int, n_blocks: int) -> Any:
                if n_blocks == 1:
                    return extreme(sixteen(32 * block), sixteen(32 * block + 16))
                half = n_blocks // 2
                pair = folded(block, half), folded(block + half, half)
                evens, odds = _evens_and_odds(1 if n_blocks <= 4 else 4)
                return extreme(builder.shuffle_vector(*pair, evens), builder.shuffle_vector(*pair, odds))

            return folded(0, 16)

        return kinds.Lanes("f32", 16)(array, types.intp), generate

    return fold


# A lane for each of the 16 blocks of 32 float32 that begin at an index. Equal ones as above.
smallest_of_blocks = intrinsic(_fold_blocks("<"))
largest_of_blocks = intrinsic(_fold_blocks(">"))
largest_magnitude_of_blocks = intrinsic(_fold_blocks(">", of_magnitudes=True))


@intrinsic
def lane_sum(typing_context: Any, value: Any) -> Any:
    """The sum of int64 lanes, modulo 2^64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        items = [
            builder.extract_element(arguments[0], ir.Constant(ir.IntType(32), n)) for n in range(value.count)
        ]
        return functools.reduce(builder.add, items)

    return types.uint64(value), generate


@intrinsic
def lane_bits(typing_context: Any, mask: Any) -> Any:
    """A mask of up to 32 lanes as the bits of a uint32, lane 0 the lowest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(mask.count))
        return bits if mask.count == 32 else builder.zext(bits, ir.IntType(32))

    return types.uint32(mask), generate


@intrinsic
def first_lane(typing_context: Any, mask: Any) -> Any:
    """The index of the first lane that is set; the number of lanes where none is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(mask.count))
        return builder.zext(builder.cttz(bits, ir.Constant(ir.IntType(1), 0)), ir.IntType(64))

    return types.intp(mask), generate
