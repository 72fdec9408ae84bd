"""GP208 and GP210: types that ggplan cannot write, or the engine of `@target` does not know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.ggml_types import TYPES, GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.linting.wording import rechosen, some
from ggplan.planning import Fitted
from ggplan.rules import Choice, Fix

_OWN = [t for t in TYPES if t.engine == "llama.cpp" and t.is_quantized and not t.internal and t.encodable]


@dataclass(frozen=True, slots=True)
class CannotWrite(Finding):
    """Tensors whose type ggplan has no encoder for."""

    tensors: str
    type: GgmlType

    @property
    def message(self) -> str:
        return f"{self.tensors}: ggplan cannot write {self.type.described}"

    def help(self, fix: Fix | None) -> str:
        return "`ggplan types` shows which types can be written"


@dataclass(frozen=True, slots=True)
class ForeignType(Finding):
    """A type of ik_llama.cpp where llama.cpp is the target, and llama.cpp's of about as many bits."""

    choice: Choice
    type: GgmlType
    near: GgmlType

    @property
    def message(self) -> str:
        return f"llama.cpp does not know {self.type}, a type of ik_llama.cpp"

    def help(self, fix: Fix | None) -> str:
        bits = f"{self.near.bits_per_weight:.4g} bits a weight"
        return f"write `{self.near}` ({bits}), or `@target ik_llama.cpp`"

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        types = [self.near if t == self.type else t for t in self.choice.types]
        text = " | ".join(map(str, types)) + "!" * self.choice.forced
        return rechosen(self.choice, text, safe=False)


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
                yield ForeignType(at, choice, type_, near)


GP208 = LintRule(
    "GP208",
    "note",
    "ggplan cannot write the type",
    "It knows the type's size, so it can plan with it; `ggplan convert` refuses it. Choose one that "
    "`ggplan types` shows with `writes`.",
    check=check_writable,
)
GP210 = LintRule(
    "GP210",
    "error",
    "the target does not know the type",
    "`@target llama.cpp` promises that llama.cpp loads the file; iq4_k, iq5_ks, q6_0 and others are "
    "ik_llama.cpp's own.",
    "@target llama.cpp\nffn_up_exps\\.weight = iq4_k",
    "@target llama.cpp\nffn_up_exps\\.weight = q4_K",
    check_target,
)
