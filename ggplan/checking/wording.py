"""Findings in the words of the house: names in a row, sums in GiB, and edits on the text of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ggplan.checking.case import Case
from ggplan.rules import Choice, Diagnostic, Edit, Fix, Rule, Severity
from ggplan.text import printable

_SHOWN = 3
_NUMBER = re.compile(r"^blk\.\d+\.")


def at_rule(
    code: str, severity: Severity, rule: Rule, message: str, help: str = "", fix: Fix | None = None
) -> Diagnostic:
    """A finding under the pattern of a rule."""
    at = rule.location
    return Diagnostic(code, severity, message, at.file, at.line, at.column, at.length, help, fix)


def at_choice(
    code: str, severity: Severity, choice: Choice, message: str, help: str = "", fix: Fix | None = None
) -> Diagnostic:
    """A finding under the types of a rule."""
    length = len(choice.text)
    return Diagnostic(code, severity, message, choice.file, choice.line, choice.column, length, help, fix)


def rewritten(rule: Rule, pattern: str, *, safe: bool) -> Fix | None:
    """The fix that gives a rule another pattern; None where the pattern holds names of `@let`."""
    if rule.expanded or rule.roles:
        return None
    return Fix((Edit(rule.file, rule.line, rule.column, len(rule.pattern), pattern),), safe)


def rechosen(choice: Choice, text: str, *, safe: bool) -> Fix | None:
    """The fix that gives a rule other types; None where they hold names of `@let`."""
    if "${" in choice.text:
        return None
    return Fix((Edit(choice.file, choice.line, choice.column, len(choice.text), text),), safe)


def deleted(rule: Rule, *, safe: bool) -> Fix:
    """The fix that deletes a rule's line."""
    return Fix((Edit(rule.file, rule.line, 1, None, ""),), safe)


def lines_of(rule: Rule, other: Rule) -> str:
    """How a finding about `other` names `rule`: `line 9`, or with its file where that differs."""
    return f"line {rule.line}" if rule.file == other.file else rule.where


def some(case: Case, indices: Iterable[int]) -> str:
    """Tensors in words: `blk.7.ffn_up.weight`, or `46 tensors (a, b, c, …)`."""
    chosen = sorted(indices)
    names = [printable(case.tensors[i].name) for i in chosen[:_SHOWN]]
    if len(chosen) == 1:
        return f"`{names[0]}`"
    return f"{len(chosen):,} tensors ({', '.join(names)}{', …' if len(chosen) > _SHOWN else ''})"


def kind_of(name: str) -> str:
    """A name without its block: `ffn_down_exps.weight`; the same for every block."""
    return _NUMBER.sub("", name)


def kinds(case: Case, indices: Iterable[int]) -> dict[str, list[int]]:
    """Tensors by kind, in the model's order."""
    found: dict[str, list[int]] = {}
    for i in sorted(indices):
        found.setdefault(kind_of(case.tensors[i].name), []).append(i)
    return found


def join(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
