"""check_recipe, fix_recipe and check_plan: everything there is to say about a recipe, in the order of its
lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ggplan.linting.case import NO_RECIPE, case_of, make_case, subject_of
from ggplan.linting.engine import in_order_of_the_text, lint
from ggplan.linting.ignoring import EVERYTHING, Selection
from ggplan.linting.mending import parse_mended, with_best_repairs
from ggplan.linting.trials import Trials, apply_fixes
from ggplan.model import Model
from ggplan.planning.embedding import EMBEDDING
from ggplan.rules import Diagnostic
from ggplan.rules.draft import Follow
from ggplan.rules.loading import following, recipe_text
from ggplan.rules.recipe import split_lines
from ggplan.text import printable

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
    n_silenced
        How many more findings comments in the recipe have silenced.
    """

    file: str
    texts: dict[str, str]
    model: Model | None
    diagnostics: tuple[Diagnostic, ...]
    architecture: str = ""
    n_silenced: int = 0

    def source_line(self, finding: Diagnostic) -> str:
        """The line a finding is about, for `render`."""
        lines = _lines(self.texts.get(finding.file, ""))
        return lines[finding.line - 1] if 0 < finding.line <= len(lines) else ""

    @property
    def clean(self) -> bool:
        """Whether nothing but notes was found."""
        return all(d.severity == "note" for d in self.diagnostics)

    def without(self, code: str) -> Report:
        """The report without the findings of a code."""
        return replace(self, diagnostics=tuple(d for d in self.diagnostics if d.code != code))

    def fixable(self, *, unsafe: bool = False) -> list[Diagnostic]:
        """The findings with a fix that would be applied: a safe one, or any."""
        return [d for d in self.diagnostics if d.fix is not None and (unsafe or d.fix.safe)]

    def errors(self) -> Report:
        """The errors alone."""
        return replace(self, diagnostics=tuple(d for d in self.diagnostics if d.severity == "error"))

    def fixed(self, *, unsafe: bool = False) -> tuple[dict[str, str], int]:
        """The texts that change when the fixes are applied, safe ones or all, and how many were."""
        fixes = [d.fix for d in self.fixable(unsafe=unsafe) if d.fix is not None]
        applied = apply_fixes(self.texts, dict.fromkeys(fixes))
        return applied.texts, len(applied.fixes)


@lru_cache(maxsize=4)  # findings are printed one by one, thousands of the same text
def _lines(text: str) -> list[str]:
    return split_lines(text)


def check_recipe(
    name_or_path: str | Path,
    model: Model | None = None,
    selection: Selection = EVERYTHING,
    *,
    fallback: FallbackTable | None = None,
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
    text, file, follow = recipe_text(name_or_path, "" if model is None else model.architecture)
    return check_text(text, file, follow, model, selection, fallback=fallback)


def check_text(
    text: str,
    file: str,
    follow: Follow | None = None,
    model: Model | None = None,
    selection: Selection = EVERYTHING,
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
        about_text: list[Diagnostic] = []
        n_silenced = 0
        if recipe is not None:
            case = make_case(_NO_MODEL, recipe)
            about_text, n_silenced = lint(case, trials, text_only=True, selection=selection)
        found = [*mended.errors, *about_text]
        architecture = recipe.architecture if recipe is not None else ""
        ordered = in_order_of_the_text(_judged(found, file), file)
        return Report(file, original, trials.model, ordered, architecture, n_silenced)
    mended = with_best_repairs(mended, original, trials)
    assert mended.recipe is not None
    case = make_case(trials.model, mended.recipe, fallback)
    found, n_silenced = lint(case, trials, selection=selection)
    found = [d for d in found if (d.file, d.line) not in mended.touched or d.line == 0]
    if mended.errors:  # what a comment is for may stand on a line that cannot be read
        found = [d for d in found if d.code != "GP019"]
    ordered = in_order_of_the_text(_judged([*mended.errors, *found], file), file)
    return Report(file, original, trials.model, ordered, mended.recipe.architecture, n_silenced)


def _judged(found: Iterable[Diagnostic], file: str) -> Iterator[Diagnostic]:
    """The findings, with no fix called safe that edits a file which the recipe draws in.

    Other recipes may draw it in as well. What the change does to them cannot be seen from here.
    """
    for finding in found:
        fix = finding.fix
        others = [edit.file for edit in fix.edits if edit.file != file] if fix is not None else []
        if fix is None or not fix.safe or not others:
            yield finding
            continue
        name = printable(PurePath(others[0]).name)
        help = f"{finding.help}; --fix leaves {name} alone, for other recipes may draw it in"
        yield replace(finding, fix=replace(fix, safe=False), help=help.removeprefix("; "))


def check_plan(plan: Plan, selection: Selection = EVERYTHING) -> Report:
    """What `check_recipe` says of the plan's recipe and model, and what the plan's imatrix lacks."""
    recipe = plan.assignment.recipe or NO_RECIPE
    texts = {**dict(recipe.parts), recipe.file: recipe.text}
    trials = Trials(recipe.file, following(recipe.file), dict(texts), plan.model, plan.fallback)
    guided = frozenset({EMBEDDING} if plan.feedback is not None and plan.feedback.embedding else ())
    case = case_of(plan.model, plan.assignment, plan.fallback, plan.imatrix, guided)
    found, n_silenced = lint(case, trials, selection=selection)
    ordered = in_order_of_the_text(_judged(found, recipe.file), recipe.file)
    return Report(recipe.file, texts, plan.model, ordered, recipe.architecture, n_silenced)
