r"""What a faulty pattern was probably meant to be.

Each mistake has its own remedies, tried in order: a bracket that is never closed is closed at the next
place where that gives a pattern (before `\.`, then at the end), and only then taken for a character. With
the names of a model at hand, `ggplan.linting` takes the first that matches a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ggplan.rules.patterns import MAX_PATTERN_CHARACTERS, PatternError, check_pattern

_MAX_CANDIDATES = 12
_SPELLINGS = {r"\A": "^", r"\Z": "$", r"\z": "$", "(?>": "(?:"}


@dataclass(frozen=True, slots=True)
class Repair:
    """A pattern to write instead; `certain` where it can only have been meant so."""

    pattern: str
    certain: bool


def repaired_patterns(pattern: str, error: PatternError) -> list[Repair]:
    """What to write in place of a pattern that has this error, the likeliest first, if anything."""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return []
    found: list[Repair] = []
    for repair in _candidates(pattern, error):
        if repair.pattern not in [pattern, *(r.pattern for r in found)] and _is_whole(repair.pattern, error):
            found.append(repair)
        if len(found) == _MAX_CANDIDATES:
            break
    return found


def _is_whole(pattern: str, error: PatternError) -> bool:
    """Whether the pattern is right now, or its next mistake stands further on."""
    try:
        check_pattern(pattern)
    except PatternError as left:
        return left.start > error.start + error.length
    return True


def _candidates(pattern: str, error: PatternError) -> Iterator[Repair]:
    start, stop = error.start, error.start + error.length
    before, fault, after = pattern[:start], pattern[start:stop], pattern[stop:]
    if error.instead is not None:
        yield Repair(before + error.instead + after, certain=True)
    if fault in _SPELLINGS:
        yield Repair(before + _SPELLINGS[fault] + after, certain=True)
    elif error.kind == "never closed":
        close = "]" if fault == "[" else ")"
        for at in _places_to_close(pattern, stop):
            yield Repair(pattern[:at] + close + pattern[at:], certain=False)
        yield Repair(f"{before}\\{fault}{after}", certain=False)
    elif error.kind == "closes nothing":
        yield Repair(before + after, certain=False)
        yield Repair(f"{before}\\{fault}{after}", certain=False)
    elif error.kind == "repeats nothing":
        yield Repair(f"{before}.{fault}{after}", certain=False)
        yield Repair(before + after, certain=False)
    elif error.kind in ("repeats a repetition", "lone backslash"):
        yield Repair(before + after, certain=False)
    elif error.kind == "character range" and (pair := re.fullmatch(r"(.)-(.)", fault)):
        yield Repair(f"{before}{pair[2]}-{pair[1]}{after}", certain=False)
    elif error.code == "GP004":
        yield from _portable(pattern, error, before, fault, after)


def _portable(pattern: str, error: PatternError, before: str, fault: str, after: str) -> Iterator[Repair]:
    if error.kind == "possessive":
        yield Repair(before + after, certain=True)
    elif error.kind == "named group" and (name := re.match(r"[^<>()]*>", after)):
        yield Repair(f"{before}({after[name.end() :]}", certain=True)
    elif error.kind == "flags" and (flags := re.match(r"[a-zA-Z]+\)", after)):
        yield Repair(before + after[flags.end() :], certain=False)
    elif error.kind == "POSIX class":
        classes = {"alpha": "A-Za-z", "digit": "0-9", "alnum": "A-Za-z0-9", "lower": "a-z"}
        name = re.match(r"\[:(\w+):\]", pattern[error.start :])
        if name and name[1] in classes:
            yield Repair(before + classes[name[1]] + pattern[error.start + name.end() :], certain=True)
    elif error.kind == "escape":
        yield Repair(before + fault[1] + after, certain=False)
    elif error.kind == "brace":
        if listed := re.match(r"([\w.]+(?:,[\w.]+)+)\}", after):  # `{k,v}` as a shell has it
            either = "|".join(listed[1].split(","))
            yield Repair(f"{before}({either}){after[listed.end() :]}", certain=False)
        yield Repair(f"{before}\\{{{after}", certain=False)
    elif error.kind == "not ASCII":
        plain = {"\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00a0": "", "\uff0e": "."}
        yield Repair(before + "".join(plain.get(c, ".") for c in fault) + after, certain=False)
    elif error.kind == "look-around":
        yield from _without_look_ahead(before, fault, after)


def _without_look_ahead(before: str, fault: str, after: str) -> Iterator[Repair]:
    r"""`blk\.(?!46\.)\d+\.` is all blocks but 46; below it that can be listed, above it only a model says."""
    found = re.match(r"\(?(\d+(?:\|\d+)*)\)?(?:\\\.)?\)(?:\\d\+|\[0-9\]\+)", after)
    if fault != "(?!" or not found:
        return
    excluded = sorted({int(n) for n in found[1].split("|") if len(n) < 5})
    allowed, low = [], 0
    for number in excluded:
        if number > low:
            allowed.append(f"{low}..{number - 1}" if number - 1 > low else str(low))
        low = number + 1
    # Open upwards: as many blocks as any model has; a check against a model finds the rest idle, not wrong.
    allowed.append(f"{low}..999")
    yield Repair(f"{before}{{{','.join(allowed)}}}{after[found.end() :]}", certain=False)


def _places_to_close(pattern: str, start: int) -> Iterator[int]:
    r"""Where a bracket opened before `start` may end: before each `\.` or `$`, before `_`, at the end."""
    for stop in (r"\\\.", r"\.", r"_", r"\$"):
        for found in list(re.finditer(stop, pattern[start:]))[:3]:
            if found.start():
                yield start + found.start()
    yield len(pattern)
