"""Trials: what a recipe would be with fixes applied.

A fix is only worth offering if it helps. So candidates are tried: the fix is applied to the text, the text is
read again, and the decisions it leads to are compared. Trying costs some milliseconds each, so a check tries
only so many, and all of its trials together may take no more steps of matching than one recipe may.

The edits of one fix go in together or not at all. A fix that touches what an earlier one has changed waits
for the next round, for its columns are no longer true.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ggplan.errors import RecipeError
from ggplan.linting.case import Case, make_case
from ggplan.model import Model
from ggplan.planning import FallbackTable
from ggplan.rules import Edit, Fix, Recipe, parse_recipe
from ggplan.rules.draft import Follow, FollowError
from ggplan.rules.matching import recipe_steps
from ggplan.rules.steps import MAX_STEPS

MAX_TRIALS = 32
_LARGEST_TRIED = 500_000  # lines times tensors; larger recipes get the first fix untried
_BOM = "\ufeff"


@dataclass(slots=True)
class Trials:
    """A recipe's texts, the model it is judged by, and how much more may be tried.

    Attributes
    ----------
    texts
        The recipe's own text and those it draws in, by file name.
    left, steps_left
        How many more fixes may be tried, and how many steps matching may take for them.
    """

    file: str
    follow: Follow | None
    texts: dict[str, str]
    model: Model | None = None
    table: FallbackTable | None = None
    left: int = MAX_TRIALS
    steps_left: int = MAX_STEPS
    _cases: dict[tuple[str, ...], Case | None] = field(default_factory=dict)

    def parse(self, changed: Mapping[str, str]) -> Recipe:
        """The recipe with these texts in place of its own.

        Raises
        ------
        RecipeError
            If they do not parse.
        """
        texts = {**self.texts, **changed}

        def follow(target: str, file: str) -> tuple[str, str]:
            if self.follow is None:
                raise FollowError("a recipe without a file cannot draw in others", "save it as a file")
            found, text = self.follow(target, file)
            return found, texts.get(found, text)

        return parse_recipe(texts[self.file], self.file, follow=follow)

    def tried(self, fixes: Iterable[Fix]) -> Case | None:
        """The case that these fixes lead to; None where they do not parse, or no more may be tried."""
        if self.model is None or self.left <= 0:
            return None
        n_lines = sum(text.count("\n") + 1 for text in self.texts.values())
        if n_lines * len(self.model.tensors) > _LARGEST_TRIED:
            return None
        applied = apply_fixes(self.texts, fixes)
        key = tuple(f"{file}\0{text}" for file, text in sorted(applied.texts.items()))
        if key not in self._cases:
            self.left -= 1
            self._cases[key] = self._case(self.model, applied.texts)
        return self._cases[key]

    def _case(self, model: Model, changed: Mapping[str, str]) -> Case | None:
        try:
            recipe = self.parse(changed)
        except RecipeError:
            return None
        steps = recipe_steps(recipe, [tensor.name for tensor in model.tensors])
        if steps > self.steps_left:
            self.left = 0
            return None
        self.steps_left -= steps
        try:
            return make_case(model, recipe, self.table)
        except RecipeError:
            return None

    def best(self, fixes: Sequence[Fix]) -> Fix | None:
        """The fix that leaves the fewest idle rules and uncovered tensors; the first of equals."""
        if len(fixes) < 2:
            return fixes[0] if fixes else None
        cases = [(i, self.tried([fix])) for i, fix in enumerate(fixes)]
        scores = [(10 * case.n_idle() + len(case.uncovered()), i) for i, case in cases if case]
        return fixes[min(scores)[1]] if scores else fixes[0]


@dataclass(frozen=True, slots=True)
class Applied:
    """The texts after a round of fixes: those that changed, and the fixes that went in."""

    texts: dict[str, str]
    fixes: tuple[Fix, ...]


def apply_fixes(texts: Mapping[str, str], fixes: Iterable[Fix]) -> Applied:
    """Apply fixes to the texts of the files they name, each where it does not meet an earlier one.

    Parameters
    ----------
    texts
        File name to text. A fix with an edit elsewhere is left out.
    """
    spans: dict[str, list[tuple[int, int, str]]] = {}
    starts = {file: _line_starts(text) for file, text in texts.items()}
    done: list[Fix] = []
    for fix in fixes:
        found = [_span(edit, texts, starts) for edit in fix.edits]
        placed = [(edit.file, *span) for edit, span in zip(fix.edits, found, strict=True) if span]
        if len(placed) < len(fix.edits) or any(_meets(spans.get(f, ()), a, b) for f, a, b, _ in placed):
            continue
        for file, start, stop, text in placed:
            insort(spans.setdefault(file, []), (start, stop, text))
        done.append(fix)
    changed = {}
    for file, edits in spans.items():
        text = texts[file]
        for start, stop, new in reversed(edits):
            text = text[:start] + new.replace("\n", _line_end(text, start)) + text[stop:]
        changed[file] = text
    return Applied(changed, tuple(done))


def _line_end(text: str, at: int) -> str:
    """How the line at a place ends; that of the line before it where it is the last and does not end."""
    end = text.find("\n", at)
    if end < 0:
        end = text.rfind("\n", 0, at)
    return "\r\n" if end > 0 and text[end - 1] == "\r" else "\n"


def _line_starts(text: str) -> list[int]:
    """Where each line begins, and where the text ends; a byte order mark is in no line."""
    starts = [1 if text.startswith(_BOM) else 0]
    while (end := text.find("\n", starts[-1])) >= 0:
        starts.append(end + 1)
    return [*starts, len(text)]


def _span(
    edit: Edit, texts: Mapping[str, str], starts: Mapping[str, list[int]]
) -> tuple[int, int, str] | None:
    known = starts.get(edit.file)
    if known is None or not 0 < edit.line < len(known):
        return None
    begin, end = known[edit.line - 1], known[edit.line]
    if edit.length is None:
        return begin, end, edit.text
    start = begin + edit.column - 1
    stop = start + edit.length
    # An edit may not reach over its line's end.
    line = texts[edit.file][begin:end].rstrip("\r\n")
    return (start, stop, edit.text) if stop <= begin + len(line) else None


def _meets(spans: Sequence[tuple[int, int, str]], start: int, stop: int) -> bool:
    """Whether a span meets one of these, which are in order and do not meet: only its neighbours can."""
    at = bisect_left(spans, (start, stop, ""))
    return any(
        (start < b and a < stop) or (a, b) == (start, stop) for a, b, _ in spans[max(0, at - 1) : at + 1]
    )
