"""Draft: a recipe while it is being read, and text that remembers where it came from.

`${NAME}` is replaced by the text of its `@let` before a pattern or a type is read. A mistake inside the
replaced text is then shown under `${NAME}`, where it can be seen; `Mapped` keeps the places.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ggplan.rules.diagnostics import Diagnostic, Edit, Fix
from ggplan.rules.recipe import Assertion, Choice, Location, Rule, Target, TypeTest

MAX_ERRORS = 1_000
MAX_EXPANDED = 4_000  # characters of a line after `${NAME}`
_MOST_SUGGESTED = 20  # errors that get the nearest name; more cost more than they tell
_BLANK = " \t"
_USE = re.compile(r"\$\{([^{}]*)\}|\$\{")

Follow = Callable[[str, str], tuple[str, str]]
"""Finds what `@include` or `@base` names: (text behind the word, file it stands in) -> (file, its text).

Raises `FollowError`.
"""

Include = Callable[["Draft", str, Location], None]
"""Reads the lines of an included file into a draft: (draft, text behind `@include`, where that stands).

The parser gives it to the draft, so that directives need not import the parser, which imports them.
"""


class FollowError(Exception):
    """An `@include` or `@base` that leads nowhere: the message, what to do, what to name instead."""

    def __init__(self, message: str, help: str = "", instead: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.help = help
        self.instead = instead


@dataclass(frozen=True, slots=True)
class Mapped:
    """A piece of a line: its text after replacement, and where each character came from.

    `starts` and `ends` are offsets into the line as written, one for each character of `text`; `at` is
    where an empty piece stands.
    """

    text: str
    starts: tuple[int, ...] | range
    ends: tuple[int, ...] | range
    at: int

    @classmethod
    def plain(cls, text: str, at: int) -> Mapped:
        """Text that begins `at` characters into the line and is as written."""
        return cls(text, range(at, at + len(text)), range(at + 1, at + 1 + len(text)), at)

    def __getitem__(self, part: slice) -> Mapped:
        start, _, _ = part.indices(len(self.text))
        at = self.starts[start] if start < len(self.text) else self.ends[-1] if self.text else self.at
        return Mapped(self.text[part], self.starts[part], self.ends[part], at)

    def strip(self) -> Mapped:
        """Without the blanks around it."""
        start = len(self.text) - len(self.text.lstrip(_BLANK))
        return self[start : max(start, len(self.text.rstrip(_BLANK)))]

    def split(self, separator: str) -> list[Mapped]:
        """The pieces between one-character separators."""
        cuts = [-1, *(i for i, c in enumerate(self.text) if c == separator), len(self.text)]
        return [self[a + 1 : b] for a, b in itertools.pairwise(cuts)]

    def span(self) -> tuple[int, int]:
        """Offset and length of the piece in the line as written."""
        if not self.text:
            return self.at, 0
        return self.starts[0], self.ends[-1] - self.starts[0]


@dataclass(slots=True)
class Draft:
    """What has been read so far, of one recipe and all it includes."""

    file: str  # that is being read now
    include: Include
    follow: Follow | None = None
    rules: list[Rule] = field(default_factory=list)
    errors: list[Diagnostic] = field(default_factory=list)
    default: Choice | None = None
    name: str = ""
    architecture: str = ""
    order: str = "first"
    match: str = "search"
    target: Target | str = ""
    base: str = ""
    base_at: Location | None = None
    assertions: list[Assertion] = field(default_factory=list)
    tests: list[TypeTest] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    unused: dict[str, Location] = field(default_factory=dict)
    directives: dict[str, Location] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    stack: tuple[str, ...] = ()  # files that include the one being read
    program: int = 0
    n_rules: int = 0
    closed: bool = False  # a limit was met, the rest is not read

    def error(self, code: str, message: str, at: Location, help: str = "", *fixes: Fix | None) -> None:
        """Note an error, with its fixes, the likeliest first; after very many, the last."""
        known = [fix for fix in fixes if fix is not None]
        fix, others = (known[0], tuple(known[1:])) if known else (None, ())
        where = (at.file, at.line, at.column, at.length)
        self.errors.append(Diagnostic(code, "error", message, *where, help, fix, others=others))
        if len(self.errors) == MAX_ERRORS:
            self.stop(f"more than {MAX_ERRORS:,} errors; the rest of the file was not read", at)

    def stop(self, message: str, at: Location, help: str = "") -> None:
        """Note that a limit is exceeded and read no further."""
        if not self.closed:
            self.closed = True
            self.error("GP009", message, at, help)

    def span(self, line: int, piece: Mapped) -> Location:
        """Where a piece of a line stands; an empty one is a point."""
        offset, length = piece.span()
        return Location(self.file, line, offset + 1, max(1, length))

    def expand(self, line: int, piece: Mapped) -> Mapped | None:
        """The piece, which must be as written, with every `${NAME}` replaced; None after an error."""
        if "${" not in piece.text:
            return piece
        texts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        last = 0
        for use in _USE.finditer(piece.text):
            before = piece[last : use.start()]
            span = piece[use.start() : use.end()]
            text = self._value(line, use[1], span)
            if text is None:
                return None
            offset, length = span.span()
            texts += [before.text, text]
            starts += [*before.starts, *[offset] * len(text)]
            ends += [*before.ends, *[offset + length] * len(text)]
            last = use.end()
        rest = piece[last:]
        found = Mapped(
            "".join(texts) + rest.text, (*starts, *rest.starts), (*ends, *rest.ends), piece.span()[0]
        )
        if len(found.text) > MAX_EXPANDED:
            message = f"the line is longer than {MAX_EXPANDED:,} characters with its names replaced"
            self.error("GP009", message, self.span(line, piece))
            return None
        return found

    def _value(self, line: int, name: str | None, span: Mapped) -> str | None:
        at = self.span(line, span)
        if name is None:
            self.error("GP013", "`${` is never closed", at, "write `${NAME}`, with a name that `@let` gives")
            return None
        if name in self.variables:
            self.unused.pop(name, None)
            return self.variables[name]
        near = []
        if len(name) < 40 and len(self.errors) < _MOST_SUGGESTED:
            near = difflib.get_close_matches(name, self.variables, n=1)
        if near:
            help, fix = f"the nearest is `${{{near[0]}}}`", replacing(at, f"${{{near[0]}}}", safe=False)
        else:
            help, fix = f"write `@let {name[:40] or 'NAME'} = ...` above", None
        self.error("GP013", f"no `@let` above gives `{name[:40]}`", at, help, fix)
        return None


def replacing(at: Location, text: str, *, safe: bool) -> Fix:
    """The fix that puts `text` in place of a span."""
    return Fix((Edit(at.file, at.line, at.column, at.length, text),), safe)


def deleting(file: str, line: int, *, safe: bool) -> Fix:
    """The fix that deletes a line."""
    return Fix((Edit(file, line, 1, None, ""),), safe)


def whole(rule: Rule) -> Rule:
    """The rule under `@match full`."""
    return rule if rule.roles else replace(rule, whole=True)
