r"""Command lines of llama-quantize as people paste them: scripts, batch files, cards, threads.

    > ```
    > $ CUDA_VISIBLE_DEVICES=0 ./llama-quantize --tensor-type attn_v=q8_0 \
    >     in.gguf out.gguf Q4_K_M
    > ```

    "C:\Program Files\llama.cpp\llama-quantize.exe" ^
      --tensor-type attn_v=q8_0 D:\in.gguf D:\out.gguf Q4_K_M

A command is split into words as its own shell does it, which the character that continues its lines names:
`\` is a POSIX shell's, `^` is cmd's, a backtick is PowerShell's. Where no line continues, `.exe` and paths
with a drive letter mean cmd. Prompts, assignments and other programs before the name are passed over. Lines
that are comments (`#`, `REM`, `::`) or are printed (`echo`) hold no command. Nothing is expanded or run.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from ggplan.dialects.source import Source

Shell = Literal["sh", "cmd", "powershell"]

_PROGRAM = re.compile(
    r"(?<![\w.-])(?P<name>llama[-_]quantize|quantize)(?P<exe>\.exe)?[\"']?(?=[ \t\n`^\\]|$)"
    r"|(?<!\S)--quantize(?=\s)",
    re.I,
)
_OPTION = re.compile(
    r"(?<!\S)[\"']?--(?:tensor-type(?:-file)?|custom-q|output-tensor-type|token-embedding-type"
    r"|(?:attn|ffn)-[a-z-]{1,20}-type)[\"']?(?=[ \t])"
)
# What stands for a program whose name is not known: a variable of a shell, a path, a script.
_VARIABLE = r"\$\{?\w+\}?|\$env:\w+|%\w+%|!\w+!|\$\([^()]{1,200}\)"
_OTHER_PROGRAM = re.compile(
    rf"[\"']?(?:(?:{_VARIABLE})[\"']?(?:[\\/]\S*)?|\S{{0,500}}[\\/]\S{{1,500}}"
    r"|\S{1,200}\.(?:exe|sh|bat|cmd|ps1|py))[\"']?",
    re.I,
)
_ASSIGNED = re.compile(r"\w{1,200}\+?=.*|=|.*\(", re.DOTALL)
_SILENT = re.compile(r"[ \t]*(?:#|//|<!--|::|@?rem\b|@?echo\b)|.*[;&|][ \t]*echo\b", re.I)
_DRIVE = re.compile(r"(?<![A-Za-z])[A-Za-z]:\\")
_ENDS = re.compile(r";|&&?|\|\|?|[012&]?>>?.*|<(?![^>]*>).*|```.*")
_GOES_ON = {e: re.compile(rf"{re.escape(e)}[ \t]*\n") for e in "\\^`"}
_COMMENT = re.compile(r"[ \t]*(?:#|::|rem\b)[^\n]*\n?", re.I)
_FIRST_ARGUMENT = re.compile(r"(?:[ \t]|[\\^`][ \t]*\n)*(\S*)")
_CONTINUES: dict[str, Shell] = {"\\": "sh", "^": "cmd", "`": "powershell"}
_MAX_COMMANDS = 1_000
_LONGEST_LINE = 2_000  # of it is looked at for what shell it is of
_LONGEST_HEAD = 2_000  # characters before the name in its line
_MAX_CHARACTERS = 400_000  # of one command


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The arguments of one command, each with its line.

    Attributes
    ----------
    line, start
        Where it begins: the line, and the character of the text.
    has_comments
        Whether comment lines stand between its lines, where a shell would end the command.
    """

    line: int
    start: int
    words: tuple[tuple[str, int], ...]
    has_comments: bool = False


def without_quotation(text: str) -> str:
    """The text without the `> ` of a quoted message in front of its lines; as many lines as before.

    A `>` after a line that continues sends output to a file, unless an option follows (a shell's prompt).
    """
    if ">" not in text:
        return text
    found, quoted, continued = [], False, False
    for line in text.split("\n"):
        mark = re.match(r"[ \t]*(?:>[ \t]?)+", line)
        quoted = mark is not None and (
            quoted or not continued or line[mark.end() :].lstrip().startswith("--")
        )
        found.append(line[mark.end() :] if mark is not None and quoted else line)
        continued = found[-1].rstrip()[-1:] in _CONTINUES
    return "\n".join(found)


def command_lines(source: Source) -> tuple[list[CommandLine], list[int]]:
    """The commands of llama-quantize in a text, and the lines of those that are commented out.

    Sentences that name the program are not commands: behind a command's name stands an option, a file or a
    variable. Options that begin a line without a program's name are a command too.

    Raises
    ------
    RecipeError
        If a command ends inside a quotation, or there are too many.
    """
    text = source.text
    found: list[CommandLine] = []
    silent: list[int] = []
    if "--" not in text and "quantize" not in text.lower():
        return found, silent
    lines = _Lines(text)
    end = 0
    passed: set[tuple[int, bool]] = set()
    starts = sorted(
        [(m.end(), m) for m in _PROGRAM.finditer(text)] + [(m.start(), m) for m in _OPTION.finditer(text)],
        key=lambda pair: pair[0],
    )
    for at, match in starts:
        if match.start() < end:
            continue
        start = at
        command_start = max(end, lines.command_start(at))
        if match.re is _OPTION:
            place = (command_start, lines.number(command_start) == lines.number(at))
            if place in passed:  # another option of the same sentence
                continue
            passed.add(place)
            start = _behind_other_program(text, command_start, at)
            if start < 0:
                continue
        first = _FIRST_ARGUMENT.match(text, start)
        if first is None:
            continue
        before = max(0, match.start() - _LONGEST_HEAD)
        line_start = max(before, text.rfind("\n", before, match.start()) + 1)
        head = text[line_start : match.start()]
        if match.re is _OPTION:
            head = text[command_start : min(start, command_start + _LONGEST_HEAD)]
        if match.re is _PROGRAM and not (_is_argument(first[1], match, head) and _is_program(match, head)):
            continue
        line = lines.number(start)
        if _SILENT.match(head):
            if match.re is _PROGRAM:
                silent.append(line)
            continue
        inline = head.replace("```", "").count("`") % 2 == 1
        splitter = _Splitter(source, start, line, _shell(text, start, head, match[0]), inline=inline)
        end = splitter.split()
        found.append(CommandLine(line, match.start(), tuple(splitter.words), splitter.has_comments))
        if len(found) > _MAX_COMMANDS:
            raise source.fault(line, f"there are more than {_MAX_COMMANDS:,} command lines")
    return found, silent


class _Lines:
    """Where lines begin, and where the commands begin that go on over several of them."""

    def __init__(self, text: str) -> None:
        self._starts, self._commands = [0], [0]
        goes_on = False
        for line in text.split("\n"):
            start = self._starts[-1]
            self._commands.append(self._commands[-1] if goes_on else start)
            goes_on = line.rstrip()[-1:] in _CONTINUES and not line.lstrip().startswith("```")
            self._starts.append(start + len(line) + 1)

    def number(self, at: int) -> int:
        """The number of the line of a character, from 1."""
        return bisect_right(self._starts, at)

    def command_start(self, at: int) -> int:
        """Where the line begins, or the first of those that are continued up to it."""
        return self._commands[self.number(at)]


def _behind_other_program(text: str, start: int, at: int) -> int:
    """Where the arguments begin of a command whose first option that chooses types stands at `at`.

    The command begins at `start`. Its program is a variable of the shell, a path or a script; where its lines
    are continued any word. -1 for a sentence that names an option.
    """
    head = text[start:at]
    if not head.strip():
        return at
    if len(head) > _MAX_CHARACTERS:
        return -1
    option = re.search(r"(?<!\S)--[a-z]", head)
    found = re.finditer(r"\$\([^()\n]{0,200}\)\S*|\S+", head[: option.start() if option else len(head)])
    words = [m for m in found if m[0] not in ("\\", "^", "`", "&", "$", ">", "%")]
    if not words:
        return -1 if option is None else start + option.start()
    if any(_ASSIGNED.fullmatch(m[0]) for m in words[1:2]) or words[0][0].endswith("("):
        return -1  # `$a = @(`, `ARGS=(`: arguments, of which the command is elsewhere
    named = next(
        (m for m in words if _OTHER_PROGRAM.fullmatch(m[0]) and ".gguf" not in m[0] and "=" not in m[0]), None
    )
    if named is None and "\n" in head:
        named = next((m for m in words if not _ASSIGNED.fullmatch(m[0])), None)
    return start + named.end() if named is not None else -1


def _is_program(match: re.Match[str], head: str) -> bool:
    """Whether a name stands for the program: `quantize` alone is a word of English."""
    if match["name"] is None:
        return re.search(r"\b(docker|podman)\b", head) is not None
    return match["name"].lower() != "quantize" or bool(match["exe"]) or head[-1:] in ("/", "\\")


def _is_argument(word: str, program: re.Match[str], head: str) -> bool:
    """Whether the word behind the program's name is an argument, not one of a sentence."""
    if word.startswith("@"):  # PowerShell's array of arguments
        return bool(program["exe"]) or head.lstrip().startswith("&")
    return word.startswith(("-", "\u2013", "\u2014", "$", "%", "'-", '"-')) or (
        bool(re.search(r"\.gguf\b|[\\/].*[\\/]|^\"?[A-Za-z]:\\|^[\"'$%{]", word))
    )


def _shell(text: str, at: int, head: str, program: str) -> Shell:
    """The shell whose rules split the command that begins at `at`."""
    stop = text.find("\n", at)
    if stop >= 0 and (last := text[max(at, stop - _LONGEST_LINE) : stop].rstrip()[-1:]) in _CONTINUES:
        return _CONTINUES[last]
    first = text[at : min(at + _LONGEST_LINE, stop if stop >= 0 else len(text))]
    if re.match(r"[ \t]*(?:PS [^>\n]*>|&[ \t]|\$env:)", head):
        return "powershell"
    return "cmd" if ".exe" in program.lower() or _DRIVE.search(head + first) else "sh"


class _Splitter:
    """Splits the command that begins at a character into words, as its shell does."""

    def __init__(self, source: Source, at: int, line: int, shell: Shell, *, inline: bool) -> None:
        self.source, self.text, self.start, self.shell, self.inline = source, source.text, at, shell, inline
        self.escape = {"sh": "\\", "cmd": "^", "powershell": "`"}[shell]
        self.line = line
        self.words: list[tuple[str, int]] = []
        self.has_comments = False
        self._word: list[str] = []
        self._begun = self._quoted = False

    def split(self) -> int:
        """Fill `words`; where the command ends.

        Raises
        ------
        RecipeError
            If it ends inside a quotation, or is too long.
        """
        first, text, i = self.line, self.text, self.start
        while i < len(text):
            if i - self.start > _MAX_CHARACTERS:
                raise self.source.fault(first, "the command is too long")
            c = text[i]
            if c == self.escape and (more := _GOES_ON[c].match(text, i)):
                if self._finish():
                    return i
                self.line += 1
                i = more.end()
                while comment := _COMMENT.match(text, i):
                    self.has_comments = True
                    self.line += 1
                    i = comment.end()
            elif c in " \t\n":
                if self._finish() or c == "\n":
                    return i
                i += 1
            elif c == "`" and self.inline:
                break
            elif c in "\"'" and (self.shell != "cmd" or c == '"' or not self._begun):
                i = self._quotation(i)
                if i < 0:
                    raise self.source.fault(first, "the command ends inside a quotation")
            elif c == self.escape:
                if self.shell == "cmd":  # cmd takes a caret away
                    i += 1
                else:
                    self._quoted = True
                    self._take(text[i + 1 : i + 2])
                    i += 2
            elif text.startswith("$(", i) and self.shell != "cmd":
                end = text.find(")", i, i + _LONGEST_LINE)
                end = i if end < 0 or "\n" in text[i:end] else end
                self._take(text[i : end + 1])
                i = end + 1
            elif c == "#" and not self._begun and self.shell != "cmd":
                break
            else:
                self._take(c)
                i += 1
        self._finish()
        return i

    def _take(self, characters: str) -> None:
        self._begun = True
        self._word.append(characters)

    def _quotation(self, i: int) -> int:
        """Take a quoted text; where it ends, or -1 where it does not."""
        text, quote = self.text, self.text[i]
        self._begun = self._quoted = True
        i += 1
        while i < len(text) and i - self.start <= _MAX_CHARACTERS:
            c, pair = text[i], text[i : i + 2]
            if c == quote:
                return i + 1
            if quote == '"' and self.shell == "sh" and pair == "\\\n":
                self.line += 1
                i += 2
                continue
            escaped = quote == '"' and (
                (self.shell == "sh" and pair in ('\\"', "\\\\", "\\$", "\\`"))
                or (self.shell == "cmd" and pair == '\\"' and text[i + 2 : i + 3] not in (" ", "\n", ""))
                or (self.shell == "powershell" and c == "`")
            )
            i += escaped
            self.line += text[i : i + 1] == "\n"
            self._word.append(text[i : i + 1])
            i += 1
        return -1

    def _finish(self) -> bool:
        """Take the word that was read, if there is one; whether it ends the command."""
        said, plain = "".join(self._word), not self._quoted
        begun, self._begun, self._quoted, self._word = self._begun, False, False, []
        if not begun:
            return False
        if plain and _ENDS.fullmatch(said):
            return True
        ends = plain and said.endswith(";")
        self.words.append((said.rstrip(";") if ends else said, self.line))
        return ends
