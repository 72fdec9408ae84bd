"""What a forum, a chat, a word processor or a shell script makes of a line, and the line as it was meant.

No tensor name holds a blank, a quote or a character beyond ASCII, and no recipe a fence of a code block. So
what is taken away here can never have been meant, and what is left is what the author wrote.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from ggplan.errors import TypeNameError
from ggplan.rules.recipe import parse_wanted

_BLANK = " \t"
# Most recipes need none of these patterns; `re` compiles each when it is first used.
_INVISIBLE = "[\u00ad\u200b-\u200f\u2060\ufeff]"
_SPACES = "[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_DASHES = "[\u2010-\u2015\u2212]"
_QUOTES = "\"'`\u00b4\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"
_LIST_MARK = r"^(?:[-*+>\u2022]|\d{1,3}[.)])[ \t]+(?=\S.*=)"
_OPTION = r"^--?(?:tensor-type|custom-q)(?:[ \t]+(?![ \t])|=)(?=.*=)"
_SIGNS = ("===", "==", ":=", "=>", "->")
_ARROW = "[\u2192\u21d2]"
_END = r"(?<==)([^,;=]*)[,;]+$"
_FENCE = r"(```|~~~)[\w-]*"
_SCRIPT = r"""(?:export[ \t]+)?\w+=["']|["'\\]|EOF|\$\w+|#!.*"""
_SUSPICIOUS = re.compile(r"""^(?:[-*+>~;/$\\]|\d+[.)]|EOF|#!)|["'`]|[,;]$|==|=>|:=|->""")
_REMARK = r"(?://|;|--[ \t]).*"


def as_meant(content: str) -> tuple[str, str] | None:
    """A line without its comment as it was meant, and what it holds instead; None where nothing is wrong.

    "" stands for a line that is no rule at all, such as the fence of a code block.
    """
    if content.isascii() and not _SUSPICIOUS.search(content):
        return None
    for what, pattern in (
        ("the fence of a code block", _FENCE),
        ("a piece of a shell script, which `ggplan rules import` reads", _SCRIPT),
    ):
        if re.fullmatch(pattern, content):
            return "", what
    if re.fullmatch(_REMARK, content) and not _ends_in_type(content):
        return f"# {content.lstrip('/;-').strip(_BLANK)}".rstrip(), "a comment, which begins with `#` here"
    word = re.split(r"\s+", content, maxsplit=1)[0]
    steps = _IN_DIRECTIVES if word.startswith("@") and word != "@role" else _IN_RULES
    if word in ("@name", "@include", "@base"):
        steps = ()
    text, found = content, []
    for what, step in steps:
        if (new := step(text).strip(_BLANK)) != text:
            text = new
            found.append(what)
    # What is still no ASCII is shown at its place, as part of a pattern.
    return (text, " and ".join(found)) if found and text.isascii() else None


def _plain(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _without_quotes(text: str) -> str:
    """The line without quotes around the whole of it, or around a side of its last `=`."""
    whole = _inner(text)
    left, equals, right = whole.rpartition("=")
    sides = _inner(left.rstrip(_BLANK)), _inner(right.strip(_BLANK))
    if not equals or sides == (left.rstrip(_BLANK), right.strip(_BLANK)):
        return whole
    return f"{sides[0]} = {sides[1]}"


def _without_quotes_behind_the_word(text: str) -> str:
    word, _, value = text.partition(" ")
    bare = _inner(value.strip(_BLANK))
    return text if bare == value.strip(_BLANK) else f"{word} {bare}"


def _inner(text: str) -> str:
    """A text without the quotes around it, if it begins and ends in one and holds none inside."""
    is_quoted = len(text) > 2 and text[0] in _QUOTES and text[-1] in _QUOTES
    return text[1:-1].strip(_BLANK) if is_quoted and not set(text[1:-1]) & set(_QUOTES) else text


def _with_equals(text: str) -> str:
    """The line with `=` for the sign before the type; an arrow is one only behind the last `=` and `>`."""
    end = max(text.rfind("="), text.rfind(">")) + 1
    sign = next((sign for sign in _SIGNS if text.endswith(sign, 0, end)), "")
    start = end - len(sign)
    if not sign and (arrow := re.compile(_ARROW).search(text, end)):
        start, end = arrow.span()
    right = text[end:].lstrip(_BLANK)
    if start == end or not right or not _ends_in_type(text):
        return text
    return f"{text[:start].rstrip(_BLANK)} = {right}"


def _ends_in_type(text: str) -> bool:
    """Whether the last word of a line is a type."""
    words = re.split(r"[\s=>|\u2192\u21d2]+", text.rstrip("!,; \t"))
    try:
        parse_wanted(words[-1].strip(_QUOTES)[:40])
    except TypeNameError:
        return False
    return True


_Step = tuple[str, Callable[[str], str]]
_IN_DIRECTIVES: tuple[_Step, ...] = (
    ("characters that cannot be seen", lambda text: re.sub(_INVISIBLE, "", text)),
    ("blanks that do not break", lambda text: re.sub(_SPACES, " ", text)),
    ("characters that only look like ASCII", _plain),
    ("quotes", _without_quotes_behind_the_word),
)
_IN_RULES: tuple[_Step, ...] = (
    *_IN_DIRECTIVES[:2],
    ("dashes that are no minus sign", lambda text: re.sub(_DASHES, "-", text)),
    _IN_DIRECTIVES[2],
    ("the mark of a list", lambda text: re.sub(_LIST_MARK, "", text)),
    ("an option of llama-quantize", lambda text: re.sub(_OPTION, "", text)),
    ("a mark at its end", lambda text: re.sub(_END, r"\1", text)),
    ("quotes", _without_quotes),
    ("another sign than `=`", _with_equals),
)
