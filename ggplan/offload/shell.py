"""Command lines as a POSIX shell splits them: words with their line, quotes and backslashes resolved.

A line pasted from a page may be broken with a backslash (a caret in Windows' shell, a backtick in PowerShell)
or simply broken; a word that begins with `#` opens a comment. What a pipe, `;` or `&&` starts is another
command, and a redirection is no argument; inside a word these characters stay, for a pattern that was pasted
without its quotes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggplan.errors import CommandError

_CONTINUATION = re.compile(r"(?<=\s)[\\^`]\r?\n")
_BROKEN = re.compile(r"(?<=\s)([\\^`])[ \t]+\r?\n")
# In double quotes a backslash stays one before all other characters.
_ESCAPED = re.compile(r'\\([$`"\\\n])')
_REDIRECTION = re.compile(r"(?:\d*|&)(?:>>?|<)(?:&\d|\|)?")


@dataclass(frozen=True, slots=True)
class Word:
    """One argument.

    Attributes
    ----------
    text
        Without quotes.
    line
        Number of the line where it begins, from 1.
    """

    text: str
    line: int


def split_words(text: str) -> list[Word]:
    """The words of the first command in `text`.

    Raises
    ------
    CommandError
        If a quote is not closed.
    """
    if broken := _BROKEN.search(text):
        raise CommandError(
            f"line {text.count(chr(10), 0, broken.start()) + 1} of the command ends in `{broken[1]}` and a "
            "blank, which continues nothing: the shell takes the next line for another command",
            hint=f"end the line with `{broken[1]}` itself",
        )
    text = _CONTINUATION.sub(lambda m: " \n", text)
    words: list[Word] = []
    at, line = 0, 1
    while at < len(text):
        character = text[at]
        if character.isspace():
            line += character == "\n"
            at += 1
        elif character == "#":
            at = _end(text, at)
        elif character in "|;" or (character == "&" and not text.startswith("&>", at)):
            break
        elif redirection := _REDIRECTION.match(text, at):
            at = redirection.end()
            if not redirection[0][-1].isdigit():  # a file's name follows
                while at < len(text) and text[at] in " \t":
                    at += 1
                _, at, line = _word(text, at, line)
        else:
            begins = line
            found, at, line = _word(text, at, line)
            ends = text[at - 1] == ";" and found.endswith(";")
            words.append(Word(found.removesuffix(";") if ends else found, begins))
            if ends:
                break
    return words


def _end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found


def _word(text: str, at: int, line: int) -> tuple[str, int, int]:
    """The word that begins at `at`, where it ends, and the line there."""
    parts: list[str] = []
    while at < len(text) and not text[at].isspace():
        character = text[at]
        if character in "'\"":
            end = _closing(text, at, line)
            inside = text[at + 1 : end]
            line += inside.count("\n")
            parts.append(inside if character == "'" else _ESCAPED.sub(_unescaped, inside))
            at = end + 1
        elif character == "\\":
            line += text[at + 1 : at + 2] == "\n"
            parts.append(text[at + 1 : at + 2].strip("\n"))
            at = min(at + 2, len(text))
        else:
            parts.append(character)
            at += 1
    return "".join(parts), at, line


def _closing(text: str, opened: int, line: int) -> int:
    """Where the quote that opens at `opened` closes."""
    quote, at = text[opened], opened + 1
    while at < len(text) and text[at] != quote:
        at += 2 if quote == '"' and text[at] == "\\" else 1
    if at >= len(text):
        raise CommandError(f"the {quote} on line {line} of the command is not closed")
    return at


def _unescaped(escape: re.Match[str]) -> str:
    return "" if escape[1] == "\n" else escape[1]
