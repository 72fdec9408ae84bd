"""Mending a text that does not parse: each error repaired as well as can be guessed, so that one slip does
not hide another.

An error's fix is applied to a copy of the text, a line beyond repair is left empty, and the copy is used from
there on; what names say of a line that was touched is not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ggplan.linting.trials import Trials, apply_fixes
from ggplan.rules import Diagnostic, Edit, Fix, InvalidRecipeError, Recipe
from ggplan.rules.recipe import split_lines

_ROUNDS = 30  # of repairs; one round finds all errors but those of the text as a whole
_LIMIT = "GP009"


@dataclass(slots=True)
class Mended:
    """A recipe as far as it can be read.

    Attributes
    ----------
    recipe
        None where an error is beyond one line of the recipe itself.
    errors
        What was wrong, each with the fix that is offered.
    touched
        File and line of what was mended.
    """

    recipe: Recipe | None = None
    errors: list[Diagnostic] = field(default_factory=list)
    touched: set[tuple[str, int]] = field(default_factory=set)


def parse_mended(trials: Trials) -> Mended:
    """The recipe of these texts, its errors mended; `trials` then holds the mended text."""
    mended = Mended()
    for _ in range(_ROUNDS):
        try:
            mended.recipe = trials.parse({})
            return mended
        except InvalidRecipeError as error:
            new = [d for d in error.diagnostics if (d.file, d.line) not in mended.touched]
            again = [d for d in error.diagnostics if (d.file, d.line) in mended.touched]
            mended.errors += new
            if any(_is_beyond(d, trials.file) for d in (*new, *again)):
                break
            _mend(trials, new, again)
            mended.touched |= {(d.file, d.line) for d in new}
    return mended


def _is_beyond(error: Diagnostic, file: str) -> bool:
    """Whether an error cannot be mended line by line."""
    splits = error.fix is not None and any("\n" in edit.text for edit in error.fix.edits)
    return error.file != file or not error.line or error.code == _LIMIT or splits


def with_best_repairs(mended: Mended, original: dict[str, str], trials: Trials) -> Mended:
    """The same with those of the errors' fixes that give patterns which the model's names match."""
    errors = [_best_repair(d, original, trials) for d in mended.errors]
    first = trials.texts[trials.file]
    trials.texts = {**original, trials.file: first}
    if not errors:
        return mended
    trials.texts[trials.file] = original[trials.file]
    _mend(trials, [d for d in errors if d.line and d.file == trials.file], ())
    again = parse_mended(trials)
    if again.recipe is None:
        trials.texts[trials.file] = first
        return Mended(mended.recipe, errors, mended.touched)
    return Mended(again.recipe, errors, again.touched | {(d.file, d.line) for d in errors})


def _best_repair(finding: Diagnostic, texts: dict[str, str], trials: Trials) -> Diagnostic:
    if not finding.others or finding.fix is None:
        return finding
    for fix in (finding.fix, *finding.others):
        (edit,) = fix.edits
        line = split_lines(texts[edit.file])[edit.line - 1]
        alone = line[: edit.column - 1] + edit.text + line[edit.column - 1 + (edit.length or 0) :]
        one = Trials(
            finding.file, None, {finding.file: alone}, trials.model, trials.table, 1, trials.steps_left
        )
        case = one.tried([])
        trials.steps_left = one.steps_left
        if case is not None and case.recipe.rules and case.members[0]:
            return replace(finding, fix=fix, help=f"write `{edit.text}`", others=())
    return replace(finding, others=())


def _mend(trials: Trials, errors: Sequence[Diagnostic], again: Sequence[Diagnostic]) -> None:
    """Apply the fixes of errors to the text; empty the lines that have none or need another."""
    text = trials.texts[trials.file]
    beyond = [d.line for d in errors if d.fix is None] + [d.line for d in again]
    for line in beyond:
        text = _with(text, trials.file, [_emptying(trials.file, line, text)])
    # A deleted line would move those below it: empty it instead.
    fixes = [
        replace(d.fix, edits=tuple(_in_place(edit, text) for edit in d.fix.edits)) for d in errors if d.fix
    ]
    trials.texts[trials.file] = _with(text, trials.file, fixes)


def _in_place(edit: Edit, text: str) -> Edit:
    return edit if edit.length is not None else _emptying(edit.file, edit.line, text).edits[0]


def _emptying(file: str, line: int, text: str) -> Fix:
    return Fix((Edit(file, line, 1, len(split_lines(text)[line - 1]), ""),), safe=True)


def _with(text: str, file: str, fixes: Sequence[Fix]) -> str:
    return apply_fixes({file: text}, fixes).texts.get(file, text)
