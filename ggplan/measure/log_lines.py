"""A line of a log: what is put before it, and the facts that it tells of the run that follows.

Logs reach us through terminals, forums and Windows. So a line may begin with colours, with `> ` of a
quotation or with llama.cpp's time and level (`0.00.041.233 I `), and `±` and `Δ` may have become other
characters.

The facts of a run stand before it, in this order: a heading or a command line of the script that ran it, the
build, the file that the loader opened, and the model's name and size:

    ## air-Q4_K_M.gguf
    + llama-perplexity -m air-Q4_K_M.gguf -f wiki.test.raw
    build: 3919 (fde9b8d2) with cc (Ubuntu 11.4.0) 11.4.0 for x86_64-linux-gnu
    llama_model_loader: loaded meta data with 44 key-value pairs and 803 tensors from air-Q4_K_M.gguf
    print_info: file size   = 65.44 GiB (4.89 BPW)

A fact that stands earlier in this order than one already known begins the next run, and so does a file
that is another one than the file known so far: the loader says what was really opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import PurePosixPath
from typing import NamedTuple

from ggplan.text import printable

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_QUOTED = re.compile(r"^(?:\s?>)+\s?")
_TIMED = re.compile(r"^(\d{1,9})\.(\d\d)\.(\d{3})\.(\d{3}) [A-Z] ")
LONGEST = 2000
"""Facts stand at the beginning of a line; a line of chunks may have a megabyte."""
_LONGEST_HEADING = 300

_UNITS = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
          "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # fmt: skip
SIZE = r"(\d{1,7}(?:\.\d{1,6})?)\s*([KMGT]i?B)\b"
_BPW = r"(?:(?:\s*[(,])?\s*(\d{1,2}(?:\.\d{1,6})?)\s*(?i:bpw|bits per weight)\)?)?"
_BITS = re.compile(r"(?<![\w.])(\d{1,2}(?:\.\d{1,6})?)\s*(?i:bpw|bits per weight)\b\)?")
_LOADED = re.compile(r".{0,80}? from (.{1,400}?)(?: \(version |$)")
_LOADING = re.compile(r"(?:loading model(?: from)?|load model):? '?")
_LOADED_FILE = re.compile(r"(.{1,400}?\.gguf)\b")
_NAME = re.compile(r"general\.name (?:\s*str)?\s*= (.{1,100})")
_FILE_SIZE = re.compile(rf"(?:file|model) size\s*= {SIZE}{_BPW}")
_BUILD = re.compile(r"^(?:main: )?(?:build(?:_info)?\s*[:=] ?|version: (?=b?\d))(.{1,80})")
_BUILDS = ("build", "main: build", "version: ", "main: version: ")
_BENCH_BUILD = re.compile(r"^build: ([0-9a-f]{6,12}) \((\d{1,7})\)\s*$")
_OPTION = r"""[ =](?:"([^"]{1,400})"|'([^']{1,400})'|(\S{1,400}))"""
# The programs whose results are read, as command lines call them.
PERPLEXITY, SWEEP, BENCH = "perplexity", "sweep-bench", "llama-bench"
_COMMAND = re.compile(r"(?:^CMD\b|(perplexity|sweep-bench|llama-bench)|main)(?:\.exe)?[\"']?\s")
_COMMAND_MODEL = re.compile(rf"\s(?:-m|--model){_OPTION}")
_CONTINUED = re.compile(rf"^\s+(?:-m|--model){_OPTION}")
_COMMAND_TEXT = re.compile(rf"\s(?:-f|--file){_OPTION}")
_MARK = re.compile(r"(#{1,6})\s+|(={2,}|-{2,}|\*{2,})\s*")
_BULLET = re.compile(rf"^\s*[-*+]\s+([*`_]{{0,6}}[A-Za-z][\w.+-]{{0,80}}[*`_]{{0,6}}(?:\s*:)?\s+{SIZE}.*)$")
# A name and its result in one line.
_RESULT = "Final estimate: PPL"
_INLINE = re.compile(r"\s*(?:[-*+]\s+)?(?=[*`_]*[A-Za-z])")
_BEFORE_RESULT = " \t`:,–—-"
_GGUF = re.compile(r"([^\s`*\"'()\[\]|]{1,300})\.gguf\b")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_MARKUP = re.compile(r"[*`]|(?:^|(?<=\s))_+(?=\w)|(?<=\w)_+(?=\s|$)|</?\w+>")
_LINK = re.compile(r"\[([^\]]{1,200})\]\([^)]{0,400}\)")
_TYPE = re.compile(
    r"\b(?:UD-)?(?:I?Q[1-8](?:_\w+)?|TQ[12]_0|B?F16|FP?16|F32|MXFP4(?:_\w+)?|NVFP4)\b", re.IGNORECASE
)
# Names of types alone, as quantizations are called by them: `UD-Q4_K_XL`, `IQ4_KSS`, `BF16`.
_WHOLE_TYPE = re.compile(
    r"(?<![A-Za-z0-9])(?:UD-)?(I?Q[1-8]_(?:K(?:SS|[STL])?(?:_[A-Z]{1,3})?|[A-Z]{1,3}|[01])|TQ[12]_0|B?F16|FP16|F32)"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_FAILED = re.compile(
    r"failed to (?:open|load)\b.{0,400}(?:model|\.gguf)|(?:error loading|unable to load) model|^Killed\b"
    r"|^terminate called|Segmentation fault|^Aborted\b|core dumped|^CUDA error"
)
_OWN_LINE = re.compile(rf"^\s*(?:[-*]\s+)?(?:(?:file |model )?size\W{{1,4}})?{SIZE}{_BPW}\s*$", re.IGNORECASE)

# What a line begins with that may be a heading or an item of a list.
_MARKS = ("#", "=", "-", "*", "+")
# The last letters of a line that is a size: `65.44 GiB`, `4.89 bpw`, `bits per weight`, `(4.89 BPW)`.
_ENDS_OF_SIZES = ("b", "B", "w", "W", "t", "T", ")")


class Stage(IntEnum):
    """The places of facts before a run, in their order."""

    NOTHING = 0
    HEADING = 1
    BELOW_HEADING = 2
    COMMAND = 3
    BUILD = 4
    FILE = 5
    MODEL = 6


@dataclass(frozen=True, slots=True)
class Facts:
    """What stands before a run.

    Attributes
    ----------
    name
        The quantization as a heading calls it.
    file
        The file of the model, without its folders.
    folder
        The folder that the file is in, without those above it; "" where it is not known.
    model
        The model's name.
    n_bytes, bpw
        Size of the file and bits per weight, 0 where not printed.
    text
        The text's file as a command line has it.
    program
        The program that a command line runs: `perplexity`, `sweep-bench`, `llama-bench`, or "".
    heading
        A heading that names no quantization.
    level
        The level of the heading, 1 for `#`.
    """

    name: str = ""
    file: str = ""
    model: str = ""
    n_bytes: int = 0
    bpw: float = 0.0
    build: str = ""
    text: str = ""
    program: str = ""
    heading: str = ""
    level: int = 0
    folder: str = ""


NO_FACTS = Facts()


class Line(NamedTuple):
    """A line without what is put before it.

    Attributes
    ----------
    time
        llama.cpp's in microseconds, or None.
    is_open
        Whether it is the last and has no line end, so that it may be cut.
    """

    number: int
    text: str
    time: int | None = None
    is_open: bool = False


def lines_of(text: str) -> Iterator[Line]:
    """The lines of a log; what a carriage return overwrites counts as a line of its own."""
    wholes = text.split("\n")
    last = len(wholes)
    for number, whole in enumerate(wholes, 1):
        is_open = number == last
        for part in whole.split("\r") if "\r" in whole else (whole,):
            plain = _COLOUR.sub("", part) if "\x1b" in part else part
            plain = _QUOTED.sub("", plain) if ">" in plain and plain.lstrip()[:1] == ">" else plain
            found = _TIMED.match(plain) if plain[:1].isdigit() else None
            if found is None:
                yield Line(number, plain, None, is_open)
                continue
            minutes, seconds, milli, micro = map(int, found.groups())
            time = ((minutes * 60 + seconds) * 1000 + milli) * 1000 + micro
            yield Line(number, plain[found.end() :], time, is_open)


def bytes_of(number: str, unit: str) -> int:
    """The bytes of a size: `65.44` and `GiB`; `GB` counts in powers of 1000."""
    return round(float(number) * _UNITS[unit.lower()])


def bench_build(line: str) -> str:
    """The build as llama-bench prints it below its table, `build: 8cf427ff (5163)`, or ""."""
    found = _BENCH_BUILD.match(line) if line.startswith("build: ") else None
    return f"{found[2]} ({found[1]})" if found else ""


def facts_in(line: str, *, fenced: bool = False) -> tuple[Stage, Facts] | None:
    """The facts that a line tells, and their place in the order; None of most lines.

    Parameters
    ----------
    fenced
        The line is of a block of code, where `#` begins a comment and not a heading.
    """
    line = line[:LONGEST]
    # Most lines have no fact. A word that is looked for takes a hundredth of the time of a pattern.
    has_gguf = ".gguf" in line
    if "load" in line and (
        found := ((at := line.find("loaded meta data with ")) >= 0 and _LOADED.match(line, at + 22))
        or (has_gguf and (start := _LOADING.search(line)) and _LOADED_FILE.match(line, start.end()))
    ):
        return Stage.FILE, _file_at(found[1])
    if " size" in line and (found := _FILE_SIZE.search(line)):
        return Stage.MODEL, Facts(n_bytes=bytes_of(found[1], found[2]), bpw=float(found[3] or 0))
    if "general.name" in line and (found := _NAME.search(line)):
        return Stage.MODEL, Facts(model=found[1].strip())
    if line.startswith(_BUILDS) and (found := _BUILD.match(line)) and not bench_build(line):
        return Stage.BUILD, Facts(build=found[1].strip())
    command = _COMMAND.search(line) if has_gguf else None
    if command and "-" in line[command.end() :] and (models := list(_COMMAND_MODEL.finditer(line))):
        text = _COMMAND_TEXT.search(line)
        # llama-bench takes several models, and then the line tells which run is of which file no more.
        several = len(models) > 1 or _chosen(models[0]).count(".gguf") > 1
        file = NO_FACTS if several else _file_at(_chosen(models[0]))
        read = base_name(_chosen(text)) if text else ""
        return Stage.COMMAND, replace(file, text=read, program=command[1] or "")
    if has_gguf and (model := _CONTINUED.match(line)):
        return Stage.COMMAND, _file_at(_chosen(model))
    return _heading_in(line, fenced)


def _heading_in(line: str, fenced: bool) -> tuple[Stage, Facts] | None:
    if "Final estimate" in line:
        before, is_there, _ = line.partition(_RESULT)
        named = before.rstrip(_BEFORE_RESULT)
        start = _INLINE.match(named)
        if not is_there or start is None or not len(named) < len(before) or len(named) > _LONGEST_HEADING:
            return None
        facts = _named_by(named[start.end() :])
        return (Stage.HEADING, facts) if facts.name and _TYPE.search(facts.name) else None
    is_marked = line.lstrip().startswith(_MARKS)
    if is_marked and (found := _BULLET.match(line)):
        return Stage.HEADING, _named_by(found[1])
    if line.rstrip().endswith(_ENDS_OF_SIZES) and (found := _OWN_LINE.match(line)):
        return Stage.BELOW_HEADING, Facts(n_bytes=bytes_of(found[1], found[2]), bpw=float(found[3] or 0))
    line = line.strip()[:_LONGEST_HEADING]
    found = _MARK.match(line) if is_marked else None
    title = line[found.end() :].rstrip("=#*- \t") if found else ""
    if found is None or not title or "statistics" in line:
        return None
    facts = _named_by(title)
    is_rule = found[1] is None
    if is_rule and not (facts.file or facts.n_bytes or line.endswith(found[2])):
        return None
    if not facts.name and (fenced or is_rule):
        return None
    return Stage.HEADING, replace(facts, level=len(found[1] or "#"))


def _named_by(heading: str) -> Facts:
    """The facts in a heading: a `.gguf`, a name before a size, or the name of a type somewhere in it."""
    heading = heading[:_LONGEST_HEADING]
    plain = _MARKUP.sub("", _LINK.sub(r"\1", heading) if "](" in heading else heading).strip()
    size = re.search(SIZE + _BPW, plain)
    n_bytes, bpw = (bytes_of(size[1], size[2]), float(size[3] or 0)) if size else (0, 0.0)
    if not bpw and (bits := _BITS.search(plain)) is not None:
        bpw = float(bits[1])
        plain = plain[: bits.start()].rstrip(" \t,(~@") + plain[bits.end() :]
        size = re.search(SIZE, plain)
    file = _GGUF.search(plain) if ".gguf" in plain else None
    if file is not None:
        base = base_name(file[1])
        return Facts(name=without_ending(base), file=f"{base}.gguf", n_bytes=n_bytes, bpw=bpw)
    before = plain[: size.start()].strip(" :,(-") if size else ""
    if before and " " not in before:
        return Facts(name=before, n_bytes=n_bytes, bpw=bpw)
    if _TYPE.search(plain):
        return Facts(name=(before or plain)[:80], n_bytes=n_bytes, bpw=bpw)
    return Facts(heading=plain[:80] or "-")


def is_failure(line: str) -> bool:
    """Whether a line says that a process of llama.cpp ended without a result."""
    # A word of each thing that `_FAILED` looks for: plain searches, for this is asked of every line.
    if not (
        "ailed to" in line or "g model" in line or "load model" in line or "Kill" in line
        or "terminate" in line or "fault" in line or "Abort" in line or "dump" in line or "CUDA e" in line
    ):  # fmt: skip
        return False
    return _FAILED.search(line[:LONGEST]) is not None


def contradict(known: Facts, new: Facts) -> bool:
    """Whether a fact of a line is already known, and another."""
    pairs = [(getattr(known, name), getattr(new, name)) for name in Facts.__slots__]
    return any(old and told and old != told for old, told in pairs)


def types_agree(heading: str, name: str) -> bool:
    """Whether a name may be of what a heading calls so: both have the same type, or one has none.

    `Q4_K` is also `Q4_K_M`, as llama-bench prints the one where files are called by the other.
    """
    asked, there = (
        {t.upper().replace("FP", "F") for t in _WHOLE_TYPE.findall(text)} for text in (heading, name)
    )
    pairs = [(a, b) for a in asked for b in there]
    return not pairs or any(a == b or a.startswith(f"{b}_") or b.startswith(f"{a}_") for a, b in pairs)


@dataclass(frozen=True, slots=True)
class _Told:
    line: int
    facts: Facts
    fenced: bool
    is_timed: bool = False


@dataclass(slots=True)
class FactsBefore:
    """The facts told since the last run, by their place in the order."""

    told: dict[Stage, _Told] = field(default_factory=dict)
    facts: Facts = NO_FACTS

    @property
    def stage(self) -> Stage:
        """The last place in the order of which a fact is known."""
        return max(self.told, default=Stage.NOTHING)

    def add(self, stage: Stage, facts: Facts, line: Line, *, fenced: bool) -> None:
        """Take the facts of a line; `fenced` says whether it is of a block of code."""
        old = self.told.get(stage, _Told(line.number, NO_FACTS, fenced))
        known = joined(old.facts, facts)
        self.told[stage] = _Told(old.line, known, old.fenced and fenced, line.time is not None)
        self._join()

    def forget(self, first: Stage) -> None:
        """Forget the facts from a place in the order on."""
        self.told = {stage: told for stage, told in self.told.items() if stage < first}
        self._join()

    def _join(self) -> None:
        self.facts = NO_FACTS
        for stage in sorted(self.told):
            self.facts = joined(self.facts, self.told[stage].facts)

    def is_of_another_program(self, program: str) -> bool:
        """Whether a command line runs another program than the one a result is of."""
        told = self.told.get(Stage.COMMAND)
        return told is not None and told.facts.program not in ("", program)

    def is_of_a_process(self) -> bool:
        """Whether a line that llama.cpp itself prints is among them, and not in a block of code."""
        return any(stage >= Stage.BUILD and not told.fenced for stage, told in self.told.items())

    def is_otherwise_timed(self, *, is_timed: bool) -> bool:
        """Whether llama.cpp printed the time before its own facts, and not now, or the other way round."""
        return any(stage >= Stage.BUILD and told.is_timed != is_timed for stage, told in self.told.items())

    def is_another_file(self, new: Facts) -> bool:
        """Whether a file is another one than those known.

        Shards are one file, and a heading may shorten the name.
        """
        if not new.file:
            return False
        return any(
            not _is_same_file(told.facts, new.file, shortened=stage is Stage.HEADING)
            for stage, told in self.told.items()
        )

    def without_result(self, first: Stage, opened: str = "") -> list[tuple[int, str]]:
        """What is to be told of facts, from a place in the order on, that no result is of: lines and why.

        `opened` is the file that makes a heading the heading of another.
        """
        heading, found = self.told.get(Stage.HEADING), []
        if heading and opened and not _is_same_file(heading.facts, opened, shortened=True):
            name = printable(heading.facts.file or heading.facts.name)
            found.append((heading.line, f"the heading {name}: below it {printable(opened)} was opened"))
        process = [
            told
            for stage, told in self.told.items()
            if stage >= max(first, Stage.COMMAND) and not (stage is Stage.COMMAND and told.fenced)
        ]
        files = [told.facts.file or told.facts.model for told in process]
        if any(files):
            name = next(file for file in files if file)
            line = min(told.line for told in process)
            found.append((line, f"a run of {printable(name)} that ends before any result"))
        return found

    def without_figure(self) -> list[tuple[int, str]]:
        """What is to be told of a heading that names a file with its size, and has no result below it."""
        told = self.told.get(Stage.HEADING)
        below = self.told.get(Stage.BELOW_HEADING)
        if told is None or not told.facts.name or not (told.facts.n_bytes or told.facts.bpw or below):
            return []
        return [(told.line, f"the heading {printable(told.facts.name)}: there is no result below it")]


def _is_same_file(known: Facts, file: str, *, shortened: bool) -> bool:
    """Whether a file may be the one known; `shortened` allows `Q4_K.gguf` for `air-Q4_K.gguf`."""
    if not known.file:
        return not known.name or types_agree(known.name, without_ending(file))
    a, b = (without_ending(name).casefold() for name in (known.file, file))
    short, long = sorted((a, b), key=len)
    return a == b or (shortened and re.search(rf"[-_. ]{re.escape(short)}$", long) is not None)


def joined(known: Facts, new: Facts) -> Facts:
    """The facts known so far with those of one more line."""
    if known is NO_FACTS:
        return new
    return Facts(*(getattr(new, name) or getattr(known, name) for name in Facts.__slots__))


def without_ending(name: str) -> str:
    """`air-Q4_K-00001-of-00003.gguf` → `air-Q4_K`."""
    return _SHARD.sub("", name.removesuffix(".gguf"))


def base_name(path: str) -> str:
    """The name of a file, without the folders that Windows or another system writes before it."""
    return PurePosixPath(path.replace("\\", "/").strip("\"' ")).name


def folder_of(path: str) -> str:
    """The folder of a file, without those above it; "" where the path does not tell, as `./` and `$DIR/`."""
    folder = PurePosixPath(path.replace("\\", "/").strip("\"' ")).parent.name
    return "" if set(folder) <= {"."} or set(folder) & set("$%~{}") or folder.endswith(":") else folder


def _file_at(path: str) -> Facts:
    return Facts(file=base_name(path), folder=folder_of(path))


def _chosen(found: re.Match[str]) -> str:
    return found[1] or found[2] or found[3]
