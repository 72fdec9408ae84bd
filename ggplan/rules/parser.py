r"""The parser of recipes: text in, `Recipe` out, or every error of the text at once.

    recipe    = { line newline }
    line      = [ rule | directive ] [ "#" comment ]
    rule      = PATTERN "=" choice                 the last "=" of the line; blanks around it do not count
    choice    = TYPE { "|" TYPE } [ "!" ]
    directive = "@default" choice | "@recipe" "1" | "@name" TEXT | "@arch" NAME

Every line of a Thireus recipe (`^blk\.0\.ffn_down\.weight$=q8_0`) is such a line. `#` begins a comment
wherever it stands, for no tensor name holds one. A directive begins with `@`, as no tensor name does;
`_DIRECTIVES` is the one table of them.

The text is UTF-8 with LF or CRLF, with or without a byte order mark. A recipe may come from anywhere, so
its size, its rules, their patterns and the errors that are collected all have limits.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath

from ggplan.errors import TypeNameError
from ggplan.ggml_types import GgmlType, parse_type
from ggplan.rules.diagnostics import Diagnostic, invalid_recipe
from ggplan.rules.patterns import MAX_PROGRAM, PatternError, check_pattern
from ggplan.rules.recipe import Choice, Location, Recipe, Rule, split_lines
from ggplan.text import printable

MAX_BYTES = 1 << 20
MAX_RULES = 10_000
MAX_CHAIN = 16
MAX_ERRORS = 1_000

_BLANK = " \t"
_LONGEST_TYPE = 40  # characters; more is not worth a search for the nearest name
# Control characters but tab, LF, and the CR of CRLF; surrogates are not characters at all.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]|\r(?!\n|\\Z)")


def parse_recipe(text: str, name: str = "<recipe>") -> Recipe:
    """Parse the text of a recipe.

    Parameters
    ----------
    name
        What messages call it, usually the path of the file.

    Raises
    ------
    RecipeError
        With all errors rendered in its message and as values in `diagnostics`.
    """
    _check_text(text, name)
    lines = split_lines(text)
    draft = _Draft(name)
    for number, line in enumerate(lines, start=1):
        _parse_line(draft, number, line)
        if draft.closed:
            break
    if draft.errors:
        raise invalid_recipe(draft.errors, lines)
    return Recipe(
        name=draft.name or printable(PurePath(name).name.removesuffix(".recipe")),
        file=name,
        text=text,
        sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        rules=tuple(draft.rules),
        default=draft.default,
        architecture=draft.architecture,
    )


@dataclass(slots=True)
class _Draft:
    """What has been read so far."""

    file: str
    rules: list[Rule] = field(default_factory=list)
    errors: list[Diagnostic] = field(default_factory=list)
    default: Choice | None = None
    name: str = ""
    architecture: str = ""
    directives: dict[str, int] = field(default_factory=dict)  # the line of each
    program: int = 0
    n_rules: int = 0
    closed: bool = False  # a limit was met, the rest is not read

    def error(self, code: str, message: str, at: Location, help: str = "") -> None:
        """Note an error; after very many, the last."""
        self.errors.append(Diagnostic(code, "error", message, self.file, at.line, at.column, at.length, help))
        if len(self.errors) == MAX_ERRORS:
            self.stop(f"more than {MAX_ERRORS:,} errors; the rest of the file was not read", at)

    def stop(self, message: str, at: Location, help: str = "") -> None:
        """Note that a limit is exceeded and read no further."""
        if not self.closed:
            self.closed = True
            self.error("GP009", message, at, help)

    def span(self, line: int, offset: int, text: str) -> Location:
        """Where `text` stands that begins `offset` characters into a line; empty text is a point."""
        return Location(self.file, line, offset + 1, max(1, len(text)))


def _check_text(text: str, file: str) -> None:
    """Refuse what is too large or not plain text, with one error."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise invalid_recipe([too_large(file)])
    found = _UNPRINTABLE.search(text)
    if not found:
        return
    char, before = found[0], text[: found.start()]
    message, help = f"the recipe holds the control character U+{ord(char):04X}", "remove it"
    if char == "\0":
        message, help = "the recipe holds a NUL byte; this is no text file", ""
    elif char == "\r":
        help = "end lines with LF or CRLF"
    elif char >= "\ud800":
        message = f"the recipe holds the surrogate U+{ord(char):04X}, which is no character"
    line = before.count("\n") + 1
    column = len(before.removeprefix("\ufeff").rpartition("\n")[2]) + 1
    error = Diagnostic("GP010", "error", message, file, line, column, 1, help)
    raise invalid_recipe([error], split_lines(text))


def too_large(file: str) -> Diagnostic:
    """The error for a recipe of more than `MAX_BYTES`."""
    return Diagnostic("GP009", "error", f"the recipe is larger than {MAX_BYTES >> 20} MiB", file)


def _parse_line(draft: _Draft, line: int, text: str) -> None:
    body, _, comment = text.partition("#")
    content, offset = _strip(body, 0)
    if not content:
        return
    if content.startswith("@"):
        _parse_directive(draft, line, content, offset)
        return
    draft.n_rules += 1
    if draft.n_rules > MAX_RULES:
        at = draft.span(line, offset, content)
        draft.stop(f"more than {MAX_RULES:,} rules", at, "join patterns of one type with `|`")
        return
    left, equals, right = content.rpartition("=")
    if not equals:
        draft.error(
            "GP001", "the rule has no `=`", draft.span(line, offset, content), _help_no_equals(content)
        )
        return
    pattern = left.rstrip(_BLANK)
    pattern_at = draft.span(line, offset, pattern)
    if not pattern:
        at = draft.span(line, offset, "=")
        draft.error("GP007", "the pattern before `=` is missing", at, "`.*` matches every tensor")
    elif not _check_pattern(draft, pattern, pattern_at):
        pattern = ""
    choice = _parse_choice(draft, line, right, offset + len(left) + 1)
    if pattern and choice:
        rule = Rule(pattern, choice, draft.file, line, pattern_at.column, comment.strip())
        draft.rules.append(rule)


def _check_pattern(draft: _Draft, pattern: str, at: Location) -> bool:
    try:
        draft.program += check_pattern(pattern)
    except PatternError as error:
        where = Location(at.file, at.line, at.column + error.start, max(1, error.length))
        draft.error(error.code, error.message, where, error.help)
        return False
    if draft.program > MAX_PROGRAM:
        draft.stop(
            "the patterns so far are too large together", at, "write fewer repetitions such as `{1000}`"
        )
    return True


def _parse_choice(draft: _Draft, line: int, text: str, offset: int) -> Choice | None:
    """A chain of types; None after an error."""
    whole, start = _strip(text, offset)
    chain = whole.removesuffix("!").rstrip(_BLANK)
    if not chain:
        draft.error(
            "GP007", "the type is missing", draft.span(line, start, whole), "write one, such as `q8_0`"
        )
        return None
    pieces = chain.split("|")
    if len(pieces) > MAX_CHAIN:
        draft.error("GP009", f"a chain may hold {MAX_CHAIN} types", draft.span(line, start, chain))
        return None
    types, locations = [], []
    at = start
    for piece in pieces:
        name, name_at = _strip(piece, at)
        at += len(piece) + 1
        location = draft.span(line, name_at, name)
        found = _parse_type(draft, name, location)
        if found is not None:
            types.append(found)
            locations.append(location)
    if len(types) < len(pieces):
        return None
    return Choice(tuple(types), whole.endswith("!"), whole, tuple(locations))


def _parse_type(draft: _Draft, name: str, at: Location) -> GgmlType | None:
    if not name:
        draft.error("GP007", "a type is missing in the chain", at, "write types between `|`: `q6_K | q8_0`")
    elif name.endswith("!"):
        draft.error(
            "GP002",
            f"`!` after `{name[:-1]}` is not at the end",
            at,
            "`!` forces a whole chain: `q8_0 | f16!`",
        )
    elif len(name) > _LONGEST_TYPE:
        draft.error("GP002", "unknown tensor type", at, "`ggplan types` lists all types")
    else:
        try:
            return parse_type(name)
        except TypeNameError as error:
            draft.error("GP002", error.message, at, error.hint)
    return None


def _parse_directive(draft: _Draft, line: int, content: str, offset: int) -> None:
    word = re.split(r"[ \t]", content, maxsplit=1)[0]
    at = draft.span(line, offset, word)
    read = _DIRECTIVES.get(word)
    if read is None:
        near = difflib.get_close_matches(word.lower(), _DIRECTIVES, n=1) if len(word) < 40 else []
        known = ", ".join(f"`{known}`" for known in _DIRECTIVES)
        help = f"the nearest is `{near[0]}`" if near else f"the directives are {known}"
        draft.error("GP006", f"unknown directive `{word[:40]}`", at, help)
        return
    if word in draft.directives:
        draft.error(
            "GP011", f"`{word}` stands on line {draft.directives[word]} already", at, "keep one of them"
        )
        return
    draft.directives[word] = line
    read(draft, line, *_strip(content[len(word) :], offset + len(word)))


def _read_default(draft: _Draft, line: int, text: str, offset: int) -> None:
    draft.default = _parse_choice(draft, line, text, offset)


def _read_version(draft: _Draft, line: int, text: str, offset: int) -> None:
    if text != "1":
        at = draft.span(line, offset, text)
        draft.error("GP011", "this ggplan reads version 1 of the language", at, "write `@recipe 1`")


def _read_name(draft: _Draft, line: int, text: str, offset: int) -> None:
    if not text:
        at = draft.span(line, offset, text)
        draft.error("GP011", "`@name` needs a name", at, "write one, such as `@name HQ4_K`")
    draft.name = text


def _read_architecture(draft: _Draft, line: int, text: str, offset: int) -> None:
    if not re.fullmatch(r"[\w.-]+", text, re.ASCII):
        at = draft.span(line, offset, text)
        help = "write GGUF's `general.architecture`, such as `@arch glm4moe`"
        draft.error("GP011", "`@arch` needs the name of one architecture", at, help)
    draft.architecture = text


# Each reads what stands behind its word: (draft, line number, stripped text, offset of the text in the line).
_DIRECTIVES: dict[str, Callable[[_Draft, int, str, int], None]] = {
    "@default": _read_default,
    "@recipe": _read_version,
    "@name": _read_name,
    "@arch": _read_architecture,
}


def _strip(text: str, offset: int) -> tuple[str, int]:
    """`text` without blanks around it, and the offset at which what is left begins."""
    left = text.lstrip(_BLANK)
    return left.rstrip(_BLANK), offset + len(text) - len(left)


def _help_no_equals(content: str) -> str:
    """What to write; where the line ends in a type, the line mended."""
    words = content.split()
    if len(words) == 2 and len(content) < 100 and len(words[1]) <= _LONGEST_TYPE:
        try:
            parse_type(words[1])
        except TypeNameError:
            pass
        else:
            return f"write `{words[0]} = {words[1]}`"
    return "a rule is `PATTERN = TYPE`; a comment begins with `#`"
