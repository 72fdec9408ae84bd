"""The Numba type of N lanes, and its operators: `Lanes("f32", 16)` is one LLVM `<16 x float>`.

There are three kinds: float32, int32, and masks, which comparisons give; and int64, which can only be added.
Operators work between lanes of one kind, and between lanes and one scalar of theirs (a float32, any integer),
which is repeated in every lane. A float64 is none of them: `lanes * 0.5` does not compile,
`lanes * np.float32(0.5)` does.

    +                    float32, int32, int64
    - * -x               float32, int32         (no -x of int32)
    /                    float32
    & | ^ ~              int32, masks
    << >>                int32; >> keeps the sign
    < <= > >= == !=      float32, int32; as in C, all but != are false where a nan is
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import lower_builtin, models, register_model, type_callable

_I32 = ir.IntType(32)
_ELEMENTS = {"f32": ir.FloatType(), "i32": _I32, "i64": ir.IntType(64), "mask": ir.IntType(1)}


_NUMBERS = {
    types.float32: ir.FloatType(),
    **{
        getattr(types, f"{sign}int{bits}"): ir.IntType(bits) for sign in ("", "u") for bits in (8, 16, 32, 64)
    },
}


def llvm_type_of(number: types.Type) -> ir.Type:
    """LLVM's type of a number in memory."""
    return _NUMBERS[number]


def llvm_function(builder: Any, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    """A function that LLVM has by itself, by its name after `llvm.`."""
    known = builder.module.globals.get(f"llvm.{name}")
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), f"llvm.{name}")


class Lanes(types.Type):  # type: ignore[misc]
    """The Numba type of `count` lanes of one kind: "f32", "i32", "i64" or "mask"."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind = kind
        self.count = count
        super().__init__(name=f"Lanes({kind} x {count})")

    @property
    def key(self) -> tuple[str, int]:
        """What Numba compares types by."""
        return self.kind, self.count

    @property
    def llvm_type(self) -> ir.VectorType:
        """The LLVM vector type."""
        return ir.VectorType(_ELEMENTS[self.kind], self.count)

    def accepts(self, scalar: types.Type) -> bool:
        """Whether a scalar of this type may stand for lanes."""
        if self.kind == "f32":
            return bool(scalar == types.float32)
        return self.kind == "i32" and isinstance(scalar, types.Integer)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, lanes.llvm_type)


def common_lanes(left: types.Type, right: types.Type) -> Lanes | None:
    """The lanes that an operation on these two works on."""
    if isinstance(left, Lanes):
        return left if left == right or left.accepts(right) else None
    return right if isinstance(right, Lanes) and right.accepts(left) else None


def spread(builder: Any, lanes: Lanes, value: Any, value_type: types.Type) -> Any:
    """`value` itself where it has lanes, else the scalar repeated in each lane."""
    if isinstance(value_type, Lanes):
        return value
    if lanes.kind == "i32" and value.type.width != 32:
        resize = builder.trunc if value.type.width > 32 else builder.sext
        value = resize(value, _I32)
    undefined = ir.Constant(lanes.llvm_type, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, lane_indices([0] * lanes.count))


def lane_indices(values: list[int]) -> ir.Constant:
    """The constant that tells a shuffle which lanes to take."""
    return ir.Constant(ir.VectorType(_I32, len(values)), values)


def _register(
    operation: Callable[..., Any],
    result_kind: str | None,
    emitters: dict[str, Callable[[Any, Any, Any], Any]],
) -> None:
    """Teach Numba a binary operator; `emitters` maps a kind of lanes to (builder, left, right) -> value."""

    def typer(left: Any, right: Any) -> Any:
        lanes = common_lanes(left, right)
        if lanes is None or lanes.kind not in emitters:
            return None
        return Lanes(result_kind, lanes.count) if result_kind else lanes

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = common_lanes(*signature.args)
        assert lanes is not None
        left, right = (
            spread(builder, lanes, value, value_type)
            for value, value_type in zip(arguments, signature.args, strict=True)
        )
        return emitters[lanes.kind](builder, left, right)

    type_callable(operation)(lambda context: typer)
    for left, right in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(operation, left, right)(lower)


def _register_comparison(operation: Callable[..., Any], symbol: str) -> None:
    def floats(builder: Any, left: Any, right: Any) -> Any:
        compare = builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered
        return compare(symbol, left, right)

    def integers(builder: Any, left: Any, right: Any) -> Any:
        return builder.icmp_signed(symbol, left, right)

    _register(operation, "mask", {"f32": floats, "i32": integers})


_add, _sub, _mul = ir.IRBuilder.add, ir.IRBuilder.sub, ir.IRBuilder.mul
_and, _or, _xor = ir.IRBuilder.and_, ir.IRBuilder.or_, ir.IRBuilder.xor
_register(operator.add, None, {"f32": ir.IRBuilder.fadd, "i32": _add, "i64": _add})
_register(operator.sub, None, {"f32": ir.IRBuilder.fsub, "i32": _sub})
_register(operator.mul, None, {"f32": ir.IRBuilder.fmul, "i32": _mul})
_register(operator.truediv, None, {"f32": ir.IRBuilder.fdiv})
_register(operator.and_, None, {"i32": _and, "mask": _and})
_register(operator.or_, None, {"i32": _or, "mask": _or})
_register(operator.xor, None, {"i32": _xor, "mask": _xor})
_register(operator.lshift, None, {"i32": ir.IRBuilder.shl})
_register(operator.rshift, None, {"i32": ir.IRBuilder.ashr})
_register_comparison(operator.lt, "<")
_register_comparison(operator.le, "<=")
_register_comparison(operator.gt, ">")
_register_comparison(operator.ge, ">=")
_register_comparison(operator.eq, "==")
_register_comparison(operator.ne, "!=")


def _register_unary(operation: Callable[..., Any], kinds: set[str], emit: Callable[[Any, Any], Any]) -> None:
    def typer(value: Any) -> Any:
        return value if isinstance(value, Lanes) and value.kind in kinds else None

    type_callable(operation)(lambda context: typer)
    lower_builtin(operation, Lanes)(
        lambda context, builder, signature, arguments: emit(builder, arguments[0])
    )


_register_unary(operator.neg, {"f32"}, ir.IRBuilder.fneg)
_register_unary(operator.invert, {"i32", "mask"}, ir.IRBuilder.not_)
