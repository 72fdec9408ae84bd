"""What findings are worded with: names in a row, block lists, and edits on the text of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from ggplan.linting.case import Case
from ggplan.model import TensorInfo
from ggplan.rules import Choice, Edit, Fix, Location, Rule
from ggplan.rules.ranges import alternation
from ggplan.rules.roles import block_of
from ggplan.text import names_in_words, printable

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


def by_blocks(names: Iterable[str]) -> list[str]:
    """Names with the blocks of each kind joined: `blk.{1..46}.ffn_up_exps.weight`, in their order."""
    found: dict[str, set[int]] = {}
    for name in names:
        block = block_of(name)
        found.setdefault(kind_of(name), set()).update(() if block is None else (block,))
    return [_in_blocks(kind, numbers) for kind, numbers in found.items()]


def _in_blocks(kind: str, numbers: set[int]) -> str:
    if not numbers:
        return printable(kind)
    return f"blk.{min(numbers) if len(numbers) == 1 else blocks_text(numbers, '{')}.{printable(kind)}"


def rule_for(tensors: Sequence[TensorInfo], members: Sequence[int], types: str) -> str:
    r"""A rule for some of a model's tensors, all of one kind: `^blk\.{1..46}\.ffn_up\.weight$ = bf16`."""
    name = tensors[members[0]].name
    kind = re.sub(r"([.+*?()\[\]{}|^$\\])", r"\\\1", kind_of(name))
    if block_of(name) is None:
        return f"^{kind}$ = {types}"
    numbers = {block_of(tensors[i].name) for i in members} - {None}
    of_kind = {block_of(t.name) for t in tensors if kind_of(t.name) == kind_of(name)} - {None}
    listed = {number for number in numbers if number is not None}
    blocks = r"\d+" if numbers == of_kind else blocks_text(listed, "{")
    return rf"^blk\.{blocks}\.{kind}$ = {types}"


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
        if depth < 0:  # the end of a group that `blk` stands in
            break
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
