"""Formatting: one layout for every recipe, with all comments and the same meaning.

- Blanks around `=`, `|`, `->` and behind directives are one space; types are spelt as ggml does (`q4_K`).
- The machine in an assertion is spelt in one way: `fits(vram=24G, ram=110G, ctx=32k)`, in this order.
- In each paragraph of rules the `=` stand below each other, as do the comments behind them. A pattern longer
  than `_WIDEST` takes no part in it.
- At most one empty line in a row, none at the start or the end; no blanks at line ends; LF.

Formatting twice gives what formatting once gave.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggplan.errors import TypeNameError
from ggplan.rules.conditions import SPEED, ConditionError, parse_conditions
from ggplan.rules.recipe import parse_wanted, split_lines

_WIDEST = 72
_WIDEST_CHOICE = 24
_BLANK = " \t"
_OF_MACHINE = re.compile(r"(fits|tokens_per_second)[ \t]*\(([^()]*)\)(.*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line in parts: a rule has a left and a right side; anything else is all `left`."""

    left: str
    right: str | None = None
    comment: str | None = None


def format_recipe(text: str) -> str:
    """The text in ggplan's layout. It need not be a valid recipe: lines that are none stay as they are.

    Returns
    -------
    str
        Text that parses to the same rules, with LF line ends and, unless it is empty, one at its end.
    """
    paragraphs: list[list[_Line]] = [[]]
    for raw in split_lines(text):
        line = _read(raw)
        if line.left or line.comment is not None:
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    blocks = ["\n".join(_laid_out(paragraph)) for paragraph in paragraphs if paragraph]
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _read(raw: str) -> _Line:
    body, hash_, comment = raw.partition("#")
    content = body.strip(_BLANK)
    note = comment.rstrip(_BLANK) if hash_ else None
    if not content:
        return _Line("", None, note)
    if content.startswith("@"):
        return _directive(content, note)
    left, equals, right = content.rpartition("=")
    if not equals:
        return _Line(content, None, note)
    return _Line(left.rstrip(_BLANK), _choice(right), note)


def _directive(content: str, note: str | None) -> _Line:
    word, rest = [*re.split(r"[ \t]+", content, maxsplit=1), ""][:2]
    if word == "@role" and "=" in rest:
        roles, _, right = rest.rpartition("=")
        names, brace, blocks = roles.strip(_BLANK).partition("{")
        left = ", ".join(name.strip(_BLANK) for name in names.split(","))
        return _Line(f"@role {left}" + (f" {brace}{blocks}" if brace else ""), _choice(right), note)
    if word == "@default" and rest:
        rest = _choice(rest)
    elif word == "@let" and "=" in rest:
        name, _, value = rest.partition("=")
        rest = f"{name.strip(_BLANK)} = {value.strip(_BLANK)}"
    elif word == "@test" and "->" in rest:
        name, _, type_ = rest.partition("->")
        rest = f"{name.strip(_BLANK)} -> {_type(type_)}"
    elif word == "@assert":
        rest = re.sub(r"[ \t]*(<=|>=|==|!=|<|>)[ \t]*", r" \1 ", _conditions(rest), count=1)
    return _Line(f"{word} {rest}".rstrip(_BLANK), None, note)


def _conditions(text: str) -> str:
    """The conditions of `fits` and `tokens_per_second` in one spelling, if they are some."""
    found = _OF_MACHINE.fullmatch(text)
    if found is None:
        return text
    try:
        conditions = parse_conditions(found[2], SPEED)
    except ConditionError:
        return text
    return f"{found[1]}({conditions}){found[3]}"


def _choice(text: str) -> str:
    text = text.strip(_BLANK)
    forced = text.endswith("!")
    chain = text.removesuffix("!").rstrip(_BLANK)
    return " | ".join(_type(piece) for piece in chain.split("|")) + "!" * forced


def _type(text: str) -> str:
    text = text.strip(_BLANK)
    if len(text) > 40:
        return text
    try:
        return str(parse_wanted(text))
    except TypeNameError:
        return text


def _laid_out(paragraph: list[_Line]) -> list[str]:
    rules = [line for line in paragraph if line.right is not None]
    width = max((len(r.left) for r in rules if len(r.left) <= _WIDEST), default=0)
    choices = [
        r.right
        for r in rules
        if r.right is not None and r.comment is not None and len(r.right) <= _WIDEST_CHOICE
    ]
    behind = max(map(len, choices), default=0)
    found = []
    for line in paragraph:
        text = line.left
        if line.right is not None:
            text = f"{line.left:<{width}} = {line.right:<{behind if line.comment is not None else 0}}"
        if line.comment is not None:
            text = f"{text}  #{line.comment}" if text else f"#{line.comment}"
        found.append(text.rstrip(_BLANK))
    return found
