"""fix_recipe: what `--fix` does to a recipe, as texts and a list of edits, before anything is written.

Fixes go in by rounds: one that touches what another has changed waits for the next, and a mended line may
have a further mistake. The rounds end where nothing is left that may be fixed, or a text comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher, unified_diff
from pathlib import Path
from typing import Literal

from ggplan.linting.check import Report, check_text
from ggplan.linting.ignoring import EVERYTHING, Selection
from ggplan.linting.trials import apply_fixes
from ggplan.model import Model
from ggplan.planning.fallback import FallbackTable
from ggplan.rules import Diagnostic, Edit
from ggplan.rules.loading import recipe_text
from ggplan.rules.recipe import split_lines

_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class AppliedFix:
    """One edit that was made.

    Attributes
    ----------
    code
        Of the finding it mends.
    file, line
        Where, in the recipe as it was; a line that a fix has added has the number of the one above it.
    kind
        A whole line is deleted or moved, lines are added, or a part of a line is changed.
    before, after
        The text of the line or of the part; "" where there was or is none.
    """

    code: str
    file: str
    line: int
    kind: Literal["deleted", "moved", "added", "changed"]
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Fixed:
    """A recipe with its fixes applied.

    Attributes
    ----------
    report
        What stays.
    before, texts
        The files that change: their texts as they were, and as they are to be.
    applied
        The edits, in the order in which they were made.
    n_fixes
        How many findings they mend.
    """

    report: Report
    before: dict[str, str]
    texts: dict[str, str]
    applied: tuple[AppliedFix, ...]
    n_fixes: int

    def diff(self) -> str:
        """The change as a unified diff, which `patch -p1` applies."""
        return "".join(
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
            for file, text in self.texts.items()
            for line in _changes(self.before[file], text, file)
        )


def fix_recipe(
    name_or_path: str | Path,
    model: Model | None = None,
    selection: Selection = EVERYTHING,
    *,
    fallback: FallbackTable | None = None,
    unsafe: bool = False,
) -> Fixed:
    """Apply the fixes of a recipe's findings, the safe ones or all; nothing is written.

    Raises
    ------
    RecipeError
        As `check_recipe`.
    """
    text, file, follow = recipe_text(name_or_path, "" if model is None else model.architecture)
    changed: dict[str, str] = {}

    def follow_changed(target: str, parent: str) -> tuple[str, str]:
        found, original = follow(target, parent)
        return found, changed.get(found, original)

    report = check_text(text, file, follow, model, selection, fallback=fallback)
    before: dict[str, str] = {}
    origins: dict[str, list[int]] = {}
    applied: list[AppliedFix] = []
    n_fixes = 0
    seen = {_key(report.texts)}
    for _ in range(_ROUNDS):
        findings = {d.fix: d for d in report.fixable(unsafe=unsafe) if d.fix is not None}
        done = apply_fixes(report.texts, findings)
        texts = {**report.texts, **done.texts}
        if not done.fixes or _key(texts) in seen:
            break
        seen.add(_key(texts))
        old_lines = {name: split_lines(old) for name, old in report.texts.items()}
        for fix in done.fixes:
            applied += _edits(findings[fix], old_lines, origins)
        n_fixes += len(done.fixes)
        for name, new in done.texts.items():
            before.setdefault(name, report.texts[name])
            lines = old_lines[name]
            known = origins.get(name) or list(range(1, len(lines) + 1))
            origins[name] = _moved(known, lines, split_lines(new))
        changed |= done.texts
        report = check_text(
            changed.get(file, text), file, follow_changed, model, selection, fallback=fallback
        )
    after = {name: changed[name] for name in before if changed[name] != before[name]}
    return Fixed(report, {name: before[name] for name in after}, after, tuple(applied), n_fixes)


def _changes(before: str, after: str, file: str) -> Iterator[str]:
    """The lines of a unified diff of one file."""
    found = unified_diff(_whole_lines(before), _whole_lines(after))
    if next(found, None) is not None:
        next(found)
        yield f"--- {_header_name(f'a/{file}')}\n"
        yield f"+++ {_header_name(f'b/{file}')}\n"
        yield from found


def _header_name(name: str) -> str:
    r"""A file name as `git diff` writes it and `patch` reads it: with characters that end a name, or that are
    no text, in quotes and escaped (`"a/two\nlines"`), with a tab behind a name that holds blanks.
    """
    needs_quotes = any(c in '"\\' or ord(c) < 32 or ord(c) == 127 or "\ud800" <= c <= "\udfff" for c in name)
    if not needs_quotes:
        return f"{name}\t" if " " in name else name
    escaped = (
        f"\\{chr(byte)}" if byte in b'"\\' else chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
        for byte in name.encode("utf-8", "surrogateescape")
    )
    return f'"{"".join(escaped)}"'


def _key(texts: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(texts.items()))


def _edits(
    finding: Diagnostic, lines: dict[str, list[str]], origins: dict[str, list[int]]
) -> Iterable[AppliedFix]:
    """The edits of a finding's fix, a deletion and an insertion of the same line as one move."""
    assert finding.fix is not None
    found = [_edit(finding.code, edit, lines, origins) for edit in finding.fix.edits]
    deleted = {e.before: e for e in found if e.kind == "deleted"}
    added = {e.after.strip("\r\n") for e in found if e.kind == "added"}
    for edit in found:
        if edit.kind == "deleted" and edit.before in added:
            yield AppliedFix(edit.code, edit.file, edit.line, "moved", edit.before, edit.before)
        elif not (edit.kind == "added" and edit.after.strip("\r\n") in deleted):
            yield edit


def _edit(code: str, edit: Edit, lines: dict[str, list[str]], origins: dict[str, list[int]]) -> AppliedFix:
    line = lines[edit.file][edit.line - 1]
    known = origins.get(edit.file)
    number = known[edit.line - 1] if known else edit.line
    if edit.length is None:
        return AppliedFix(code, edit.file, number, "deleted", line, "")
    before = line[edit.column - 1 : edit.column - 1 + edit.length]
    kind: Literal["added", "changed"] = "added" if "\n" in edit.text and not before else "changed"
    return AppliedFix(code, edit.file, number, kind, before, edit.text)


def _moved(origins: list[int], old: list[str], new: list[str]) -> list[int]:
    """The numbers that the lines of a new text had at first, by those of the old text's."""
    found = [0] * len(new)
    for kind, a, b, c, d in SequenceMatcher(None, old, new).get_opcodes():
        for offset in range(d - c):
            if kind == "equal" or (kind == "replace" and offset < b - a):
                found[c + offset] = origins[a + offset]
    for i, number in enumerate(found):
        found[i] = number or (found[i - 1] if i else 1)
    return found


def _whole_lines(text: str) -> list[str]:
    """The lines with their ends; LF ends them and nothing else."""
    lines = text.split("\n")
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
