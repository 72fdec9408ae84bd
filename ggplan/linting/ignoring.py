r"""Which findings are told: codes that are chosen for a run, and comments in the recipe that silence one.

    attn_q\.weight = f32   # ggplan: ignore GP211 this model needs it

    # ggplan: ignore GP103, GP105
    ffn_gate = q4_K

    # ggplan: ignore-file GP109

A comment behind a rule is about its line, one on a line of its own about the next line that is no comment,
`ignore-file` about the whole file. It names each code in full: a comment that silenced everything would
silence what nobody has thought of. What stands behind the codes is a reason, and is not read.

What keeps a recipe from being read (GP001 to GP016) cannot be silenced.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ggplan.errors import RecipeError
from ggplan.rules import Location
from ggplan.rules.recipe import split_lines

_COMMENT = re.compile(r"(?<!#)#+[ \t]*ggplan[ \t]*:[ \t]*(?P<word>[A-Za-z][\w-]*)")
# What is written as if it were one: in capitals, or without the colon.
_UNREAD = re.compile(
    r"#[ \t]*(?P<said>ggplan[ \t]*:?[ \t]*(?P<word>ignore(?:-file)?))[ \t:]+(?P<codes>gp-?\d)", re.IGNORECASE
)
_CODE_FIRST = re.compile(r"[ \t:,;=(\[]*gp-?\w*\d", re.IGNORECASE)
_WORD = re.compile(r"[^\s,;\[\]()]+")
_WORDS = ("ignore", "ignore-file")
_LONGEST_WORD = 40  # of a misspelt one
_MOST_ASKED = 16  # places of one line that may be misspelt
# What other linters call it. A comment that begins with another word is prose.
_SYNONYMS = {"noqa": "ignore", "disable": "ignore", "allow": "ignore", "skip": "ignore", "expect": "ignore"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Codes, or the first letters of codes, that are told (all where there are none) and that are not.

    Of two that fit a code the longer one decides, as in ruff: `GP1` but not `GP103`. Of two alike, the one
    that ignores.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def covers(self, code: str) -> bool:
        """Whether findings of this code are told."""
        chosen = max((len(s) for s in self.select if code.startswith(s)), default=-1 if self.select else 0)
        refused = max((len(s) for s in self.ignore if code.startswith(s)), default=-1)
        return chosen > refused


EVERYTHING = Selection()


def selection(select: Iterable[str], ignore: Iterable[str], known: Iterable[str]) -> Selection:
    """A selection as one writes it: `GP1`, `gp103,GP2`, `ALL`.

    Raises
    ------
    RecipeError
        If no known code begins so.
    """
    codes = tuple(known)
    return Selection(tuple(_prefixes(select, codes)), tuple(_prefixes(ignore, codes)))


def _prefixes(texts: Iterable[str], known: tuple[str, ...]) -> Iterator[str]:
    for text in texts:
        for word in re.split(r"[,\s]+", text.strip().upper()):
            if word and word != "ALL" and not any(code.startswith(word) for code in known):
                raise RecipeError(f"no code begins with {word!r}", hint=_near_in_words(word, known))
            if word:
                yield "GP" if word == "ALL" else word


def _near_in_words(word: str, known: tuple[str, ...]) -> str:
    near = nearest_code(word, known)
    return f"the nearest is {near}" if near else "codes are GP and three digits; docs/diagnostics.md has all"


def nearest_code(text: str, known: Iterable[str]) -> str:
    """The code that was probably meant, or ""."""
    plain = text.upper().replace("O", "0").replace("I", "1").replace("L", "1").replace("-", "")
    found = difflib.get_close_matches(plain[:20], list(known), n=1, cutoff=0.8)
    return found[0] if found else ""


@dataclass(frozen=True, slots=True)
class IgnoreComment:
    """A comment that silences findings.

    Attributes
    ----------
    at
        The comment, from its `#`.
    word
        What it begins with: `ignore`, `ignore-file`, or something like these, which is an error.
    codes
        Each word that stands for a code, and where.
    line
        The line it is about; 0 for the whole file, -1 where no rule follows it.
    is_alone
        Whether it has a line of its own.
    after
        The column behind what stands before it, blanks left out.
    """

    at: Location
    word: Location
    word_text: str
    codes: tuple[tuple[str, Location], ...]
    line: int
    is_alone: bool
    after: int

    @property
    def is_valid(self) -> bool:
        """Whether it is one of the two comments that there are."""
        return self.word_text in _WORDS

    @property
    def meant(self) -> str:
        """The word that was meant, where it is none."""
        near = difflib.get_close_matches(self.word_text.lower(), _WORDS, n=1, cutoff=0.6)
        return near[0] if near else _SYNONYMS.get(self.word_text.lower(), "ignore")


def ignore_comments(texts: Iterable[tuple[str, str]]) -> tuple[IgnoreComment, ...]:
    """All such comments of files, each given by name and text."""
    return tuple(comment for file, text in texts for comment in _of_file(file, text))


def unread_comments(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[Location, str]]:
    """Where a comment is nearly one of these, as `# ggplan ignore GP102`, and how it begins rightly."""
    for file, text in texts:
        for number, line in enumerate(split_lines(text) if "gplan" in text.lower() else (), start=1):
            found = _UNREAD.search(line) if _comment_of(line) is None else None
            if found is not None and line.find("#") == found.start():
                at = Location(file, number, found.start("said") + 1, len(found["said"]))
                yield at, f"ggplan: {found['word'].lower()}"


def _of_file(file: str, text: str) -> Iterator[IgnoreComment]:
    if "ggplan" not in text:
        return
    lines = split_lines(text)
    following = _following(lines)
    for number, line in enumerate(lines, start=1):
        found = _comment_of(line)
        if found is None:
            continue
        start, word = found.start(), found["word"]
        target = 0 if word.lower() == "ignore-file" else number
        if target and not line.partition("#")[0].strip():
            target = following[number - 1]
        is_alone = not line[:start].strip()
        yield IgnoreComment(
            Location(file, number, start + 1, len(line) - start),
            Location(file, number, found.start("word") + 1, len(word)),
            word,
            tuple(_codes(file, number, line, found.end())),
            target,
            is_alone,
            len(line[:start].rstrip()) + 1,
        )


def _comment_of(line: str) -> re.Match[str] | None:
    """The part of a line's comment that silences something. It begins the comment or stands behind a remark;
    in quotes or within a word it is only talked about.
    """
    first = at = line.find("#")
    end = len(line.rstrip())
    quotes = backticks = asked = 0  # those of the remark, counted once however many places there are
    for found in _COMMENT.finditer(line):
        start = found.start()
        quotes += line.count('"', at, start)
        backticks += line.count("`", at, start)
        at = start
        if start != first and (line[start - 1] not in " \t" or quotes % 2 or backticks % 2):
            continue
        if found["word"] in _WORDS:
            return found
        asked += 1
        if asked <= _MOST_ASKED and _is_meant(line, found, end):
            return found
    return None


def _is_meant(line: str, found: re.Match[str], end: int) -> bool:
    """Whether a comment `ggplan: WORD` is to silence something, though the word is misspelt. Such a word
    with others behind it that are no codes is prose: `ggplan: ignoring this is fine`.

    Parameters
    ----------
    end
        Where the line ends, without blanks.
    """
    word = found["word"].lower()
    if len(word) > _LONGEST_WORD:
        return False
    if found.end() < end and not _CODE_FIRST.match(line, found.end()):
        return False
    return bool(difflib.get_close_matches(word, _WORDS, n=1, cutoff=0.7)) or word in _SYNONYMS


def _codes(file: str, number: int, line: str, start: int) -> Iterator[tuple[str, Location]]:
    """The words behind `ignore` that stand for codes: the first, and what looks like a code."""
    is_first = True
    for found in _WORD.finditer(line, start):
        text = found[0].lstrip(":").rstrip(".:")
        if not text:
            continue
        if not is_first and not re.match(r"gp-?\w*\d", text, re.IGNORECASE):
            return
        if is_first and not re.match(r"[A-Za-z](?:[A-Za-z]*-)?\w*\d|gp", text, re.IGNORECASE):
            return
        is_first = False
        yield text, Location(file, number, line.index(text, found.start()) + 1, len(text))


def _following(lines: list[str]) -> list[int]:
    """For each line the number of the next that is no comment, or -1 where that is empty."""
    found, following = -1, []
    for number in range(len(lines), 0, -1):
        following.append(found)
        content = lines[number - 1].strip()
        if not content.startswith("#"):
            found = number if content else -1
    return following[::-1]
