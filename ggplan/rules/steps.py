r"""Steps: how much work it may be to match the patterns of a recipe, counted before any is done.

RE2 follows all places in all patterns that a name may have reached: a step is one instruction visited at one
character. An instruction is visited only where what stands before it in its pattern has matched, and that
matches only where the names have a character that it accepts. So the visits are bounded from left to right:
the first piece of a pattern is visited at every character of the names, and the piece behind a `b` no more
often than that piece and no more often than the names have a `b`. `blk\.7\.ffn_down\.weight` costs little
more than its first piece; `(a|b)*a(a|b){60}b` on names of a and b costs nearly all of its instructions at
every character.

A beginning that names have in common counts once, for the automaton remembers where it led. The count depends
on patterns and names alone: it is the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias, Union

import re2

from ggplan.rules.patterns import PATTERN_MEMORY, re2_options, tokens

MAX_STEPS = 400_000_000
"""A recipe with a rule for each of the 1,761 tensors of GLM-4.5 takes 38 million. RE2 takes 80 million of the
slowest a second, and a thousand million on real names."""
_EMPTY_PROGRAM = 4  # instructions that every program of RE2 has

_Piece: TypeAlias = Union[str, "list[_Branch]"]  # a character or set, or the branches of a group
_Branch: TypeAlias = "list[tuple[_Piece, int, int | None]]"  # pieces, and how often each; None: without end


@dataclass(frozen=True, slots=True, eq=False)
class _Names:
    """The names of a model as counts.

    Attributes
    ----------
    characters
        How many bytes of the names each character takes, shared beginnings counted once.
    places
        Places between bytes: one more than the bytes.
    """

    characters: dict[bytes, int]
    places: int
    _known: dict[str, tuple[int, int]] = field(default_factory=dict)

    def takes(self, text: str) -> tuple[int, int]:
        """How many instructions a piece of a pattern is, and at how many places a name goes on behind it."""
        if text not in self._known:
            self._known[text] = self._look(text)
        return self._known[text]

    def _look(self, text: str) -> tuple[int, int]:
        if text in ("$", r"\b", r"\B"):
            return 1, self.places
        if text == "^":
            return 1, 1
        try:
            piece = re2.compile(text, re2_options(PATTERN_MEMORY))
        except re2.error:  # only a part of what RE2 knows, such as `\p`
            return 1, self.places
        taken = sum(n for character, n in self.characters.items() if piece.fullmatch(character))
        return max(1, piece.programsize - _EMPTY_PROGRAM), taken


def count_steps(patterns: Sequence[str], names: Sequence[str], *, share: bool = True) -> int:
    """The most steps that matching takes; counting stops soon after `MAX_STEPS`.

    Parameters
    ----------
    patterns
        Their ranges of blocks written out. One beyond the portable subset counts as all of its instructions
        at every place.
    share
        Whether the automaton can remember where the beginning of a name led.

    Raises
    ------
    re2.error
        If RE2 refuses a pattern beyond the portable subset.
    """
    counted = _count(tuple(names), share)
    steps = 0
    for pattern in patterns:
        steps += _steps(pattern, counted)
        if steps > MAX_STEPS:
            break
    return steps


@lru_cache(maxsize=8)  # a check asks for the same model again and again
def _count(names: tuple[str, ...], share: bool) -> _Names:
    ordered = sorted(set(names))
    if share:
        ordered = [name[_n_common(before, name) :] for before, name in pairwise(("", *ordered))]
    found = Counter("".join(ordered))
    characters = {c.encode("utf-8", "surrogatepass"): n for c, n in found.items()}
    characters = {c: n * len(c) for c, n in characters.items()}
    return _Names(characters, sum(characters.values()) + 1)


def _n_common(a: str, b: str) -> int:
    """How many characters two texts begin with in common; comparing halves is faster than each in turn."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@lru_cache(maxsize=16_384)  # more than a recipe may have rules
def _steps(pattern: str, names: _Names) -> int:
    if (branches := _branches(pattern)) is None:
        return int(re2.compile(pattern, re2_options(PATTERN_MEMORY)).programsize) * names.places
    return _visit(branches, names.places, names)[0]


def _branches(pattern: str) -> list[_Branch] | None:
    """The pattern as a tree; None where it is not well formed or not of the portable subset."""
    branches: list[_Branch] = [[]]
    open_groups: list[list[_Branch]] = []
    before = ""
    for kind, text, _ in tokens(pattern):
        if kind == "group":
            open_groups.append(branches)
            branches = [[]]
        elif kind == "group_end":
            if not open_groups:
                return None
            group, branches = branches, open_groups.pop()
            branches[-1].append((group, 1, 1))
        elif text == "|":
            branches.append([])
        elif kind == "repeat":
            if not branches[-1]:
                return None
            if before != "repeat":  # `*?` visits what `*` does
                branches[-1].append((branches[-1].pop()[0], *_limits(text)))
        else:
            branches[-1].append((text, 1, 1))
        before = kind
    return None if open_groups else branches


def _limits(repeat: str) -> tuple[int, int | None]:
    if repeat == "?":
        return 0, 1
    if repeat in "*+":
        return int(repeat == "+"), None
    low, comma, high = repeat[1:-1].partition(",")
    return int(low), int(high) if high else None if comma else int(low)


def _visit(branches: list[_Branch], at: int, names: _Names) -> tuple[int, int]:
    """The steps in a group that begins at so many places, and at how many it may end."""
    steps, ends = at * (len(branches) - 1), 0
    for branch in branches:
        here = at
        for piece, low, high in branch:
            if isinstance(piece, str) and low == high == 1:  # nearly all
                width, taken = names.takes(piece)
                steps += here * width
                here = min(here, taken)
            else:
                more, here = _repeated(piece, low, high, here, names)
                steps += more
        ends += here
    return steps, min(ends, names.places)


def _repeated(piece: _Piece, low: int, high: int | None, at: int, names: _Names) -> tuple[int, int]:
    """The same of a piece that repeats."""

    def once(at: int) -> tuple[int, int]:
        if not isinstance(piece, str):
            return _visit(piece, at, names)
        width, taken = names.takes(piece)
        return at * width, min(at, taken)

    steps = 0
    for i in range(low):
        more, end = once(at)
        steps += more
        if end == at:  # and so it goes on
            steps += more * (low - 1 - i)
            break
        at = end
    if high is None:
        # It may begin wherever it ends.
        more, end = once(names.places if not isinstance(piece, str) else min(names.places, at + once(at)[1]))
        return steps + more + at, min(names.places, at + end)
    ends = at
    for i in range(high - low):
        more, end = once(at)
        steps += more + at
        ends += end
        if end == at:
            steps += (more + at) * (high - low - 1 - i)
            ends += end * (high - low - 1 - i)
            break
        at = end
    return steps, min(ends, names.places)
