"""Recipe, Rule, Choice: a recipe as a value, every part of it knowing the line it came from.

All are frozen: a recipe is parsed once and then compared, hashed, stored beside a plan, never changed.
Rules keep their text as written, so that a message can show it and a conversion can record it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from ggplan.ggml_types import GgmlType

_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Location:
    """A span of one line of a recipe; line and column count from 1, length in characters."""

    file: str
    line: int
    column: int
    length: int

    @property
    def where(self) -> str:
        """Short form for tables: `hq4_k.recipe:14`."""
        return f"{PurePath(self.file).name or self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The right side of a rule: a chain of types, of which the first that fits is taken.

    Attributes
    ----------
    types
        At least one, in the order of preference.
    forced
        Whether the chain ends in `!` and so holds for protected tensors too.
    text
        As written: `q6_K | q8_0`.
    locations
        Where each of `types` stands.
    """

    types: tuple[GgmlType, ...]
    forced: bool
    text: str
    locations: tuple[Location, ...]

    @property
    def file(self) -> str:
        """The recipe it stands in."""
        return self.locations[0].file

    @property
    def line(self) -> int:
        """Its line, from 1."""
        return self.locations[0].line

    @property
    def column(self) -> int:
        """Where the chain begins, from 1."""
        return self.locations[0].column


@dataclass(frozen=True, slots=True)
class Rule:
    """One line `PATTERN = TYPE`.

    Attributes
    ----------
    pattern
        A regular expression of the portable subset (see `patterns`), searched for in GGUF names.
    file, line, column
        Where the pattern begins.
    comment
        What stands behind `#` on the line, or "".
    """

    pattern: str
    choice: Choice
    file: str
    line: int
    column: int
    comment: str = ""

    @property
    def location(self) -> Location:
        """The span of the pattern."""
        return Location(self.file, self.line, self.column, len(self.pattern))

    @property
    def where(self) -> str:
        """Short form for tables: `hq4_k.recipe:14`."""
        return self.location.where


@dataclass(frozen=True, slots=True)
class Recipe:
    """An ordered list of rules; the first that matches a tensor decides.

    Attributes
    ----------
    name
        What `@name` says, else the name of the file without `.recipe`.
    file
        Where it came from, for messages.
    text
        The exact text, line ends and all.
    sha256
        Of `text` in UTF-8, so of the file's bytes; hexadecimal.
    default
        The choice of `@default` for tensors that no rule matches, or None: they keep their type.
    architecture
        What `@arch` says, as in GGUF's `general.architecture`, or "".
    """

    name: str
    file: str
    text: str
    sha256: str
    rules: tuple[Rule, ...]
    default: Choice | None = None
    architecture: str = ""

    def source_line(self, line: int) -> str:
        """Line `line` (from 1) without its line end, for `render`; "" where there is no such line."""
        lines = split_lines(self.text)
        return lines[line - 1] if 0 < line <= len(lines) else ""


def split_lines(text: str) -> list[str]:
    """The lines of a recipe: LF or CRLF ends them, nothing else; a byte order mark is in none of them."""
    return [line.removesuffix("\r") for line in text.removeprefix(_BOM).split("\n")]
