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

GP214: ik_llama.cpp does not interleave these rows
    It looks the rows of `token_embd.weight` up one by one, and interleaves none that are no whole groups. The
    plain type takes the place of an `_rN` type there. Name the plain type for that tensor, above.
    - @target ik_llama.cpp
    - .* = iq4_k_r4
    + @target ik_llama.cpp
    + ^token_embd\.weight$ = iq4_k
    + .* = iq4_k_r4

GP215: ik_llama.cpp is to write the file
    ggplan plans with its types and does not encode them. Make a GGUF in bf16, write the rules as its
    llama-quantize reads them, and give it both.
    - @target ik_llama.cpp
    - ffn_up_exps\.weight = iq4_k
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.ggml_types import TYPES, GgmlType, way_to_write
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import rechosen, some
from ggplan.planning import Fitted
from ggplan.rules import Keep

_OWN = [t for t in TYPES if t.engine == "llama.cpp" and t.is_quantized and not t.internal and t.encodable]


class CannotWrite(Finding):
    """Tensors whose type ggplan has no encoder for."""

    tensors: str
    type: GgmlType
    says = "{f.tensors}: ggplan cannot write {f.type.described}"
    advice = "`ggplan types` shows which types can be written"


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


class NotInterleaved(Finding):
    """Tensors whose rows ik_llama.cpp does not interleave, the type asked for and the one in its place."""

    tensors: str
    asked: GgmlType
    got: GgmlType
    says = "{f.tensors}: ik_llama.cpp does not interleave the rows; {f.got} takes the place of {f.asked}"
    advice = "write a rule with {f.got} for it, above"


def check_interleaved(case: Case) -> Iterator[NotInterleaved]:
    for (rule, asked, got), members in case.grouped(_not_interleaved).items():
        yield NotInterleaved(case.place(rule), some(case, members), asked, got)


def _not_interleaved(f: Fitted) -> tuple[int | None, GgmlType, GgmlType] | None:
    asked = f.asked
    return None if asked is None or asked.plain != f.type else (f.decision.rule, asked, f.type)


class WrittenByIk(Finding):
    """How many tensors have types of ik_llama.cpp, and how such a file is made."""

    n_tensors: int
    way: str
    advice = "or choose a type that `ggplan types` shows with `writes`"

    @property
    def message(self) -> str:
        several = self.n_tensors > 1
        tensors = f"{self.n_tensors:,} tensors have types" if several else "1 tensor has a type"
        return f"{tensors} that ik_llama.cpp writes and ggplan does not; {self.way}"


def check_written_by_ik(case: Case) -> Iterator[WrittenByIk]:
    types = [f.type for f in case.fitted if _unwritable(f) and f.type.engine == "ik_llama.cpp"]
    if types and case.recipe.target != "llama.cpp":
        model = "" if case.model.kind == "inventory" else str(case.model.path)
        way = way_to_write(types[0], case.recipe.file, model, case.model.pretokenizer)
        yield WrittenByIk(case.file, len(types), way)


def check_target(case: Case) -> Iterator[ForeignType]:
    if case.recipe.target != "llama.cpp":
        return
    for choice in case.choices():
        for type_, at in zip(choice.types, choice.locations, strict=True):
            if not isinstance(type_, Keep) and type_.engine != "llama.cpp":
                near = min(_OWN, key=lambda t: (abs(t.bits_per_weight - type_.bits_per_weight), t.name))
                types = [near if t == type_ else t for t in choice.types]
                text = " | ".join(map(str, types)) + "!" * choice.forced
                yield ForeignType(at, type_, near, fixes=(rechosen(choice, text, safe=False),))


GP208 = LintRule("GP208", "note", check_writable)
GP215 = LintRule("GP215", "note", check_written_by_ik)
GP214 = LintRule("GP214", "note", check_interleaved)
GP210 = LintRule("GP210", "error", check_target)
