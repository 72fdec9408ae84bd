"""The steps that kernels are written in: choices, conversions and reductions of N lanes (`lanes.Lanes`).

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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ggplan.quants.kernels import deferred, intrinsic
from ggplan.quants.machine_code import has_rounding, has_wide_registers
from ggplan.quants.memory import read_lanes, read_weights

if TYPE_CHECKING:
    from llvmlite import ir
    from numba import types

    from ggplan.quants import lanes as kinds
else:
    ir = deferred("llvmlite.ir")
    types = deferred("numba.types")
    kinds = deferred("ggplan.quants.lanes")

# Lanes that a kernel works on at once: two AVX-512 registers hide each other's latency; else 16.
# Nothing but speed depends on it.
WIDTH = 32 if has_wide_registers() else 16


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
    function = kinds.llvm_function(builder, f"{name}.v{value.type.count}f32", value.type, [value.type])
    return builder.call(function, [value])


def _function(name: str) -> Callable[..., Any]:
    def function(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _call(builder, name, arguments[0])

        return value(value), generate

    return function


square_root = intrinsic(_function("sqrt"))
absolute = intrinsic(_function("fabs"))


@intrinsic
def fused(typing_context: Any, factor: Any, other: Any, total: Any) -> Any:
    """Factor * other + total, float32 lanes, rounded once; `other` may be a scalar.

    The bits are those of any machine: where a processor has no instruction for it, C's library works it out.
    """
    lanes = factor

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = f"fma.v{lanes.count}f32"
        function = kinds.llvm_function(builder, name, lanes.llvm_type, [lanes.llvm_type] * 3)
        spread = kinds.spread(builder, lanes, arguments[1], other)
        return builder.call(function, [arguments[0], spread, arguments[2]])

    return lanes(factor, other, total), generate


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


def _folded(builder: Any, lanes: Any, choose: Callable[[Any, Any], Any]) -> Any:
    """LLVM code that reduces a power-of-two number of lanes to one of them, half by half."""
    while (count := lanes.type.count) > 1:
        undefined = ir.Constant(lanes.type, ir.Undefined)
        first = builder.shuffle_vector(lanes, undefined, kinds.lane_indices(list(range(count // 2))))
        second = builder.shuffle_vector(lanes, undefined, kinds.lane_indices(list(range(count // 2, count))))
        lanes = choose(first, second)
    return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))


def _fold(symbol: str) -> Callable[..., Any]:
    def fold(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _folded(builder, arguments[0], _choice(builder, symbol))

        return types.float32(value), generate

    return fold


# Which of two equal lanes is taken (-0.0 or +0.0) is left open.
smallest_lane = intrinsic(_fold("<"))
largest_lane = intrinsic(_fold(">"))


@intrinsic
def largest_magnitude(typing_context: Any, memory: Any, start: Any, count: Any) -> Any:
    """The largest magnitude of `count` (a constant, a multiple of 32) neighbouring weights.

    The bits of bfloat16 without their sign are in the order of the numbers, and need not be widened.
    """
    is_bf16 = memory.dtype == types.uint16

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def larger(first: Any, second: Any) -> Any:
            compare = builder.icmp_unsigned if is_bf16 else builder.fcmp_ordered
            return builder.select(compare(">", first, second), first, second)

        def magnitudes(offset: int) -> Any:
            at = builder.add(arguments[1], ir.Constant(ir.IntType(64), offset))
            lanes = read_lanes(builder, memory.dtype, arguments[0], at, 32)
            if is_bf16:
                return builder.and_(lanes, ir.Constant(lanes.type, [0x7FFF] * 32))
            return _call(builder, "fabs", lanes)

        most = functools.reduce(larger, map(magnitudes, range(0, count.literal_value, 32)))
        found = _folded(builder, most, larger)
        if not is_bf16:
            return found
        bits = builder.shl(builder.zext(found, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(memory, types.intp, count), generate


def _evens_and_odds(unit: int) -> tuple[Any, Any]:
    """Which of twice 16 lanes to take to part the even from the odd units of `unit` lanes, in fours of units.

    Fours of lanes and fours of four lanes: x86 shuffles these in one instruction.
    """
    evens = []
    for lane in range(16):
        four, place, rest = lane // (4 * unit), lane // unit % 4, lane % unit
        evens.append(16 * (place // 2) + (4 * four + 2 * (place % 2)) * unit + rest)
    return kinds.lane_indices(evens), kinds.lane_indices([lane + unit for lane in evens])


def _fold_blocks(
    builder: Any, sixteen: Callable[[int], Any], choices: Sequence[Callable[[Any, Any], Any]]
) -> list[Any]:
    """LLVM code that reduces each of 16 neighbouring blocks of 32 lanes to one of them, for each choice.

    Alone, a block takes five rounds that wait for each other, each on half as many lanes. So two blocks share
    a vector: a round folds the even units of both with the odd ones, which leaves room for one of them, and
    16 blocks come to 16 lanes in 15 such steps. Several choices are made side by side, since lanes that are
    read for one would not stay in registers until the next.
    """

    def folded(block: int, n_blocks: int) -> list[Any]:
        if n_blocks == 1:
            first, second = sixteen(32 * block), sixteen(32 * block + 16)
            return [choose(first, second) for choose in choices]
        half = n_blocks // 2
        evens, odds = _evens_and_odds(1 if n_blocks <= 4 else 4)
        pairs = zip(choices, folded(block, half), folded(block + half, half), strict=True)
        return [
            choose(builder.shuffle_vector(*pair, evens), builder.shuffle_vector(*pair, odds))
            for choose, *pair in pairs
        ]

    return folded(0, 16)


def _choice(builder: Any, symbol: str) -> Callable[[Any, Any], Any]:
    return lambda first, second: builder.select(builder.fcmp_ordered(symbol, first, second), first, second)


def _sixteen(builder: Any, memory: Any, arguments: Sequence[Any]) -> Callable[[int], Any]:
    def sixteen(offset: int) -> Any:
        at = builder.add(arguments[1], ir.Constant(ir.IntType(64), offset))
        return read_weights(builder, memory.dtype, arguments[0], at, 16)

    return sixteen


@intrinsic
def extremes_of_blocks(typing_context: Any, memory: Any, start: Any) -> Any:
    """The smallest of each of the 16 blocks of 32 weights that begin at an index, then the largest of each.

    Which of two equal ones is taken (-0.0 or +0.0) is left open.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        choices = _choice(builder, "<"), _choice(builder, ">")
        found = _fold_blocks(builder, _sixteen(builder, memory, arguments), choices)
        return builder.shuffle_vector(*found, kinds.lane_indices(list(range(32))))

    return kinds.Lanes("f32", 32)(memory, types.intp), generate


@intrinsic
def largest_magnitude_of_blocks(typing_context: Any, memory: Any, start: Any) -> Any:
    """The largest magnitude of each of the 16 blocks of 32 weights that begin at an index."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        read = _sixteen(builder, memory, arguments)
        choices = [_choice(builder, ">")]
        return _fold_blocks(builder, lambda offset: _call(builder, "fabs", read(offset)), choices)[0]

    return kinds.Lanes("f32", 16)(memory, types.intp), generate


@intrinsic
def add_runs(typing_context: Any, total: Any, values: Any) -> Any:
    """Add to lanes each run of as many lanes of `values`, one after the other."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, addends = arguments
        for start in range(0, values.count, total.count):
            run = kinds.lane_indices(list(range(start, start + total.count)))
            sums = builder.fadd(sums, builder.shuffle_vector(addends, addends, run))
        return sums

    return total(total, values), generate


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
