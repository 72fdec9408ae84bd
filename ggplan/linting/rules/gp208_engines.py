r"""Types that ggplan cannot write, or the engine of `@target` does not know.

GP208: ggplan cannot write the type
    It knows the type's size, so it can plan with it; `ggplan convert` refuses it. Choose one that
    `ggplan types` shows with `writes`.

GP210: the target does not know the type
    `@target llama.cpp` promises that llama.cpp loads the file; iq4_k, iq5_ks, q6_0 and others are
    ik_llama.cpp's own.
    - @target llama.cpp
    - ffn_up_exps\.weight = iq4_k
    + @target llama.cpp
    + ffn_up_exps\.weight = q4_K
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.ggml_types import TYPES, GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import rechosen, some
from ggplan.planning import Fitted

_OWN = [t for t in TYPES if t.engine == "llama.cpp" and t.is_quantized and not t.internal and t.encodable]


@dataclass(frozen=True, slots=True)
class CannotWrite(Finding):
    """Tensors whose type ggplan has no encoder for."""

    tensors: str
    type: GgmlType
    says = "{f.tensors}: ggplan cannot write {f.type.described}"
    advice = "`ggplan types` shows which types can be written"


@dataclass(frozen=True, slots=True)
class ForeignType(Finding):
    """A type of ik_llama.cpp where llama.cpp is the target, and llama.cpp's of about as many bits."""

    type: GgmlType
    near: GgmlType
    says = "llama.cpp does not know {f.type}, a type of ik_llama.cpp"
    advice = "write `{f.near}` ({f.near.bits_per_weight:.4g} bits a weight), or `@target ik_llama.cpp`"


def check_writable(case: Case) -> Iterator[CannotWrite]:
    for (rule, type_), members in case.grouped(_unwritable).items():
        yield CannotWrite(case.place(rule), some(case, members), type_)


def _unwritable(f: Fitted) -> tuple[int | None, GgmlType] | None:
    return None if f.type.encodable or f.type == f.tensor.type else (f.decision.rule, f.type)


def check_target(case: Case) -> Iterator[ForeignType]:
    if case.recipe.target != "llama.cpp":
        return
    for choice in case.choices():
        for type_, at in zip(choice.types, choice.locations, strict=True):
            if type_.engine != "llama.cpp":
                near = min(_OWN, key=lambda t: (abs(t.bits_per_weight - type_.bits_per_weight), t.name))
                types = [near if t == type_ else t for t in choice.types]
                text = " | ".join(map(str, types)) + "!" * choice.forced
                yield ForeignType(at, type_, near, fixes=(rechosen(choice, text, safe=False),))


GP208 = LintRule("GP208", "note", check_writable)
GP210 = LintRule("GP210", "error", check_target)
