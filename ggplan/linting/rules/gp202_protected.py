"""GP202, GP203 and GP213: rules that meet tensors which llama-quantize never quantizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.ggml_types import GgmlType
from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.linting.wording import rechosen, some
from ggplan.planning import Fitted
from ggplan.rules import Choice, Fix


@dataclass(frozen=True, slots=True)
class PassedOver(Finding):
    """Tensors that a rule passes over.

    Attributes
    ----------
    tensors, reason
        They in words, and why the first is protected.
    kept
        What they are written in.
    """

    choice: Choice
    tensors: str
    reason: str | None
    kept: str

    @property
    def message(self) -> str:
        return f"{self.tensors}: {self.reason}; {self.choice.types[0]} is passed over"

    def help(self, fix: Fix | None) -> str:
        return f"write `{self.kept}`, which it stays, or force it with `{self.choice.types[0]}!`"

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        return rechosen(self.choice, self.kept, safe=True)


@dataclass(frozen=True, slots=True)
class PassedOverByTheWay(PassedOver):
    """The same by a rule that decides other tensors: nothing to mend."""

    def help(self, fix: Fix | None) -> str:
        return ""

    def fix(self, case: Case, trials: Trials) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Forced(Finding):
    """Protected tensors that `!` gives a quantized type."""

    choice: Choice
    tensors: str
    type: GgmlType
    source: GgmlType

    @property
    def message(self) -> str:
        return f"{self.tensors}: forced to {self.type}; llama-quantize would keep {self.source}"

    def help(self, fix: Fix | None) -> str:
        return f"write `{self.source}`, unless your engine loads it so"

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        return rechosen(self.choice, str(self.source), safe=False)


def check_meant(case: Case) -> Iterator[PassedOver]:
    return _passed_over(case, PassedOver, decides=False)


def check_by_the_way(case: Case) -> Iterator[PassedOver]:
    return _passed_over(case, PassedOverByTheWay, decides=True)


def check_forced(case: Case) -> Iterator[Forced]:
    for (rule,), members in case.grouped(_forced).items():
        first, choice = case.fitted[members[0]], case.choice(rule)
        assert choice is not None
        yield Forced(choice.location, choice, some(case, members), first.type, first.tensor.type)


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
            yield kind(rule.choice.location, rule.choice, some(case, members), reason, kept)


GP202 = LintRule(
    "GP202",
    "warning",
    "a rule for protected tensors only is passed over",
    "llama-quantize never quantizes norms, biases, vectors and routers, and neither does a rule with a "
    "quantized type: the next rule is tried. This rule decides nothing else, so write the float type "
    "they keep.",
    r"ffn_gate_inp\.weight = q8_0",
    r"ffn_gate_inp\.weight = f32",
    check_meant,
)
GP203 = LintRule(
    "GP203",
    "warning",
    "a protected tensor is forced",
    "`!` gives a tensor a type that llama-quantize would refuse it. Make sure that your engine loads the "
    "file.",
    r"ffn_gate_inp\.weight = q8_0!",
    r"ffn_gate_inp\.weight = f32",
    check_forced,
    shows_cost=True,
)
GP213 = LintRule(
    "GP213",
    "note",
    "protected tensors are passed over",
    "A rule matches norms, biases, vectors or routers beside other tensors. llama-quantize never "
    "quantizes them, and neither does ggplan: the next rule is tried, and without one they stay as they are.",
    "blk = q8_0",
    check=check_by_the_way,
)
