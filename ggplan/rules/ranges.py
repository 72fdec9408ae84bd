r"""Ranges of block numbers in patterns: `blk\.{0..46}\.`, `{1,4,7..9}`, `{first 2}`, `{last 2}`.

A regular expression has no word for "12 to 46", and people who write the alternation by hand slip:
`[12]` is one digit, 1 or 2. A range stands for an alternation of whole numbers, `([0-9]|[1-3][0-9]|4[0-6])`.

    range = "{" item { "," item } "}"
    item  = NUMBER | NUMBER ".." NUMBER | "first" NUMBER | "last" NUMBER

What begins with `{` is read by these rules, in this order:

1. `{2}`, `{2,}` and `{2,5}` without a blank are repetitions of regular expressions, as everywhere. So
   one or two single numbers are no range: write `7` or `(1|3)`.
2. `{` and a digit, or the word `first` or `last`, begins a range, which must then be well formed.
3. Any other `{` is an error; no tensor name holds one. Behind `\` and in `[...]` it is a character.

`first` and `last` count the blocks of the model that the recipe meets, block numbers from 0 to
`block_count` - 1 (GGUF's, next-token prediction blocks included). Until then a pattern stays as written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ggplan.rules.roles import MAX_BLOCK

MAX_ITEMS = 256
NOTHING = r"[^\x00-\x{10FFFF}]"
"""An RE2 pattern that no text matches: the range of a model without blocks."""

_ITEM = re.compile(
    r"[ \t]*(?:(?P<from>\d+)(?:[ \t]*\.\.[ \t]*(?P<to>\d+))?|(?P<end>first|last)[ \t]+(?P<n>\d+))[ \t]*",
    re.ASCII,
)


@dataclass(eq=False)
class RangeError(Exception):
    """A range that says nothing; `start` and `length` are characters of the text between the braces."""

    message: str
    start: int
    length: int
    help: str = ""
    instead: str | None = None  # what to write in place of the whole range, braces and all


@dataclass(frozen=True, slots=True)
class Range:
    """Block numbers: intervals as written, and how many from each end of a model."""

    intervals: tuple[tuple[int, int], ...]
    first: int = 0
    last: int = 0

    @property
    def is_relative(self) -> bool:
        """Whether it depends on the model's number of blocks."""
        return bool(self.first or self.last)

    def numbers(self, n_blocks: int) -> frozenset[int]:
        """The block numbers, for a model of `n_blocks` blocks."""
        found = {i for low, high in self.intervals for i in range(low, high + 1)}
        found.update(range(min(self.first, n_blocks)), range(max(0, n_blocks - self.last), n_blocks))
        return frozenset(found)


def parse_range(content: str) -> Range:
    """The range that stands between `{` and `}`.

    Raises
    ------
    RangeError
        If it is malformed, runs backwards, names blocks no model has, or could be taken for a repetition.
    """
    intervals, first, last, at = [], 0, 0, 0
    items = content.split(",")
    if len(items) > MAX_ITEMS:
        raise RangeError(f"the range has {len(items):,} items; {MAX_ITEMS} are allowed", 0, len(content))
    for item in items:
        found = _ITEM.fullmatch(item)
        text = item.strip(" \t")
        start = at + len(item) - len(item.lstrip(" \t"))
        at += len(item) + 1
        if found is None:
            if dash := re.fullmatch(r"(\d{1,4})-(\d{1,4})", text):
                instead = content[:start] + f"{dash[1]}..{dash[2]}" + content[start + len(text) :]
                help = f"write `{dash[1]}..{dash[2]}`"
                raise RangeError(f"`{text}` is no range of blocks", start, len(text), help, f"{{{instead}}}")
            help = "write numbers and ranges such as `{1,4,7..9}`, or `{first 2}`, `{last 2}`"
            raise RangeError(f"`{text}` is no range of blocks", start, max(1, len(text)), help)
        numbers = [int(n) for n in (found["from"], found["to"], found["n"]) if n and len(n) < 6]
        if len(numbers) < sum(bool(found[g]) for g in ("from", "to", "n")) or max(numbers) > MAX_BLOCK:
            raise RangeError(f"blocks are numbered up to {MAX_BLOCK:,}", start, len(text))
        if found["end"]:
            if not numbers[0]:
                raise RangeError(f"`{text}` names no block", start, len(text), "count from 1, or delete it")
            if found["end"] == "first":
                first = max(first, numbers[0])
            else:
                last = max(last, numbers[0])
            continue
        if numbers[-1] < numbers[0]:
            instead = content[:start] + f"{numbers[1]}..{numbers[0]}" + content[start + len(text) :]
            help = f"write the smaller number first: `{numbers[1]}..{numbers[0]}`"
            raise RangeError(f"the range `{text}` runs backwards", start, len(text), help, f"{{{instead}}}")
        intervals.append((numbers[0], numbers[-1]))
    if len(items) < 3 and not (first or last or ".." in content):
        instead = alternation(n for low, high in intervals for n in range(low, high + 1))
        message = f"`{{{content}}}` could be taken for a repetition"
        raise RangeError(message, 0, len(content), f"write `{instead}`", instead)
    return Range(tuple(intervals), first, last)


def alternation(numbers: Iterable[int]) -> str:
    """A short pattern for exactly these whole numbers, in parentheses unless it is one number."""
    texts = frozenset(str(n) for n in numbers)
    if not texts:
        return NOTHING
    if len(texts) == 1:
        return next(iter(texts))
    return f"({'|'.join(_branches(texts))})"


def _branches(texts: frozenset[str]) -> list[str]:
    """Patterns that together match these digit texts: grouped by first digit, like tails joined."""
    tails: dict[str, set[str]] = {}
    for text in texts:
        tails.setdefault(text[0], set()).add(text[1:])
    digits: dict[frozenset[str], list[str]] = {}
    for digit in sorted(tails):
        digits.setdefault(frozenset(tails[digit]), []).append(digit)
    found = []
    for rest, alike in digits.items():
        # Behind single digits nothing follows, and `[12]` could be taken for twelve: write `1|2`.
        classes = _digit_runs(alike) if rest == {""} else [_digit_class(alike)]
        found += [text + _tail(rest) for text in classes]
    return found


def _tail(texts: frozenset[str]) -> str:
    longer = texts - {""}
    if not longer:
        return ""
    branches = _branches(longer)
    if "" in texts:
        single = len(branches) == 1 and re.fullmatch(r"\d|\[[^\]]+\]", branches[0])
        return f"{branches[0]}?" if single else f"({'|'.join(branches)})?"
    return branches[0] if len(branches) == 1 else f"({'|'.join(branches)})"


def _digit_runs(digits: list[str]) -> list[str]:
    """Digits one by one, three and more in a row as `[1-3]`."""
    runs: list[list[str]] = []
    for digit in digits:
        if runs and int(digit) == int(runs[-1][-1]) + 1:
            runs[-1].append(digit)
        else:
            runs.append([digit])
    found = []
    for run in runs:
        found += [f"[{run[0]}-{run[-1]}]"] if len(run) > 2 else run
    return found


def _digit_class(digits: list[str]) -> str:
    if len(digits) == 1:
        return digits[0]
    return f"[{''.join(run.strip('[]') for run in _digit_runs(digits))}]"
