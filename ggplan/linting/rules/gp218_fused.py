r"""Rules for parts that meet a fused tensor, and rules for a fused tensor that meet its parts.

GP218: a rule for another form of a tensor decides it
    Some files have gate and up, or q, k and v, as one tensor. A rule for a part decides the fused tensor, and
    one for the fused tensor its parts, where the model has only the other form and the recipe has no rule for
    that. Nothing is wrong; name the tensor to leave no doubt.
    - attn_qkv\.weight = q8_0
    + attn_(q|k|v|qkv)\.weight = q8_0

GP219: the parts of a fused tensor are given different types
    The model has them as one tensor, which has one type: the one of most bits. Write a rule for the fused
    name, or cut it apart with `--split`.
    + ffn_gate_up_exps\.weight = q4_K
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import join, kind_of, some
from ggplan.planning import Fitted
from ggplan.rules import Location
from ggplan.text import printable

_Key = tuple[int | None, tuple[tuple[str, GgmlType], ...]]


class Applied(Finding):
    """Tensors that rules for their other form decide: `attn_q`, `attn_k`."""

    tensors: str
    others: str
    type: GgmlType
    says = "{f.tensors}: decided as {f.type} by rules for {f.others}, which this model has in another form"


class Differing(Finding):
    """Fused tensors whose parts are given different types."""

    tensors: str
    others: str
    type: GgmlType
    kind: str
    others_at: tuple[Location, ...]
    says = "{f.tensors}: one tensor in this model, but the rules ask for {f.others}; it gets {f.type}"
    advice = "write a rule for `{f.kind}`, or cut it apart with `--split`"

    @property
    def also_at(self) -> tuple[Location, ...]:
        return self.others_at


def check_applied(case: Case) -> Iterator[Applied]:
    for (rule, fused), members in case.grouped(_key).items():
        if len({type_ for _, type_ in fused}) == 1:
            others = join([f"`{name}`" for name, _ in fused])
            yield Applied(case.place(rule), some(case, members), others, fused[0][1])


def check_differing(case: Case) -> Iterator[Differing]:
    for (rule, fused), members in case.grouped(_key).items():
        if len({type_ for _, type_ in fused}) > 1:
            others = join([f"{type_} of `{name}`" for name, type_ in fused])
            kind = printable(kind_of(case.tensors[members[0]].name))
            decision = case.fitted[members[0]].decision
            places = tuple(case.place(i) for i in decision.matching)
            yield Differing(case.place(rule), some(case, members), others, decision.type, kind, places)


def _key(f: Fitted) -> _Key | None:
    fused = f.decision.fused
    return (f.decision.rule, tuple((kind_of(name), type_) for name, type_ in fused)) if fused else None


GP218 = LintRule("GP218", "note", check_applied)
GP219 = LintRule("GP219", "warning", check_differing)
