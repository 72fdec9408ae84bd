r"""Rules that meet tensors which llama-quantize never quantizes.

GP202: a rule for protected tensors only is passed over
    llama-quantize never quantizes norms, biases, vectors and routers, and neither does a rule with a
    quantized type: the next rule is tried. This rule decides nothing else, so write the float type they
    keep.
    - ffn_gate_inp\.weight = q8_0
    + ffn_gate_inp\.weight = f32

GP203: a protected tensor is forced
    `!` gives a tensor a type that llama-quantize would refuse it. Make sure that your engine loads the
    file.
    - ffn_gate_inp\.weight = q8_0!
    + ffn_gate_inp\.weight = f32

GP213: protected tensors are passed over
    A rule matches norms, biases, vectors or routers beside other tensors. llama-quantize never
    quantizes them, and neither does ggplan: the next rule is tried, and without one they stay as they
    are.
    - blk = q8_0
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import rechosen, some
from ggplan.planning import Fitted


@dataclass(frozen=True, slots=True)
class PassedOver(Finding):
    """Tensors that a rule passes over, why the first is protected, the rule's type, and what they stay."""

    tensors: str
    reason: str | None
    type: GgmlType
    kept: str
    says = "{f.tensors}: {f.reason}; {f.type} is passed over"
    advice = "write `{f.kept}`, which it stays, or force it with `{f.type}!`"


@dataclass(frozen=True, slots=True)
class PassedOverByTheWay(PassedOver):
    """The same by a rule that decides other tensors: nothing to mend."""

    advice = ""


@dataclass(frozen=True, slots=True)
class Forced(Finding):
    """Protected tensors that `!` gives a quantized type."""

    tensors: str
    type: GgmlType
    source: GgmlType
    says = "{f.tensors}: forced to {f.type}; llama-quantize would keep {f.source}"
    advice = "write `{f.source}`, unless your engine loads it so"


def check_meant(case: Case) -> Iterator[PassedOver]:
    return _passed_over(case, PassedOver, decides=False)


def check_by_the_way(case: Case) -> Iterator[PassedOver]:
    return _passed_over(case, PassedOverByTheWay, decides=True)


def check_forced(case: Case) -> Iterator[Forced]:
    for (rule,), members in case.grouped(_forced).items():
        first, choice = case.fitted[members[0]], case.choice(rule)
        fix = rechosen(choice, str(first.tensor.type), safe=False)
        yield Forced(case.place(rule), some(case, members), first.type, first.tensor.type, fixes=(fix,))


def _forced(f: Fitted) -> tuple[int | None] | None:
    is_forced = f.decision.forced and f.decision.protected is not None and f.type.is_quantized
    return (f.decision.rule,) if is_forced else None


def _passed_over(case: Case, kind: type[PassedOver], *, decides: bool) -> Iterator[PassedOver]:
    """The tensors that each of the recipe's own rules passes over, of rules that decide others or do not."""
    together = case.grouped(lambda f: f.decision.passed_over or None)  # the same for tensors of a kind
    passed: dict[int, list[int]] = {}
    for rules, tensors in together.items():
        for i in rules:
            passed.setdefault(i, []).extend(tensors)
    for i, rule in case.rules():
        if i in passed and bool(case.decided[i]) == decides:
            members = passed[i]
            types = {case.fitted[t].type.name for t in members}
            kept = types.pop() if len(types) == 1 else "f32"
            reason = case.fitted[min(members)].decision.protected
            fixes = () if decides else (rechosen(rule.choice, kept, safe=True),)
            at, type_ = rule.choice.location, rule.choice.types[0]
            yield kind(at, some(case, members), reason, type_, kept, fixes=fixes)


GP202 = LintRule("GP202", "warning", check_meant)
GP203 = LintRule("GP203", "warning", check_forced, shows_cost=True)
GP213 = LintRule("GP213", "note", check_by_the_way)
