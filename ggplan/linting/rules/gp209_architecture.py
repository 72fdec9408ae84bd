"""GP209: a recipe for another architecture than the model's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.linting.case import Case
from ggplan.linting.rule import Finding, LintRule
from ggplan.linting.trials import Trials
from ggplan.rules import Edit, Fix, Location
from ggplan.rules.recipe import split_lines
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class OtherArchitecture(Finding):
    """What `@arch` says, and what the model is."""

    recipe: str
    model: str

    @property
    def message(self) -> str:
        return f"the recipe is for {printable(self.recipe)}, the model is {printable(self.model)}"

    def help(self, fix: Fix | None) -> str:
        other = f", or write `@arch {printable(self.model)}`" if fix else ""
        return f"choose another recipe{other}"

    def fix(self, case: Case, trials: Trials) -> Fix | None:
        if not self.at.line:
            return None
        at = self.at
        return Fix((Edit(at.file, at.line, at.column, at.length, self.model),), safe=False)


def check(case: Case) -> Iterator[OtherArchitecture]:
    recipe, model = case.recipe, case.model
    if recipe.architecture and model.architecture and recipe.architecture != model.architecture:
        yield OtherArchitecture(_place(case), recipe.architecture, model.architecture)


def _place(case: Case) -> Location:
    """Where the recipe itself says so, or it as a whole."""
    named = case.recipe.architecture
    for number, line in enumerate(split_lines(case.recipe.text), start=1):
        if line.split("#")[0].split()[:2] == ["@arch", named]:
            return Location(case.recipe.file, number, line.index(named) + 1, len(named))
    return case.file


GP209 = LintRule(
    "GP209",
    "warning",
    "the recipe is for another architecture",
    "`@arch` names another than the model's; rules on names may match nothing or the wrong tensors.",
    "@arch glm4",
    "@arch glm4moe",
    check,
)
