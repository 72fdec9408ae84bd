"""check_recipe and check_plan: everything there is to say about a recipe, in the order of its lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.linting.case import NO_RECIPE, case_of, make_case, subject_of
from ggplan.linting.engine import in_order_of_the_text, lint
from ggplan.linting.mending import parse_mended, with_best_repairs
from ggplan.linting.trials import Trials, apply_fixes
from ggplan.model import Model
from ggplan.rules import Diagnostic
from ggplan.rules.draft import Follow
from ggplan.rules.loading import following, recipe_text
from ggplan.rules.recipe import split_lines

if TYPE_CHECKING:
    from ggplan.planning import FallbackTable, Plan

_NO_MODEL = Model(Path(), "inventory", "", {}, ())


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes
    ----------
    file
        The recipe, as messages name it.
    texts
        The text of the recipe and of each file it draws in, by name.
    model
        What it was checked against, or None: its syntax alone.
    diagnostics
        In the order of the lines.
    architecture
        What the recipe says that it is for, or "".
    """

    file: str
    texts: dict[str, str]
    model: Model | None
    diagnostics: tuple[Diagnostic, ...]
    architecture: str = ""

    def source_line(self, finding: Diagnostic) -> str:
        """The line a finding is about, for `render`."""
        lines = _lines(self.texts.get(finding.file, ""))
        return lines[finding.line - 1] if 0 < finding.line <= len(lines) else ""

    @property
    def clean(self) -> bool:
        """Whether nothing but notes was found."""
        return all(d.severity == "note" for d in self.diagnostics)

    def errors(self) -> Report:
        """The errors alone."""
        return replace(self, diagnostics=tuple(d for d in self.diagnostics if d.severity == "error"))

    def fixed(self, *, unsafe: bool = False) -> tuple[dict[str, str], int]:
        """The texts that change when the fixes are applied, safe ones or all, and how many were."""
        fixes = [d.fix for d in self.diagnostics if d.fix is not None and (unsafe or d.fix.safe)]
        applied = apply_fixes(self.texts, dict.fromkeys(fixes))
        return applied.texts, applied.count


@lru_cache(maxsize=4)  # findings are printed one by one, thousands of the same text
def _lines(text: str) -> list[str]:
    return split_lines(text)


def check_recipe(
    name_or_path: str | Path, model: Model | None = None, *, fallback: FallbackTable | None = None
) -> Report:
    """Check a recipe against a model, or against the shipped inventory that it is for.

    Parameters
    ----------
    fallback
        Whose table replaces a type that a shape forbids; None for the engine that `@target` names.

    Raises
    ------
    RecipeError
        If the file cannot be read at all, or matching its rules may take too many steps.
    """
    text, file, follow = recipe_text(name_or_path)
    return check_text(text, file, follow, model, fallback=fallback)


def check_text(
    text: str,
    file: str,
    follow: Follow | None = None,
    model: Model | None = None,
    *,
    fallback: FallbackTable | None = None,
) -> Report:
    """Check the text of a recipe, which messages call `file`; `follow` finds what it draws in.

    Raises
    ------
    RecipeError
        If matching its rules may take too many steps.
    """
    original = {file: text}
    trials = Trials(file, follow, dict(original), model, fallback)
    mended = parse_mended(trials)
    recipe = mended.recipe
    if recipe is not None:
        # Files that were drawn in; fixes may touch them too.
        original = {**dict(recipe.parts), **original}
        trials.model = model or subject_of(recipe)
    if recipe is None or trials.model is None:
        about_text = []
        if recipe is not None:
            about_text = lint(make_case(_NO_MODEL, recipe), trials, text_only=True)
        found = [*mended.errors, *about_text]
        architecture = recipe.architecture if recipe is not None else ""
        return Report(file, original, trials.model, in_order_of_the_text(found, file), architecture)
    mended = with_best_repairs(mended, original, trials)
    assert mended.recipe is not None
    found = lint(make_case(trials.model, mended.recipe, fallback), trials)
    found = [d for d in found if (d.file, d.line) not in mended.touched or d.line == 0]
    return Report(file, original, trials.model, in_order_of_the_text([*mended.errors, *found], file))


def check_plan(plan: Plan) -> Report:
    """What `check_recipe` says of the plan's recipe and model, and what the plan's imatrix lacks."""
    recipe = plan.assignment.recipe or NO_RECIPE
    texts = {**dict(recipe.parts), recipe.file: recipe.text}
    trials = Trials(recipe.file, following(recipe.file), dict(texts), plan.model, plan.fallback)
    case = case_of(plan.model, plan.assignment, plan.fallback, plan.imatrix)
    return Report(recipe.file, texts, plan.model, in_order_of_the_text(lint(case, trials), recipe.file))
