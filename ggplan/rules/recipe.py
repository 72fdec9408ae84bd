"""Recipe, Rule, Choice: a recipe as a value, every part of it knowing the line it came from.

All are frozen: a recipe is parsed once and then compared, hashed, stored beside a plan, never changed.
Rules keep their text as written, so that a message can show it and a conversion can record it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from ggplan.errors import TypeNameError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.rules.patterns import resolve
from ggplan.rules.ranges import NOTHING, Range
from ggplan.text import nearest

if TYPE_CHECKING:
    from ggplan.rules.conditions import Conditions

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
        return f"{_last_part(self.file)}:{self.line}"


@lru_cache(maxsize=64)  # a plan asks for each of its tensors
def _last_part(file: str) -> str:
    return PurePath(file).name or file


@dataclass(frozen=True, slots=True)
class Keep:
    """`keep` in a chain: the type that the tensor has where no rule matches it.

    Elsewhere than at the end of a chain it is taken by tensors that are stored quantized.

    Attributes
    ----------
    nearly
        The type of `keep(q4_1)`, which holds 4-bit codes with zero points within a rounding, in fewer bits
        than the type that holds them exactly; None for `keep`.
    """

    nearly: GgmlType | None = None

    def __str__(self) -> str:
        return "keep" if self.nearly is None else f"keep({self.nearly})"


Wanted = GgmlType | Keep
"""What stands in a chain."""
_LIKE_KEEP = 0.7
_KEEP = re.compile(r"keep[ \t]*(?:\([ \t]*([^()]*?)[ \t]*\))?", re.IGNORECASE | re.ASCII)


def parse_wanted(text: str) -> Wanted:
    """A type, `keep` or `keep(q4_1)`, in any case.

    Raises
    ------
    TypeNameError
        If it is none of them.
    """
    found = _KEEP.fullmatch(text.strip())
    if found is None:
        try:
            return parse_type(text)
        except TypeNameError as error:
            word, bracket, rest = text.strip().partition("(")
            if not nearest(word, ("keep",), cutoff=_LIKE_KEEP):
                raise error from None
            meant = f"keep{bracket}{rest}"
            hint = f"the nearest name is `{meant}`, which moves the codes of the checkpoint"
            raise TypeNameError(error.message, hint=hint, meant=meant) from None
    if found[1] is None:
        return Keep()
    try:
        type_ = parse_type(found[1])
    except TypeNameError as error:
        raise TypeNameError(error.message, hint="write `keep` or `keep(q4_1)`", meant="keep") from None
    if type_.name != "q4_1":
        raise TypeNameError(
            f"`keep({type_})` has no meaning: codes are moved to the type that holds them exactly",
            hint="write `keep`, or `keep(q4_1)` for 4-bit codes with zero points",
            meant="keep",
        )
    return Keep(type_)


@dataclass(frozen=True, slots=True)
class Choice:
    """The right side of a rule: a chain of types, of which the first that fits is taken.

    Attributes
    ----------
    types
        At least one type or `Keep`, in the order of preference.
    forced
        Whether the chain ends in `!` and so holds for protected tensors too.
    text
        As written: `q6_K | q8_0`.
    locations
        Where each of `types` stands.
    """

    types: tuple[Wanted, ...]
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

    @property
    def location(self) -> Location:
        """The span of the chain."""
        return Location(self.file, self.line, self.column, len(self.text))


@dataclass(frozen=True, slots=True)
class Rule:
    """One line `PATTERN = TYPE`, or `@role NAME = TYPE`.

    Attributes
    ----------
    pattern
        As written: a regular expression of the portable subset (see `patterns`), searched for in GGUF
        names, which may hold ranges and `${NAME}`; or the words of an `@role` rule.
    file, line, column
        Where the pattern begins.
    comment
        What stands behind `#` on the line, or "".
    expanded
        The pattern with every `${NAME}` replaced; "" where it holds none.
    roles
        The roles of an `@role` rule (see `roles`); () where the pattern decides.
    blocks
        The blocks an `@role` rule is limited to, or None.
    whole
        Whether the pattern must match the whole name (`@match full`).
    """

    pattern: str
    choice: Choice
    file: str
    line: int
    column: int
    comment: str = ""
    expanded: str = ""
    roles: tuple[str, ...] = ()
    blocks: Range | None = None
    whole: bool = False

    def regex(self, n_blocks: int) -> str:
        """The pattern that RE2 searches for in the names of a model of `n_blocks` blocks.

        A rule on roles has none; its pattern here matches nothing.
        """
        if self.roles:
            return NOTHING
        plain = resolve(self.expanded or self.pattern, n_blocks)
        return f"^(?:{plain})$" if self.whole else plain

    @property
    def location(self) -> Location:
        """The span of the pattern."""
        return Location(self.file, self.line, self.column, len(self.pattern))

    @property
    def where(self) -> str:
        """Short form for tables: `hq4_k.recipe:14`."""
        return self.location.where


Quantity = Literal["bpw", "size", "uncovered", "fallbacks", "type", "fits", "tokens_per_second"]
Comparison = Literal["<=", ">=", "<", ">", "==", "!="]
Target = Literal["llama.cpp", "ik_llama.cpp"]


@dataclass(frozen=True, slots=True)
class Assertion:
    """A line `@assert QUANTITY COMPARISON VALUE`, or `@assert fits(...)`: what must hold for a model's plan.

    Attributes
    ----------
    quantity
        Bits per weight, bytes, tensors without a rule, tensors whose type the fallback table replaced,
        the type of one tensor, whether it fits a machine, or tokens per second there.
    of
        A role, `gpu` or `cpu` for bpw and size, "" for the whole model; the tensor's name for a type; the
        conditions of a machine.
    value
        The number (bytes for a size; 1 of `fits`), or the type.
    text, location
        What stands behind `@assert`, and where.
    conditions
        The machine; None but for `fits` and `tokens_per_second`.
    """

    quantity: Quantity
    of: str
    comparison: Comparison
    value: float | GgmlType
    text: str
    location: Location
    conditions: Conditions | None = None


@dataclass(frozen=True, slots=True)
class TypeTest:
    """A line `@test NAME -> TYPE`: the type a tensor must get; `locations` are the name's and the type's."""

    name: str
    type: GgmlType
    locations: tuple[Location, Location]


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
        Of `text` in UTF-8, so of the file's bytes, followed by the texts of what it includes and inherits;
        hexadecimal.
    rules
        In the order in which they decide: as they stand, or from the bottom up under `@order last`; the
        rules that `@base` inherits come after.
    default
        The choice of `@default` for tensors that no rule matches, or None: they keep their type.
    architecture
        What `@arch` says, as in GGUF's `general.architecture`, or "".
    order, match
        What `@order` and `@match` say of how the text is meant; `rules` have it worked in.
    target
        The engine that `@target` names, or "".
    base
        What `@base` says, or "".
    n_inherited
        How many of the rules it brought in, the last ones.
    assertions, tests
        What `@assert` and `@test` demand.
    unused
        Name and place of each `@let` of the file itself that nothing uses.
    parts
        File name and text of everything that `@include` and `@base` brought in.
    program
        RE2 instructions of all patterns together, as `patterns.check_pattern` counts them.
    """

    name: str
    file: str
    text: str
    sha256: str
    rules: tuple[Rule, ...]
    default: Choice | None = None
    architecture: str = ""
    order: Literal["first", "last"] = "first"
    match: Literal["search", "full"] = "search"
    target: Target | Literal[""] = ""
    base: str = ""
    n_inherited: int = 0
    assertions: tuple[Assertion, ...] = ()
    tests: tuple[TypeTest, ...] = ()
    unused: tuple[tuple[str, Location], ...] = ()
    parts: tuple[tuple[str, str], ...] = ()
    program: int = 0

    def source_line(self, line: int, file: str = "") -> str:
        """Line `line` (from 1) of the recipe, or of the part `file` of it, without its line end.

        "" where there is no such line, for `render`.
        """
        text = self.text if file in ("", self.file) else dict(self.parts).get(file, "")
        lines = split_lines(text)
        return lines[line - 1] if 0 < line <= len(lines) else ""


def split_lines(text: str) -> list[str]:
    """The lines of a recipe: LF or CRLF ends them, nothing else; a byte order mark is in none of them."""
    return [line.removesuffix("\r") for line in text.removeprefix(_BOM).split("\n")]
