"""GP017: a `@let` that nothing uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.rules import Edit, Fix


@dataclass(frozen=True, slots=True)
class UnusedName(Finding):
    """The name of a `@let`."""

    name: str

    @property
    def message(self) -> str:
        return f"nothing uses `{self.name}`"

    def help(self, fix: Fix | None) -> str:
        return "delete the line"

    def fix(self, case: Case, trials: Trials) -> Fix:
        return Fix((Edit(self.at.file, self.at.line, 1, None, ""),), safe=True)


def check(case: Case) -> Iterator[UnusedName]:
    for name, at in case.recipe.unused:
        yield UnusedName(at, name)


GP017 = LintRule(
    "GP017",
    "warning",
    "nothing uses a name",
    "A `@let` that nothing uses is left over, or its name is misspelt where it was meant.",
    "@let MOE = {1..46}",
    "@let MOE = {1..46}\nblk\\.${MOE}\\.ffn_up_exps\\.weight = q4_K",
    check,
    needs_model=False,
)
