r"""Patterns: which regular expressions a rule may hold.

Recipes are run by RE2, whose time grows linearly with the name whatever the pattern, so that a recipe
from a stranger cannot hang the program: `^(.*)*X$` takes Python's `re` 6 seconds on a tensor name of 27
characters, twice as long for each further one; RE2 needs microseconds. Matching is an unanchored,
case-sensitive search, as in llama.cpp (`--tensor-type`) and ik_llama.cpp (`--custom-q`).

The portable subset
-------------------
Those two use C++ `std::regex` (ECMAScript), Python tools use `re`. A pattern may hold only what they and
RE2 read the same way, so that a recipe means one thing everywhere:

    ASCII characters, `.`, `[a-z]`, `[^a-z]`, `(...)`, `(?:...)`, `|`, `^`, `$`,
    `*`, `+`, `?`, `{2}`, `{2,}`, `{2,5}` and their lazy forms (`*?`),
    `\d \D \w \W \s \S \b \B \t \n \r \f \v`, and `\` before any character that is not a letter or digit

Left out: look-around, back-references, named groups, inline flags, atomic groups, possessive repetition,
`[:alpha:]`, `[]...]`, `\A \z \Q \p`, and `{` that begins neither a repetition nor a range (a character to
RE2, an error to std::regex; no tensor name holds one). The 14,794 rules of 379 published recipes need none
of these. Ranges of blocks, `{0..46}`, are ggplan's own (see `ranges`): `resolve` writes them out.

Limits
------
Compiled, a pattern is a program of about one instruction per character, and `{1000}` repeats them. A search
takes at most (instructions) x (characters of the name) steps, so the programs of a recipe are bounded,
each and together, and `steps` bounds the steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import re2

from ggplan.rules.ranges import RangeError, alternation, parse_range

MAX_PATTERN_CHARACTERS = 1_000
MAX_PROGRAM = 500_000  # RE2 instructions of all rules together: ten thousand rules of ordinary size
_TYPICAL_BLOCKS = 1_000  # for `first` and `last` before the model is known
PATTERN_MEMORY = 1 << 18  # bytes; RE2 then refuses a program of more than about 15,000 instructions

_TOKEN = re.compile(
    r"""
      \\ (?P<escape> .? )
    | (?P<set> \[ \^? \]? (?: \\. | [^\]\\] )* (?P<set_end> \]? ) )
    | (?P<group> \( (?: \?: )? )
    | (?P<group_end> \) )
    | (?P<repeat> [*+?] | \{ \d+ (?: , \d* )? \} )
    | (?P<range> \{ [ \t]* (?: \d | (?: first|last ) \b ) [^{}]* \} )
    | (?P<brace> \{ )
    | (?P<anchor> [|^$] )
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_KINDS = ("escape", "set", "group", "group_end", "repeat", "range", "brace", "anchor")
_SHARED_ESCAPES = frozenset("dDwWsSbBtnrfv")
_ESCAPE_HELP = dict.fromkeys("zZ", "write `$` for the end of the name") | {
    "A": "write `^` for the start of the name"
}
PatternFault = Literal[
    "too long", "too large", "not ASCII", "escape", "lone backslash", "back-reference", "set", "POSIX class",
    "never closed", "closes nothing", "repeats nothing", "repeats a repetition", "possessive", "look-around",
    "named group", "atomic group", "flags", "block range", "brace", "character range", "refused by RE2",
]  # fmt: skip
"""What is wrong with a pattern; `repairs` knows what each was probably meant to be."""

_LISTING = "list what shall match, such as `(1[0-9]|2[0-4])`, and put exceptions into a rule above"
_LOOK_AROUND = "look-around is not portable: RE2 has none"
_BACK_REFERENCE = "back-references are not portable: RE2 has none"
_NAMED_GROUP = "named groups are not portable"
_FOREIGN_GROUPS: dict[str, tuple[PatternFault, str, str]] = {
    "(?=": ("look-around", _LOOK_AROUND, _LISTING),
    "(?!": ("look-around", _LOOK_AROUND, _LISTING),
    "(?<=": ("look-around", _LOOK_AROUND, _LISTING),
    "(?<!": ("look-around", _LOOK_AROUND, _LISTING),
    "(?P=": ("back-reference", _BACK_REFERENCE, _LISTING),
    "(?P<": ("named group", _NAMED_GROUP, "write `(` without the name"),
    "(?<": ("named group", _NAMED_GROUP, "write `(` without the name"),
    "(?>": ("atomic group", "atomic groups are not portable", "write `(?:`"),
    "(?": (
        "flags",
        "`(?` is portable only as `(?:`",
        r"write both cases for `(?i)`: `[Aa]`; or `\(` for the character",
    ),
}
_BACKWARDS = "invalid character class range"
_RE2_HELP = {
    "invalid repetition size": "repeat at most 1,000 times, the smaller number first",
    _BACKWARDS: "write the smaller character first: `[a-z]`",
}


@dataclass(eq=False)
class PatternError(Exception):
    """A pattern that no rule may have; `start` and `length` are characters of the pattern."""

    code: str
    kind: PatternFault
    message: str
    start: int
    length: int
    help: str = ""
    instead: str | None = None  # what to write in place of the span, where that is known


@lru_cache(maxsize=1024)
def check_pattern(pattern: str) -> int:
    """Check that a pattern is well formed and portable, and return the size of its RE2 program.

    Raises
    ------
    PatternError
        GP003, GP004 or GP009, with the span at fault.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise PatternError(
            "GP009",
            "too long",
            f"the pattern has {len(pattern):,} characters; {MAX_PATTERN_CHARACTERS:,} are allowed",
            0,
            len(pattern),
            "split the rule into several with the same type",
        )
    if found := re.search(r"[^\x00-\x7f]+", pattern):
        message = "the pattern holds characters that are not ASCII; std::regex takes each for several"
        help = "tensor names are ASCII; `.` stands for any character"
        raise PatternError("GP004", "not ASCII", message, found.start(), len(found[0]), help)
    _check_portable(pattern)
    try:
        resolved = resolve(pattern, _TYPICAL_BLOCKS)
        return int(re2.compile(resolved, re2_options(PATTERN_MEMORY)).programsize)
    except re2.error as error:
        raise _from_re2(pattern, error) from None


def tokens(pattern: str) -> Iterator[tuple[str, str, int]]:
    """The pieces of a pattern in order: what each is, its text, and where it begins.

    `escape`, `set`, `group`, `group_end`, `repeat`, `range`, `brace`, `anchor`, or `character`.
    """
    for token in _TOKEN.finditer(pattern):
        kind = next((k for k in _KINDS if token[k] is not None), "character")
        yield kind, token[0], token.start()


@lru_cache(maxsize=1024)
def resolve(pattern: str, n_blocks: int) -> str:
    """The pattern with its ranges written out for a model of `n_blocks` blocks."""
    if "{" not in pattern:
        return pattern
    return "".join(
        alternation(parse_range(token["range"][1:-1]).numbers(n_blocks)) if token["range"] else token[0]
        for token in _TOKEN.finditer(pattern)
    )


def re2_options(memory: int) -> re2.Options:
    """Options of RE2 with at most `memory` bytes for a program and its automaton, and no log on stderr."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = memory
    return options


def _check_portable(pattern: str) -> None:
    """Walk through the tokens and raise at the first that is malformed or that not all engines share."""
    open_groups: list[int] = []
    before = "nothing"  # what a repetition would repeat: nothing, an atom, a repeat, a lazy repeat
    for token in _TOKEN.finditer(pattern):
        start, text = token.start(), token[0]
        if token["repeat"]:
            before = _check_repeat(text, before, start)
            continue
        if token["escape"] is not None:
            _check_escape(token["escape"], start)
        elif token["set"]:
            _check_set(text, closed=bool(token["set_end"]), start=start)
        elif token["group"]:
            if text == "(" and pattern.startswith("(?", start):
                raise _foreign_group(pattern, start)
            open_groups.append(start)
        elif token["group_end"]:
            if not open_groups:
                raise PatternError(
                    "GP003",
                    "closes nothing",
                    "`)` closes no group",
                    start,
                    1,
                    r"write `\)` for the character",
                )
            open_groups.pop()
        elif token["range"]:
            _check_range(text, start)
        elif token["brace"]:
            help = r"write `\{` for the character"
            message = "`{` begins neither a repetition such as `{2,3}` nor a range such as `{0..46}`"
            raise PatternError("GP004", "brace", message, start, 1, help)
        before = "nothing" if token["group"] or token["anchor"] or text in (r"\b", r"\B") else "atom"
    if open_groups:
        help = r"write `\(` for the character"
        raise PatternError("GP003", "never closed", "`(` is never closed", open_groups[-1], 1, help)


def _check_range(text: str, start: int) -> None:
    try:
        parse_range(text[1:-1])
    except RangeError as error:
        if error.instead is not None:
            raise PatternError(
                "GP015", "block range", error.message, start, len(text), error.help, error.instead
            ) from None
        at = start + 1 + error.start
        raise PatternError(
            "GP015", "block range", error.message, at, max(1, error.length), error.help
        ) from None


def _check_escape(letter: str, start: int) -> None:
    if not letter:
        help = r"write `\\` for the character"
        raise PatternError("GP003", "lone backslash", r"the pattern ends in a lone `\`", start, 1, help)
    if letter.isascii() and letter.isdigit():
        raise PatternError("GP004", "back-reference", _BACK_REFERENCE, start, 2, _LISTING)
    if letter.isascii() and letter.isalpha() and letter not in _SHARED_ESCAPES:
        message = f"`\\{letter}` does not mean the same to RE2, llama.cpp and Python"
        help = _ESCAPE_HELP.get(letter, f"write `{letter}` for the letter")
        raise PatternError("GP004", "escape", message, start, 2, help)


def _check_set(text: str, *, closed: bool, start: int) -> None:
    if not closed:
        raise PatternError(
            "GP003", "never closed", "`[` is never closed", start, 1, r"write `\[` for the character"
        )
    if found := re.match(r"\[\^?\]", text):
        help = r"write `\]` for the character"
        raise PatternError("GP004", "set", "an empty set `[]` is not portable", start, len(found[0]), help)
    for escape in re.finditer(r"\\(.)", text[:-1], re.DOTALL):
        _check_escape(escape[1], start + escape.start())
    if found := re.search(r"\[[:.=]|\\[dDwWsS]-(?!\])|-\\[dDwWsS]|\\[bB]", text[1:]):
        message = f"`{found[0]}` inside a set is not portable"
        help = "write the characters: `[0-9a-z]`"
        kind: PatternFault = "POSIX class" if found[0] == "[:" else "set"
        raise PatternError("GP004", kind, message, start + 1 + found.start(), len(found[0]), help)


def _check_repeat(text: str, before: str, start: int) -> str:
    """Check what a repetition repeats, and return what a next one would."""
    if before == "nothing":
        help = rf"write `\{text}` for the character, or `.{text}` for anything"
        raise PatternError("GP003", "repeats nothing", f"`{text}` repeats nothing", start, len(text), help)
    if before == "atom":
        return "repeat"
    if before == "repeat" and text == "?":
        return "lazy repeat"
    if before == "repeat" and text == "+":
        help = "leave the last `+` out"
        raise PatternError("GP004", "possessive", "possessive repetition is not portable", start, 1, help)
    help = "put what it shall repeat into a group: `(?:...)`"
    raise PatternError(
        "GP003", "repeats a repetition", f"`{text}` repeats a repetition", start, len(text), help
    )


def _foreign_group(pattern: str, start: int) -> PatternError:
    """The error for a group `(?...` that is not `(?:`."""
    opening = max((g for g in _FOREIGN_GROUPS if pattern.startswith(g, start)), key=len)
    kind, message, help = _FOREIGN_GROUPS[opening]
    return PatternError("GP004", kind, message, start, len(opening), help)


def _from_re2(pattern: str, error: re2.error) -> PatternError:
    """RE2's own complaint, `reason: fragment` in bytes, with the fragment's place in the pattern."""
    reason, _, fragment = error.args[0].decode("utf-8", "replace").partition(": ")
    # RE2 says in words alone why it refuses, and has no program whose size could be looked at.
    if "too large" in reason:
        message = "the pattern is too large when its repetitions are written out"
        return PatternError(
            "GP009", "too large", message, 0, len(pattern), "repeat less: `.*` in place of `.{1000}`"
        )
    start = pattern.find(fragment) if fragment else -1
    if start < 0:
        return PatternError("GP003", "refused by RE2", reason, 0, len(pattern))
    kind: PatternFault = "character range" if reason == _BACKWARDS else "refused by RE2"
    return PatternError(
        "GP003", kind, f"{reason} `{fragment}`", start, len(fragment), _RE2_HELP.get(reason, "")
    )
