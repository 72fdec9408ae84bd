"""Command lines of llama.cpp and ik_llama.cpp, read into `Settings`.

A line is read as the program reads it (`common/arg.cpp` of llama.cpp b11434, `common/common.cpp` of
ik_llama.cpp): options are whole words, `--flag=value` is unknown to both, a later option beats an earlier one
but for `-ot`, `-cmoe`, `-ncmoe` and `-ncffn`, which add up in the order given, and `LLAMA_ARG_...` before the
program's name counts as an option. What an option does beyond what `Settings` holds is noted, never dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal

from ggplan.errors import CommandError
from ggplan.ggml_types import Engine
from ggplan.offload.flags import PROGRAMS, Flag, all_flags, flags_of
from ggplan.offload.options import BENCH, GONE, GONE_LOAD_MODES, HANDLERS, UNRECKONED, Said
from ggplan.offload.settings import LoadMode, Settings
from ggplan.offload.shell import Word, split_words
from ggplan.offload.values import BadValue, switch
from ggplan.text import nearest, printable

# Images whose entry point is a program: `docker run ... ghcr.io/ggml-org/llama.cpp:server-cuda -m ...`.
_IMAGE = re.compile(r"(?:\S*/)?llama\.cpp:(server|light)[\w.-]*")
_IN_IMAGES = {"server": "llama-server", "light": "llama-cli"}

FaultKind = Literal["unknown", "other engine", "gone", "value", "cut regex", "missing", "tests"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What the program would refuse, or would not read as it is meant.

    Attributes
    ----------
    kind
        Unknown option; option of the other engine; option that no longer exists; bad value; regex that the
        engine cuts at a comma; missing value; several values that llama-bench runs one after another.
    message, hint
        One line each.
    line
        Of the command, from 1.
    """

    kind: FaultKind
    message: str
    hint: str
    line: int


@dataclass(frozen=True, slots=True)
class Given:
    """An option as it stands on a line.

    Attributes
    ----------
    name
        Its first name in the engine's table: `-ngl`.
    written
        As it was written: `--n-gpu-layers`, or the name of a variable.
    values
        The words that belong to it.
    is_negated
        True for `--no-kv-offload` and its like.
    line
        Of the command, from 1.
    """

    name: str
    written: str
    values: tuple[str, ...]
    is_negated: bool
    line: int


@dataclass(frozen=True, slots=True)
class Command:
    """A command line that was read.

    Attributes
    ----------
    engine, settings
        Whose it is, and what it says about memory.
    given
        All options, in order.
    sources
        For each of `settings.overrides`, the place in `given` of the option it is from.
    model
        The file after `-m`; None if another option names it.
    fits
        Whether the program adjusts what is not given to the memory it finds (`-fit`, on by default).
    devices
        Those after `-dev`, of which `none` is (); None for all.
    faults
        What is wrong; the options concerned are left out, but for how the file is loaded where that is plain,
        and the first of several tests.
    notes
        What is not reckoned.
    """

    engine: Engine
    settings: Settings
    given: tuple[Given, ...]
    sources: tuple[int, ...]
    model: str | None
    fits: bool
    devices: tuple[str, ...] | None
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Whether an option, by its first name, is given."""
        return any(given.name == name for given in self.given)


def parse_command(text: str, engine: Engine | None = None) -> Settings:
    """The settings that a command line states.

    Parameters
    ----------
    engine
        Whose program it is; None for llama.cpp, but for a program that ik_llama.cpp alone has.

    Raises
    ------
    CommandError
        For what the program would refuse; `read_command` lists all of it.
    """
    command = read_command(text, engine)
    if command.faults:
        fault = command.faults[0]
        raise CommandError(fault.message, hint=fault.hint)
    return command.settings


def read_command(text: str, engine: Engine | None = None) -> Command:
    """Read a command line, with all that is wrong with it.

    Raises
    ------
    CommandError
        If it has no program or a quote that is not closed.
    """
    words = split_words(text)
    variables, program, rest = _program(words)
    if engine is None:
        engine = "ik_llama.cpp" if program == "llama-sweep-bench" else "llama.cpp"
    reading = _Reading(engine, program, Said(engine, program))
    for word in variables:
        reading.variable(word)
    at = 0
    while at < len(rest):
        at = reading.option(rest, at)
    return reading.command()


def _program(words: list[Word]) -> tuple[list[Word], str, list[Word]]:
    """The assignments before the program, its name, and its arguments.

    A line may begin with an option, which then is llama-server's, or with a wrapper (`numactl -N 0`, `docker
    run` with llama.cpp's own image).
    """
    variables: list[Word] = []
    for at, word in enumerate(words):
        name = _base_name(word.text)
        if name in PROGRAMS:
            return variables, name, words[at + 1 :]
        if name == "llama" and at + 1 < len(words):
            sub = {"serve": "server", "client": "cli", "complete": "completion"}.get(
                words[at + 1].text, words[at + 1].text
            )
            if f"llama-{sub}" in PROGRAMS:
                return variables, f"llama-{sub}", words[at + 2 :]
        if image := _IMAGE.fullmatch(word.text):
            return variables, _IN_IMAGES[image[1]], words[at + 1 :]
        if re.match(r"[A-Za-z_]\w*=", word.text):
            variables.append(word)
        elif word.text.startswith("-") and at == len(variables):
            return variables, "llama-server", words[at:]
    if not words:
        raise CommandError("the command is empty", hint="write it as for a shell: `llama-server -m FILE ...`")
    first = next((w for w in words if w not in variables), words[0])
    meant = nearest(_base_name(first.text), PROGRAMS)
    raise CommandError(
        f"`{printable(first.text)}` is no program of llama.cpp whose options are known",
        hint=f"is it `{meant}`?" if meant else f"it may be {', '.join(list(PROGRAMS)[:4])}, ...",
    )


def _base_name(path: str) -> str:
    return PureWindowsPath(PurePosixPath(path).name).name.removesuffix(".exe")


@dataclass(slots=True)
class _Reading:
    """What was read so far."""

    engine: Engine
    program: str
    said: Said
    given: list[Given] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, kind: FaultKind, message: str, hint: str, line: int) -> None:
        self.faults.append(Fault(kind, message, hint, line))

    def variable(self, word: Word) -> None:
        """An assignment before the program: an option, or what changes which devices there are."""
        name, _, value = word.text.partition("=")
        flag = next((f for f in flags_of(self.engine, self.program).values() if f.variable == name), None)
        if flag is not None:
            self._from_variable(flag, name, value, word.line)
        elif name.startswith("LLAMA_ARG_"):
            self.fault(
                "unknown", f"{printable(name)} is not read by {self.program}", self._like(name), word.line
            )
        elif name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
            n = len([d for d in value.split(",") if d.strip() and d.strip() != "-1"])
            self.said.notes.append(f"{name} shows the program {n} GPU{'s' * (n != 1)}: say so with --gpus")
        elif name.startswith(("GGML_", "LLAMA_ATTN_")):
            self.said.notes.append(f"{printable(name)} is not reckoned")

    def _from_variable(self, flag: Flag, name: str, value: str, line: int) -> None:
        if flag.n_values:
            self._take(flag, name, (value,), False, line)
            return
        try:
            says_yes = switch(value)
        except BadValue as bad:
            self.fault("value", f"{name}={printable(value)} {bad.message}", bad.hint, line)
            return
        if says_yes or flag.negations:
            self._take(flag, name, (), not says_yes, line)

    def option(self, words: list[Word], at: int) -> int:
        """Read the option at `at`; where the next one begins."""
        word = words[at]
        written = word.text
        name = "--" + written[2:].replace("_", "-") if written.startswith("--") else written
        flag = flags_of(self.engine, self.program).get(name)
        gone = GONE[self.engine].get(name)
        if flag is None or gone is not None:
            return self._unknown(words, at, name, gone)
        n_values = flag.n_values
        if n_values is None:
            follows = words[at + 1].text.lower() if at + 1 < len(words) else ""
            n_values = int(follows in ("auto", "on", "off", "0", "1"))
        values = tuple(w.text for w in words[at + 1 : at + 1 + n_values])
        if len(values) < n_values:
            self.fault("missing", f"`{printable(written)}` has no value", self._takes(flag), word.line)
        elif not self._take(flag, written, values, name in flag.negations, word.line) and (
            values and re.match(r"--?[A-Za-z]", values[0])
        ):
            return at + 1  # the next option in the place of a value: what is wrong with it is told too
        return at + 1 + n_values

    def _takes(self, flag: Flag) -> str:
        """What to write after an option that has no value."""
        handler = (BENCH if self.program == "llama-bench" else HANDLERS[self.engine]).get(flag.names[0])
        try:
            if handler is not None:
                handler(Said(self.engine, self.program), "")
        except BadValue as bad:
            return bad.hint if "after it" in bad.hint else f"{bad.hint} after it"
        return "write one after it"

    def _unknown(self, words: list[Word], at: int, name: str, gone: tuple[int, str] | None) -> int:
        word = words[at]
        shown = f"`{printable(word.text)}`"
        other: Engine = "ik_llama.cpp" if self.engine == "llama.cpp" else "llama.cpp"
        elsewhere, here = all_flags(other).get(name), all_flags(self.engine).get(name)
        n_values = None
        base, equals, _ = name.partition("=")
        if gone is not None:
            n_values, instead = gone
            n_values = max(n_values, int(self.program == "llama-bench"))  # which has one after every option
            self._load_mode(name, words[at + 1].text if at + 1 < len(words) else "")
            what = f"{shown} no longer exists in {self.engine}"
            self.fault("gone", what, f"write {instead}", word.line)
        elif not name.startswith("-"):
            self.fault("unknown", f"{shown} belongs to no option", "quote a value with blanks", word.line)
            return at + 1
        elif equals and base in all_flags(self.engine):
            hint = f"write the value as a word of its own: `{printable(base)} VALUE`"
            self.fault("unknown", f"{shown} is unknown: {self.engine} takes no `=`", hint, word.line)
            return at + 1
        elif here is not None:
            n_values = here.n_values
            users = sorted(p for p, k in PROGRAMS.items() if here.programs & {k, "common"})
            hint = f"{', '.join(users[:4])} has it"
            self.fault("unknown", f"{self.program} has no {shown}", hint, word.line)
        elif name in GONE[other]:
            n_values = GONE[other][name][0]
            what = f"{shown} was an option of {other}, and {self.engine} has none of that name"
            self.fault("other engine", what, "leave it out", word.line)
        elif elsewhere is not None:
            n_values = elsewhere.n_values
            what = f"{shown} is an option of {other}, and {self.engine} has none of that name"
            self.fault("other engine", what, f"leave it out, or use {other}", word.line)
        else:
            self.fault("unknown", f"{self.program} has no option {shown}", self._like(name), word.line)
        if n_values is None:  # what does not look like an option is its value
            n_values = int(at + 1 < len(words) and not words[at + 1].text.startswith("-"))
        return at + 1 + n_values

    def _load_mode(self, name: str, value: str) -> None:
        """Take an option of former builds for what it meant."""
        is_off = self.program == "llama-bench" and value == "0"
        if self.engine == "llama.cpp" and name in ("-mmp", *GONE_LOAD_MODES):
            mode: LoadMode = "none" if is_off else GONE_LOAD_MODES.get(name, "mmap")
            before = self.said.fields.get("load_mode", "mmap")
            if {mode, before} == {"none", "mmap+mlock"}:
                mode = "mlock"
            self.said.fields["load_mode"] = mode

    def _like(self, name: str) -> str:
        known = flags_of(self.engine, self.program)
        names = [f.variable for f in known.values()] if name.startswith("LLAMA_") else list(known)
        meant = nearest(name, [n for n in names if n])
        return f"did you mean `{meant}`?" if meant else f"`{self.program} --help` lists them"

    def _take(self, flag: Flag, written: str, values: tuple[str, ...], negated: bool, line: int) -> bool:
        """Read an option with its values; whether it takes them."""
        name = flag.names[0]
        handler = (BENCH if self.program == "llama-bench" else HANDLERS[self.engine]).get(name)
        try:
            if handler is not None:
                handler(self.said, *(values or (not negated,)))
            elif name in UNRECKONED and not (name == "-mla" and values == ("3",)):
                self.said.notes.append(f"`{written}`: {UNRECKONED[name]} is not reckoned")
            elif name.endswith("-default") or (name.startswith("--fim-") and not values):
                self.said.notes.append(f"`{written}` sets options of its own, which are not reckoned")
        except BadValue as bad:
            shown = " ".join([written, *values]) if "=" not in written else written
            what = f"`{printable(shown)}`: {printable(values[0])} {bad.message}"
            kind: FaultKind = "cut regex" if bad.is_cut else "tests" if bad.is_list else "value"
            self.fault(kind, what, bad.hint, line)
            if kind != "tests":
                return False
        self.given.append(Given(name, written, values, negated, line))
        self.said.n_given += 1
        return True

    def command(self) -> Command:
        said = self.said
        said.finish()
        fits = said.fits if said.fits is not None else self._fits_by_default()
        return Command(
            self.engine,
            Settings(program=self.program, overrides=(*said.overrides, *said.last), **said.fields),
            tuple(self.given),
            (*said.sources, *[said.last_source] * len(said.last)),
            said.model,
            fits,
            said.devices,
            tuple(self.faults),
            tuple(dict.fromkeys(said.notes)),
        )

    def _fits_by_default(self) -> bool:
        return self.engine == "llama.cpp" and self.program != "llama-bench"
