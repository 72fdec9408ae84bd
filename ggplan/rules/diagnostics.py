r"""Diagnostics of recipes: what is wrong, where exactly, and what to write instead.

A diagnostic is a plain value with a stable code; `render` shows it the way rustc and ruff do:

    error[GP002]: `Q4_K_M` is a llama.cpp mix of several types, not a tensor type
      --> hq4_k.recipe:14:43
       |
    14 | ^blk\.\d+\.ffn_(gate|up)_exps\.weight$ = Q4_K_M
       |                                           ^^^^^^
       = help: use `q4_K` for every tensor of the rule

Lines and columns count from 1, columns in characters (not bytes, not terminal cells). Recipes come from
strangers, so everything printed is escaped first, and the carets are then placed by the width the escaped
text has in a terminal: tabs become four spaces, East Asian wide characters count two cells, combining
marks none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ggplan.errors import RecipeError
from ggplan.text import format_bytes, printable

Severity = Literal["error", "warning", "note"]

_TAB = "    "
_WINDOW = 120  # characters of a line that are shown
_SHOWN = 20  # diagnostics that one error message renders in full


@dataclass(frozen=True, slots=True)
class Edit:
    """Text to put in place of a span of one line; a `length` of None takes the line with its line end."""

    file: str
    line: int
    column: int
    length: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Fix:
    """What mends a finding, as edits that go together.

    Attributes
    ----------
    safe
        Whether it says what the recipe plainly meant, or changes no tensor's type: what `--fix` applies. A
        report calls none safe that edits another file than the recipe, which other recipes may draw in.
    """

    edits: tuple[Edit, ...]
    safe: bool


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding about a recipe.

    Attributes
    ----------
    code
        `GP` and three digits; `ggplan.linting` holds what each means.
    message
        One line that stands alone.
    file
        The recipe, as the user named it.
    line, column
        Where the span begins, from 1; line 0 is the file as a whole.
    length
        Characters in the span; 0 or 1 for a point.
    help
        What to write instead, or "".
    fix
        The edits that do so, or None.
    cost_bytes
        What it costs in bytes of the file: what the recipe's tensors weigh now, less what they would weigh
        were it mended; None where that is unknown or nothing.
    others
        Further fixes, should the names of a model show that `fix` cannot be meant.
    """

    code: str
    severity: Severity
    message: str
    file: str
    line: int = 0
    column: int = 0
    length: int = 1
    help: str = ""
    fix: Fix | None = None
    cost_bytes: int | None = None
    others: tuple[Fix, ...] = ()


class InvalidRecipeError(RecipeError):
    """A recipe with errors: the message is all of them rendered, `diagnostics` are the values."""

    is_rendered = True

    def __init__(self, message: str, diagnostics: tuple[Diagnostic, ...]) -> None:
        super().__init__(message)
        self.diagnostics = diagnostics


def render(diagnostic: Diagnostic, source_line: str, color: bool = False) -> str:
    """Show a diagnostic with its line of the recipe and carets under the span.

    Parameters
    ----------
    source_line
        The whole line, without its line end; ignored where the diagnostic is about the file.
    color
        Whether to use ANSI colours.
    """
    paint = _ansi if color else _plain
    strong = diagnostic.severity
    head = paint(f"{diagnostic.severity}[{diagnostic.code}]", strong)
    lines = [head + paint(f": {_escape(diagnostic.message)}", "bold")]
    number = str(diagnostic.line) if diagnostic.line else ""
    gutter = " " * (len(number) or 1)
    bar = paint(f"{gutter} |", "blue")
    place = _escape(diagnostic.file)
    if diagnostic.line:
        place += f":{diagnostic.line}:{diagnostic.column}"
        shown, margin, carets = _excerpt(source_line, diagnostic.column - 1, diagnostic.length)
        lines.append(f"{gutter}{paint('-->', 'blue')} {place}")
        lines.append(bar)
        lines.append(f"{paint(f'{number} |', 'blue')} {shown}".rstrip())
        lines.append(f"{bar} {' ' * margin}{paint('^' * carets, strong)}")
    elif place:
        lines.append(f"{gutter}{paint('-->', 'blue')} {place}")
    if diagnostic.help:
        mark = "" if diagnostic.fix is None else " [--fix]" if diagnostic.fix.safe else ""
        note = paint("help", "bold")
        lines.append(f"{gutter} {paint('=', 'blue')} {note}: {_escape(diagnostic.help)}{mark}")
    if diagnostic.cost_bytes:
        more = "more" if diagnostic.cost_bytes > 0 else "less"
        size = f"{format_bytes(abs(diagnostic.cost_bytes))} {more}"
        lines.append(f"{gutter} {paint('=', 'blue')} {paint('cost', 'bold')}: {size} than meant")
    return "\n".join(lines)


def invalid_recipe(
    diagnostics: Sequence[Diagnostic],
    lines: Sequence[str] = (),
    parts: Mapping[str, Sequence[str]] | None = None,
) -> InvalidRecipeError:
    """The error to raise for `diagnostics`, found in a recipe of these `lines`.

    Parameters
    ----------
    parts
        The lines of each further file that the recipe draws in.
    """

    def line_of(finding: Diagnostic) -> str:
        known = (parts or {}).get(finding.file, lines)
        return known[finding.line - 1] if 0 < finding.line <= len(known) else ""

    blocks = [render(d, line_of(d)) for d in diagnostics[:_SHOWN]]
    if hidden := len(diagnostics) - len(blocks):
        blocks.append(f"{hidden} more {'error is' if hidden == 1 else 'errors are'} not shown")
    return InvalidRecipeError("\n\n".join(blocks), tuple(diagnostics))


def _excerpt(line: str, start: int, length: int) -> tuple[str, int, int]:
    """The part of a line around the span, the cells before the carets, and the number of carets."""
    end = start + max(length, 1)
    first = 0 if len(line) <= _WINDOW else max(0, min(start - _WINDOW // 3, len(line) - _WINDOW))
    last = min(len(line), first + _WINDOW)
    before, span, after = line[first:start], line[start : min(end, last)], line[min(end, last) : last]
    lead = "…" if first else ""
    shown = lead + _escape(before) + _escape(span) + _escape(after) + ("…" if last < len(line) else "")
    return shown, len(lead) + _cells(_escape(before)), max(1, _cells(_escape(span)))


def _escape(text: str) -> str:
    """`text` on one line: tabs expanded, everything a terminal might act upon escaped."""
    return printable(text.replace("\t", _TAB))


def _cells(text: str) -> int:
    """Terminal cells that printable text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


_ANSI = {"bold": "1", "blue": "1;34", "error": "1;31", "warning": "1;33", "note": "1;36"}
_Paint = Callable[[str, str], str]


def _ansi(text: str, style: str) -> str:
    return f"\x1b[{_ANSI[style]}m{text}\x1b[0m"


def _plain(text: str, style: str) -> str:
    return text
