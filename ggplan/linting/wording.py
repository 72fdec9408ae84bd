"""What findings are worded with: names in a row, block lists, and edits on the text of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from ggplan.linting.case import Case
from ggplan.rules import Choice, Edit, Fix, Location, Rule
from ggplan.rules.ranges import alternation
from ggplan.rules.roles import block_of
from ggplan.text import names_in_words

_NUMBER = re.compile(r"^blk\.\d+\.")
_ANY_BLOCK = re.compile(r"(\\d|\[0-9\]|\.)[+*]\??|\\d\{\d+,\d*\}")


def some(case: Case, indices: Iterable[int]) -> str:
    """Tensors in words: `blk.7.ffn_up.weight`, or `46 tensors (a, b, c, …)`."""
    return names_in_words([case.tensors[i].name for i in sorted(indices)], quote="`")


@lru_cache(maxsize=1 << 14)
def kind_of(name: str) -> str:
    """A name without its block: `ffn_down_exps.weight`; the same for every block."""
    return _NUMBER.sub("", name)


def kinds(case: Case, indices: Iterable[int]) -> dict[str, list[int]]:
    """Tensors by kind, in the model's order."""
    found: dict[str, list[int]] = {}
    for i in sorted(indices):
        found.setdefault(kind_of(case.tensors[i].name), []).append(i)
    return found


def blocks_of(case: Case, indices: Iterable[int]) -> set[int]:
    """The block numbers of tensors."""
    return {block for i in indices if (block := block_of(case.tensors[i].name)) is not None}


def join(words: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def lines_of(rule: Rule, other: Rule) -> str:
    """How a finding about `other` names `rule`: `line 9`, or with its file where that differs."""
    return f"line {rule.line}" if rule.file == other.file else rule.where


def part_of(rule: Rule, start: int, length: int) -> Location:
    """The place of a part of a rule's pattern, `start` characters into it."""
    return replace(rule.location, column=rule.column + start, length=length)


def rewritten(rule: Rule, pattern: str, *, safe: bool) -> Fix | None:
    """The fix that gives a rule another pattern; None where the pattern holds names of `@let`."""
    if rule.expanded or rule.roles:
        return None
    return Fix((Edit(rule.file, rule.line, rule.column, len(rule.pattern), pattern),), safe)


def rechosen(choice: Choice | None, text: str, *, safe: bool) -> Fix | None:
    """The fix that gives a rule other types; None where they hold names of `@let`, or no rule chose."""
    if choice is None or "${" in choice.text:
        return None
    return Fix((Edit(choice.file, choice.line, choice.column, len(choice.text), text),), safe)


def deleted(rule: Rule, *, safe: bool) -> Fix:
    """The fix that deletes a rule's line."""
    return Fix((Edit(rule.file, rule.line, 1, None, ""),), safe)


def block_list(rule: Rule) -> tuple[int, int] | None:
    r"""Where a pattern lists block numbers, between `blk\.` and the next `\.`; None where any will do."""
    if rule.roles or rule.expanded:
        return None
    found = re.search(r"blk\\?\.", rule.pattern)
    if not found:
        return None
    depth = 0
    start = at = found.end()
    while at < len(rule.pattern):
        char = rule.pattern[at]
        if depth == 0 and (rule.pattern.startswith(r"\.", at) or char == "."):
            break
        depth += (char in "([{") - (char in ")]}")
        at += 2 if char == "\\" else 1
    text = rule.pattern[start:at]
    return (start, at) if re.search(r"\d|first|last", text) and not _ANY_BLOCK.fullmatch(text) else None


def blocks_text(numbers: set[int], like: str) -> str:
    """Block numbers as a pattern: a range where the text they replace is one, else an alternation."""
    if not like.startswith("{"):
        return alternation(numbers)
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if len(runs) < 3 and all(low == high for low, high in runs):
        return alternation(numbers)
    return "{" + ",".join(str(low) if low == high else f"{low}..{high}" for low, high in runs) + "}"
