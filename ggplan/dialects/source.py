"""A text in another tool's dialect: its lines, errors with their places, and the recipe made of it.

Such texts are not trusted. Patterns must be in the portable subset (`ggplan.rules.patterns`), types must
be ggml's; anything else is an error with file, line and the faulty text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ggplan.errors import RecipeError, TypeNameError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.rules import Diagnostic
from ggplan.rules.diagnostics import invalid_recipe
from ggplan.rules.patterns import PatternError, check_pattern, tokens
from ggplan.text import printable

MAX_RULES = 10_000  # rules of one recipe


@dataclass(frozen=True, slots=True)
class Source:
    """A text and its name in messages."""

    text: str
    file: str

    def fault(self, line: int, message: str, hint: str = "") -> RecipeError:
        """The error for something that is wrong in a line (from 1; 0 is the text as a whole)."""
        place = f"{printable(self.file)}:{line}" if line else printable(self.file)
        return RecipeError(f"{place}: {printable(message)}", hint=printable(hint))

    def line_of(self, text: str) -> int:
        """The first line that contains `text`, as it is or with its backslashes doubled; 0 for none."""
        for written in (text, text.replace("\\", "\\\\")):
            if (at := self.text.find(written)) >= 0:
                return self.text.count("\n", 0, at) + 1
        return 0

    def finding(
        self, code: str, message: str, line: int, text: str, help: str, start: int = 0, length: int = 0
    ) -> RecipeError:
        """The error for a span of `text` in a line, with the line and carets under the span."""
        lines = self.text.split("\n")
        whole = lines[line - 1] if 0 < line <= len(lines) else ""
        at = whole.find(text)
        if at < 0 and (doubled := text.replace("\\", "\\\\")) in whole:  # in quotes with escapes
            at, length = whole.find(doubled), len(doubled)
            start = 0
        at = max(0, at) + start
        span = length or len(text)
        found = Diagnostic(code, "error", message, self.file, line, at + 1, span, help)
        return invalid_recipe([found], lines)

    def type(self, text: str, line: int) -> GgmlType:
        """The ggml type that `text`, in this line, names."""
        try:
            return parse_type(text)
        except TypeNameError as error:
            raise self.finding("GP002", error.message, line, text, error.hint) from None

    def pattern(self, text: str, line: int | None = None) -> str:
        """A regular expression of another tool, checked to mean the same in a recipe.

        `line` is where it stands; by default the first line that contains it.

        Raises
        ------
        RecipeError
            If it is none, or has another meaning there.
        """
        try:
            check_pattern(text)
        except PatternError as error:
            message = error.message
            place = self.line_of(text) if line is None else line
            raise self.finding(
                error.code, message, place, text, error.help, error.start, error.length
            ) from None
        for kind, piece, start in tokens(text):
            if kind == "range":
                message = f"`{piece}` is a range of ggplan's recipes, not a regular expression"
                raise self.finding(
                    "GP004",
                    message,
                    self.line_of(text) if line is None else line,
                    text,
                    "write the numbers: `(1|2|3)`",
                    start,
                    len(piece),
                )
        if "#" in text:
            message = "a pattern with `#` cannot be said in a recipe, where `#` begins a comment"
            raise self.finding(
                "GP004",
                message,
                self.line_of(text) if line is None else line,
                text,
                "write `.` for the character",
            )
        return text.replace("@", r"\@") if text.startswith("@") else text


@dataclass(frozen=True, slots=True)
class ImportedRule:
    """A rule of an imported list, and its line; `forced` if it is meant for protected tensors too."""

    pattern: str
    type: GgmlType
    line: int
    comment: str = ""
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """A recipe imported from another dialect.

    Attributes
    ----------
    dialect
        The dialect.
    text
        The recipe, whose comments hold the notes.
    notes
        Where the recipe differs from the text it was made from, and why.
    """

    dialect: str
    text: str
    notes: tuple[str, ...] = ()


def with_dots(pattern: str) -> str:
    r"""The pattern with `\.` for each `.` that can only be the dot between parts of a GGUF name.

    That is the one behind `blk` or a layer's number, and the one before `weight` or `bias`; people leave the
    backslash out there. A dot beside another dot may stand for a digit, and stays.
    """
    if "." not in pattern:
        return pattern
    pieces = list(tokens(pattern))
    found = []
    for n, (kind, text, start) in enumerate(pieces):
        after = pieces[n + 1] if n + 1 < len(pieces) else ("", "", 0)
        before, behind = pattern[:start], pattern[start + 1 :]
        is_dot = kind == "character" and text == "." and after[0] != "repeat" and after[1] not in (".", r"\.")
        is_part = (
            re.search(r"(^|[^a-z0-9_])blk$", before)
            or (re.search(r"blk\\?\..*[\])\d*+]$", before) and re.match("[a-z(]", behind))
            or (re.match(r"(weight|bias)(?![a-z0-9_])", behind) and not before.endswith("."))
        )
        found.append(r"\." if is_dot and is_part else text)
    return "".join(found)


def rules_text(entries: Sequence[ImportedRule]) -> list[str]:
    """The rules as lines of a recipe, `=` in one column."""
    width = max((len(e.pattern) for e in entries if len(e.pattern) <= 76), default=0)
    lines = []
    for e in entries:
        comment = f"  # {inert(e.comment)}" if e.comment else ""
        lines.append(f"{e.pattern:<{width}} = {e.type.name}{'!' * e.forced}{comment}")
    return lines


def imported_text(
    source: Source,
    what: str,
    name: str,
    body: Iterable[str],
    notes: Iterable[str] = (),
    head: Iterable[str] = (),
) -> str:
    """The text of an imported recipe.

    Parameters
    ----------
    what
        The kind of source, for the first line.
    body
        Rules and other lines below the directives of `head`.
    """
    lines = [f"# From {inert(source.file)}, {what}."]
    lines += [f"# Note: {inert(note)}" for note in notes]
    lines += ["@recipe 1", f"@name {inert(name) or 'imported'}", *head, "", *body]
    return "\n".join(lines) + "\n"


def inert(text: str) -> str:
    """`text` without line ends and `#`, so that it stays inside a comment or a name."""
    return " ".join(printable(text).replace("#", "").split())
