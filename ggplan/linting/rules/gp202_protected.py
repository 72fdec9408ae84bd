r"""Rules that meet tensors which llama-quantize never quantizes.

GP202: a rule for protected tensors only is passed over
    llama-quantize never quantizes norms, biases, vectors and routers, and neither does a rule with a
    quantized type: the next rule is tried. This rule matches nothing else, so write the float type they
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

from collections.abc import Iterator, Sequence

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import join, rechosen, some
from ggplan.planning import Fitted
from ggplan.planning.protection import reason_of
from ggplan.rules import Fix, Keep


class PassedOver(Finding):
    """Tensors that a rule passes over.

    Attributes
    ----------
    reasons
        The tensors in words, those that are protected for the same reason together, and the reason.
    n_tensors
        How many.
    type
        The rule's.
    kept
        The types they stay, by name.
    """

    reasons: tuple[tuple[str, str], ...]
    n_tensors: int
    type: GgmlType
    kept: tuple[str, ...]

    @property
    def message(self) -> str:
        told = "; ".join(f"{tensors}: {reason}" for tensors, reason in self.reasons)
        return f"{told}; {self.type} is passed over"

    def help(self, fix: Fix | None) -> str:
        stay = "which it stays" if self.n_tensors == 1 else "which they stay"
        if len(self.kept) > 1:
            return f"they stay {join(self.kept)}: write one of these, or force it with `{self.type}!`"
        return f"write `{self.kept[0]}`, {stay}, or force it with `{self.type}!`"


class PassedOverByTheWay(PassedOver):
    """The same by a rule that decides other tensors: nothing to mend."""

    def help(self, fix: Fix | None) -> str:
        return ""


class Forced(Finding):
    """Protected tensors that `!` gives a quantized type."""

    tensors: str
    type: GgmlType
    source: GgmlType
    says = "{f.tensors}: forced to {f.type}; llama-quantize would keep {f.source}"
    advice = "write `{f.source}`, unless your engine loads it so"


def check_meant(case: Case) -> Iterator[PassedOver]:
    return _passed_over(case, PassedOver, only_protected=True)


def check_by_the_way(case: Case) -> Iterator[PassedOver]:
    return _passed_over(case, PassedOverByTheWay, only_protected=False)


def check_forced(case: Case) -> Iterator[Forced]:
    for (rule,), members in case.grouped(_forced).items():
        first, choice = case.fitted[members[0]], case.choice(rule)
        fix = rechosen(choice, str(first.tensor.type), safe=False)
        yield Forced(case.place(rule), some(case, members), first.type, first.tensor.type, fixes=(fix,))


def _forced(f: Fitted) -> tuple[int | None] | None:
    is_forced = f.decision.forced and f.decision.protected is not None and f.type.is_quantized
    return (f.decision.rule,) if is_forced else None


def _passed_over(case: Case, kind: type[PassedOver], *, only_protected: bool) -> Iterator[PassedOver]:
    """The tensors that each of the recipe's own rules passes over, of rules that match only such or others.

    A rule that matches others too was meant for these, even where rules above have taken them all.
    """
    together = case.grouped(lambda f: f.decision.passed_over or None)  # the same for tensors of a kind
    passed: dict[int, list[int]] = {}
    for rules, tensors in together.items():
        for i in rules:
            passed.setdefault(i, []).extend(tensors)
    unprotected = {t for t, f in enumerate(case.fitted) if f.decision.protected is None}
    told: dict[tuple[int, ...], tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {}  # many rules alike
    for i, rule in case.rules():
        if i in passed and case.members[i].isdisjoint(unprotected) == only_protected:
            members = tuple(sorted(passed[i]))
            if members not in told:
                types = dict.fromkeys(case.fitted[t].type.name for t in members)
                told[members] = _reasons(case, members), tuple(types)
            reasons, kept = told[members]
            # Where they stay of several types, one type for all of them would change some.
            fixes = (rechosen(rule.choice, kept[0], safe=True),) if only_protected and len(kept) == 1 else ()
            at = rule.choice.location
            type_ = next(t for t in rule.choice.types if not isinstance(t, Keep))  # keep is never passed over
            yield kind(at, reasons, len(members), type_, kept, fixes=fixes)


def _reasons(case: Case, members: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """Protected tensors in words and why they are, by the reason."""
    by_reason: dict[str, list[int]] = {}
    for t in members:
        by_reason.setdefault(case.fitted[t].decision.protected or "", []).append(t)
    return tuple((some(case, ts), reason_of(reason, len(ts))) for reason, ts in by_reason.items())


GP202 = LintRule("GP202", "warning", check_meant)
GP203 = LintRule("GP203", "warning", check_forced, shows_cost=True)
GP213 = LintRule("GP213", "note", check_by_the_way)
