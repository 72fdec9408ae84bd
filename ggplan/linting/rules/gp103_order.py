r"""What hangs on the order of the rules. Notes, for exceptions above a general rule look
just so.

GP103: a rule loses tensors to other rules
    Exceptions above a general rule look just so; this note only says which tensors are concerned. A rule for
    `@role nextn` alone, which says itself whom it is for, is not told of.
    - blk\.{first 4}\.ffn_down_exps = q6_K
    - ffn_down_exps = q4_K

GP109: the order of matching decides
    Some tensors get another type where the last match wins, as llama.cpp did in 2025. ggplan, today's
    llama.cpp and ik_llama.cpp take the first match; `ggplan rules export` writes rules that do not
    overlap.
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.wording import lines_of, some
from ggplan.rules import Rule


class PartlyShadowed(Finding):
    """The first rule that takes tensors from this one, how many more do, and the tensors."""

    first: str
    n_more: int
    lost: str

    @property
    def message(self) -> str:
        if not self.n_more:
            return f"{self.first} takes {self.lost} before this rule"
        more = f"{self.n_more} more rule{'s' * (self.n_more > 1)}"
        return f"{self.first} and {more} take {self.lost} before this rule"


class OrderDecides(Finding):
    """Tensors that get another type where the other match wins, the last or under `@order last` the first."""

    tensors: str
    order: str

    @property
    def message(self) -> str:
        other = "last match wins, as in llama.cpp of 2025"
        if self.order == "last":
            other = "first match wins, as in today's llama.cpp"
        return f"where the {other}, {self.tensors} get another type"

    advice = "`ggplan rules export` writes rules that do not overlap"


def _is_for_drafts(rule: Rule) -> bool:
    return rule.roles == ("nextn",)


def check_lost(case: Case) -> Iterator[PartlyShadowed]:
    rules = case.recipe.rules
    for i, rule in case.rules():
        if _is_for_drafts(rule):
            continue
        takers = [j for j in case.takers(i) if not _is_for_drafts(rules[j])]  # not of those that are passed over
        if takers and case.decided[i]:
            first = rules[takers[0]]
            lost = [t for t in case.members[i] if case.fitted[t].decision.rule in takers]
            yield PartlyShadowed(rule.location, lines_of(first, rule), len(takers) - 1, some(case, lost))


def check_order(case: Case) -> Iterator[OrderDecides]:
    rules = case.recipe.rules
    other: list[int] = []
    for t, decision in enumerate(f.decision for f in case.fitted):
        usable = [i for i in decision.matching if i not in decision.passed_over]
        if any(_is_for_drafts(rules[i]) for i in usable):
            continue
        if decision.rule is not None and len(usable) > 1:
            last = rules[usable[-1]].choice
            if last.types != rules[decision.rule].choice.types:
                other.append(t)
    if other:
        rule = rules[case.fitted[other[0]].decision.rule or 0]
        yield OrderDecides(rule.location, some(case, other), case.recipe.order)


GP103 = LintRule(
    "GP103", "note", check_lost, yields_to=("GP101", "GP102", "GP104", "GP111"), reads_patterns=True
)
GP109 = LintRule("GP109", "note", check_order, reads_patterns=True)
