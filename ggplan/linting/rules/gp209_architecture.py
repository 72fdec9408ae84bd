"""A recipe for another architecture than the model's.

GP209: the recipe is for another architecture
    `@arch` names another than the model's; rules on names may match nothing or the wrong tensors.
    - @arch glm4
    + @arch glm4moe
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.rules import Fix, Location
from ggplan.rules.draft import replacing
from ggplan.rules.recipe import split_lines
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class OtherArchitecture(Finding):
    """What `@arch` says, and what the model is."""

    recipe: str
    model: str
    says = "the recipe is for {f.recipe}, the model is {f.model}"

    def help(self, fix: Fix | None) -> str:
        return "choose another recipe" + (f", or write `@arch {self.model}`" if fix else "")


def check(case: Case) -> Iterator[OtherArchitecture]:
    recipe, model = case.recipe, case.model
    if recipe.architecture and model.architecture and recipe.architecture != model.architecture:
        at = _place(case)
        fix = replacing(at, model.architecture, safe=False) if at.line else None
        yield OtherArchitecture(
            at, printable(recipe.architecture), printable(model.architecture), fixes=(fix,)
        )


def _place(case: Case) -> Location:
    """Where the recipe itself says so, or it as a whole."""
    named = case.recipe.architecture
    for number, line in enumerate(split_lines(case.recipe.text), start=1):
        if line.split("#")[0].split()[:2] == ["@arch", named]:
            return Location(case.recipe.file, number, line.index(named) + 1, len(named))
    return case.file


GP209 = LintRule("GP209", "warning", check)
