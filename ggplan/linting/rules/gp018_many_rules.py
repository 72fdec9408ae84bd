"""GP018: so many rules that their patterns are not looked at one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.linting.case import MANY_RULES, Case
from ggplan.linting.rule import Finding, LintRule


@dataclass(frozen=True, slots=True)
class ManyRules(Finding):
    """A recipe of more than `MANY_RULES`."""

    @property
    def message(self) -> str:
        return f"more than {MANY_RULES:,} rules: what single patterns look like was not checked"


def check(case: Case) -> Iterator[ManyRules]:
    if case.has_many_rules:
        yield ManyRules(case.file)


GP018 = LintRule(
    "GP018",
    "note",
    "very many rules",
    f"Of more than {MANY_RULES:,} rules ggplan checks what they match and decide, but not what each pattern "
    "looks like. Ranges and roles need fewer rules.",
    check=check,
)
