"""Applying fixes: edits on the text of recipes, and the text that results.

Edits of one fix go in together or not at all; a fix that touches what an earlier one has changed waits
for the next round, for its columns are no longer true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ggplan.rules.diagnostics import Edit, Fix

_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Applied:
    """The texts after a round of fixes: those that changed, and how many fixes went in."""

    texts: dict[str, str]
    count: int


def apply_fixes(texts: Mapping[str, str], fixes: Iterable[Fix]) -> Applied:
    """Apply fixes to the texts of the files they name, each where it does not meet an earlier one.

    Parameters
    ----------
    texts
        File name to text. A fix with an edit elsewhere is left out.
    """
    spans: dict[str, list[tuple[int, int, str]]] = {}
    starts = {file: _line_starts(text) for file, text in texts.items()}
    count = 0
    for fix in fixes:
        found = [_span(edit, texts, starts) for edit in fix.edits]
        placed = [(edit.file, *span) for edit, span in zip(fix.edits, found, strict=True) if span]
        if len(placed) < len(fix.edits) or any(_meets(spans.get(f, ()), a, b) for f, a, b, _ in placed):
            continue
        for file, start, stop, text in placed:
            spans.setdefault(file, []).append((start, stop, text))
        count += 1
    changed = {}
    for file, edits in spans.items():
        text = texts[file]
        for start, stop, new in sorted(edits, reverse=True):
            text = text[:start] + new + text[stop:]
        changed[file] = text
    return Applied(changed, count)


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


def _meets(spans: Iterable[tuple[int, int, str]], start: int, stop: int) -> bool:
    return any((start < b and a < stop) or (a, b) == (start, stop) for a, b, _ in spans)
