"""So many rules that their patterns are not looked at one by one.

GP018: very many rules
    Of more than 2,000 rules ggplan checks what they match and decide, but not what each pattern looks
    like. Ranges and roles need fewer rules.
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.linting.case import MANY_RULES, Case
from ggplan.linting.rule import Finding, LintRule


class ManyRules(Finding):
    """A recipe of more than `MANY_RULES`."""

    says = f"more than {MANY_RULES:,} rules: what single patterns look like was not checked"


def check(case: Case) -> Iterator[ManyRules]:
    if case.has_many_rules:
        yield ManyRules(case.file)


GP018 = LintRule("GP018", "note", check)
