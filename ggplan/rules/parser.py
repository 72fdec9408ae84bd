r"""The parser of recipes: text in, `Recipe` out, or every error of the text at once.

    recipe    = { line newline }
    line      = [ rule | directive ] [ "#" comment ]
    rule      = PATTERN "=" choice                 the last "=" of the line; blanks around it do not count
    choice    = wanted { "|" wanted } [ "!" ]
    wanted    = TYPE | "keep" | "keep(q4_1)"
    directive = see `directives`

Every line of a Thireus recipe (`^blk\.0\.ffn_down\.weight$=q8_0`) is such a line. `#` begins a comment
wherever it stands, for no tensor name holds one. A directive begins with `@`, as no tensor name does.
PATTERN may hold ranges (see `ranges`) and PATTERN and choice `${NAME}`, which stands for the text of the
`@let NAME = text` above: replaced once, as text, before anything else is read.

The text is UTF-8 with LF or CRLF, with or without a byte order mark. A recipe may come from anywhere, so
its size, its rules, their patterns and the errors that are collected all have limits.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import Literal, cast

from ggplan.errors import TypeNameError
from ggplan.rules import draft as drafts
from ggplan.rules.choices import LONGEST_TYPE, parse_choice
from ggplan.rules.diagnostics import Diagnostic, Edit, Fix, InvalidRecipeError, invalid_recipe
from ggplan.rules.directives import read_directive
from ggplan.rules.draft import Draft, Follow, FollowError, Mapped, deleting, replacing
from ggplan.rules.pasting import as_meant
from ggplan.rules.patterns import MAX_PROGRAM, PatternError, check_pattern
from ggplan.rules.recipe import Location, Recipe, Rule, Target, parse_wanted, split_lines
from ggplan.rules.repairs import repaired_patterns
from ggplan.text import printable

MAX_BYTES = 1 << 20  # of a recipe and all it draws in
MAX_RULES = 10_000
MAX_FILES = 64
MAX_DEPTH = 8

_BLANK = " \t"
# Control characters but tab, LF, and the CR of CRLF; surrogates are not characters at all.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]|\r(?!\n|\\Z)")


def parse_recipe(text: str, name: str = "<recipe>", *, follow: Follow | None = None) -> Recipe:
    """Parse the text of a recipe.

    Parameters
    ----------
    name
        What messages call it, usually the path of the file.
    follow
        Finds the files of `@include` and `@base`; without it both are errors. `load_recipe` gives one.

    Raises
    ------
    RecipeError
        With all errors rendered in its message and as values in `diagnostics`.
    """
    return _parse(text, name, follow, ())


def _parse(text: str, name: str, follow: Follow | None, heirs: tuple[str, ...]) -> Recipe:
    """Parse a recipe that the files `heirs` inherit from."""
    _check_text(text, name)
    draft = Draft(name, _read_included, follow)
    lines = _read_lines(draft, text)
    base = _parse_base(draft, heirs) if draft.base and draft.base_at else None
    if draft.errors:
        parts = {file: split_lines(part) for file, part in draft.parts.items()}
        raise invalid_recipe(draft.errors, lines, parts)
    rules = draft.rules if draft.order == "first" else draft.rules[::-1]
    if draft.match == "full":
        rules = [drafts.whole(rule) for rule in rules]
    parts_read = tuple(draft.parts.items())
    digest = hashlib.sha256(text.encode("utf-8"))
    for _, part in parts_read:
        digest.update(part.encode("utf-8"))
    recipe = Recipe(
        name=draft.name or printable(PurePath(name).name.removesuffix(".recipe")),
        file=name,
        text=text,
        sha256=digest.hexdigest(),
        rules=tuple(rules),
        default=draft.default,
        architecture=draft.architecture,
        order=cast(Literal["first", "last"], draft.order),
        match=cast(Literal["search", "full"], draft.match),
        target=cast(Target | Literal[""], draft.target),
        base=draft.base,
        assertions=tuple(draft.assertions),
        tests=tuple(draft.tests),
        unused=tuple(draft.unused.items()),
        parts=parts_read,
        program=draft.program,
    )
    if base is None:
        return recipe
    return replace(
        recipe,
        rules=recipe.rules + base.rules,
        n_inherited=len(base.rules),
        program=recipe.program + base.program,
        default=recipe.default or base.default,
        architecture=recipe.architecture or base.architecture,
        target=recipe.target or base.target,
    )


def _parse_base(draft: Draft, heirs: tuple[str, ...]) -> Recipe | None:
    """The recipe that `@base` names; None after an error."""
    at, root = draft.base_at, draft.file
    assert at is not None
    found = _follow(draft, draft.base, at, (*heirs, root), "inherits")
    if found is None:
        return None
    file, text = found
    try:
        base = _parse(text, file, draft.follow, (*heirs, root))
    except InvalidRecipeError as error:
        draft.parts[file] = text
        draft.errors += error.diagnostics
        return None
    draft.parts[file] = text
    draft.parts.update(dict(base.parts))
    if draft.n_rules + len(base.rules) > MAX_RULES:
        draft.stop(f"more than {MAX_RULES:,} rules with those of `{draft.base}`", at)
    return base


def _read_included(draft: Draft, target: str, at: Location) -> None:
    """Read the lines of an included file into the draft, in the place of the `@include`."""
    found = _follow(draft, target, at, (*draft.stack, draft.file), "includes")
    if found is None:
        return
    file, text = found
    try:
        _check_text(text, file)
    except InvalidRecipeError as error:
        draft.errors += error.diagnostics
        return
    draft.parts[file] = text
    outer, draft.stack, draft.file = draft.file, (*draft.stack, draft.file), file
    _read_lines(draft, text)
    draft.stack, draft.file = draft.stack[:-1], outer


def _follow(
    draft: Draft, target: str, at: Location, stack: tuple[str, ...], verb: str
) -> tuple[str, str] | None:
    """The file that a directive names, and its text; None after an error."""
    try:
        if draft.follow is None:
            raise FollowError("a recipe without a file cannot draw in others", "save it as a file")
        file, text = draft.follow(target, draft.file)
    except FollowError as error:
        fix = replacing(at, error.instead, safe=False) if error.instead else None
        draft.error("GP014", error.message, at, error.help, fix or deleting(at.file, at.line, safe=False))
        return None
    files = [os.path.normpath(f) for f in stack]
    if os.path.normpath(file) in files:
        stack = stack[files.index(os.path.normpath(file)) :]
        way = " → ".join(f"`{printable(PurePath(f).name)}`" for f in (*stack, file))
        fix = deleting(at.file, at.line, safe=False)
        draft.error("GP014", f"the recipe {verb} itself: {way}", at, "delete this line", fix)
    elif len(stack) > MAX_DEPTH:
        draft.error("GP014", f"files are drawn in more than {MAX_DEPTH} deep", at)
    elif len(draft.parts) >= MAX_FILES:
        draft.stop(f"more than {MAX_FILES} files are drawn in", at)
    elif sum(map(len, draft.parts.values())) + len(text) > MAX_BYTES:
        draft.stop(f"the recipe and all it draws in are larger than {MAX_BYTES >> 20} MiB", at)
    else:
        return file, text
    return None


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
        message, help = "the recipe holds a CR without LF, an old Mac's line end", "end lines with LF or CRLF"
    elif char >= "\ud800":
        message = f"the recipe holds the surrogate U+{ord(char):04X}, which is no character"
    line = before.count("\n") + 1
    column = len(before.removeprefix("\ufeff").rpartition("\n")[2]) + 1
    fix = None
    if char == "\r":
        fix = Fix(tuple(_lone_returns(text, file)), safe=True)
    elif help == "remove it":
        fix = Fix((Edit(file, line, column, 1, ""),), safe=True)
    error = Diagnostic("GP010", "error", message, file, line, column, 1, help, fix)
    raise invalid_recipe([error], split_lines(text))


def _lone_returns(text: str, file: str) -> Iterator[Edit]:
    """Edits that put LF for each CR which ends a line alone."""
    for line, content in enumerate(split_lines(text), start=1):
        for column, char in enumerate(content, start=1):
            if char == "\r":
                yield Edit(file, line, column, 1, "\n")


def too_large(file: str) -> Diagnostic:
    """The error for a recipe of more than `MAX_BYTES`."""
    return Diagnostic("GP009", "error", f"the recipe is larger than {MAX_BYTES >> 20} MiB", file)


def _read_lines(draft: Draft, text: str) -> list[str]:
    """Read every line of a file into the draft, and return them."""
    lines = split_lines(text)
    for number, line in enumerate(lines, start=1):
        _read_line(draft, number, line)
        if draft.closed:
            break
    return lines


def _read_line(draft: Draft, line: int, text: str) -> None:
    body, _, comment = text.partition("#")
    content = Mapped.plain(body, 0).strip()
    if not content.text:
        return
    if (meant := as_meant(content.text)) is not None:
        _not_as_meant(draft, line, content, *meant)
        return
    if content.text.startswith("@") and not content.text.startswith("@role"):
        read_directive(draft, line, content, comment.strip())
        return
    draft.n_rules += 1
    if draft.n_rules > MAX_RULES:
        at = draft.span(line, content)
        draft.stop(f"more than {MAX_RULES:,} rules", at, "join patterns of one type with `|`")
    elif content.text.startswith("@"):
        read_directive(draft, line, content, comment.strip())
    else:
        _read_rule(draft, line, content, comment.strip())


def _not_as_meant(draft: Draft, line: int, content: Mapped, meant: str, what: str) -> None:
    """The error for a line that a forum, a word processor or a shell has changed."""
    at = draft.span(line, content)
    if meant:
        message, help, fix = f"the line holds {what}", f"write `{meant}`", replacing(at, meant, safe=True)
        if meant.startswith("#"):
            message = f"the line is {what}"
    else:
        message, help, fix = f"the line is {what}", "delete it", deleting(at.file, at.line, safe=True)
    draft.error("GP008", message, at, help, fix)


def _read_rule(draft: Draft, line: int, content: Mapped, comment: str) -> None:
    equals = content.text.rfind("=")
    if equals < 0:
        _no_equals(draft, line, content)
        return
    pattern = content[:equals].strip()
    expanded: Mapped | None = None
    if not pattern.text:
        at = draft.span(line, content[:1])
        fix = Fix((Edit(at.file, at.line, at.column, 0, ".* "),), safe=False)
        draft.error("GP007", "the pattern before `=` is missing", at, "`.*` matches every tensor", fix)
    else:
        expanded = draft.expand(line, pattern)
        if expanded is not None and not _check_pattern(draft, line, pattern, expanded):
            expanded = None
    choice = parse_choice(draft, line, content[equals + 1 :])
    if expanded is not None and choice:
        replaced = expanded.text if expanded.text != pattern.text else ""
        column = pattern.span()[0] + 1
        draft.rules.append(Rule(pattern.text, choice, draft.file, line, column, comment, replaced))


def _check_pattern(draft: Draft, line: int, pattern: Mapped, expanded: Mapped) -> bool:
    try:
        draft.program += check_pattern(expanded.text)
    except PatternError as error:
        at = draft.span(line, expanded[error.start : error.start + max(1, error.length)])
        candidates = repaired_patterns(expanded.text, error) if expanded.text == pattern.text else []
        where = draft.span(line, pattern)
        fixes = [replacing(where, repair.pattern, safe=repair.certain) for repair in candidates]
        draft.error(error.code, error.message, at, error.help, *fixes)
        return False
    if draft.program > MAX_PROGRAM:
        at = draft.span(line, pattern)
        draft.stop(
            "the patterns so far are too large together", at, "write fewer repetitions such as `{1000}`"
        )
    return True


def _no_equals(draft: Draft, line: int, content: Mapped) -> None:
    """A line that is no rule; where it ends in a type, the line mended."""
    help, fix = "a rule is `PATTERN = TYPE`; a comment begins with `#`", None
    at = draft.span(line, content)
    found = None
    if len(content.text) < 200:  # the blanks of a long one may be shared out in very many ways
        found = re.fullmatch(r"([^ \t:]+?)[ \t]*(?:[ \t:]|->)[ \t]*([^ \t:>]+)", content.text)
    if found and len(found[2]) <= LONGEST_TYPE:
        try:
            parse_wanted(found[2].split("|")[0].rstrip("!"))
        except TypeNameError:
            pass
        else:
            help = f"write `{found[1]} = {found[2]}`"
            fix = replacing(at, f"{found[1]} = {found[2]}", safe=True)
    if fix is None:
        fix = Fix((Edit(at.file, line, at.column, 0, "# "),), safe=False)
    draft.error("GP001", "the rule has no `=`", at, help, fix)
