"""The options of the engines' programs: their names, and how many values each takes.

`llama.cpp.txt` and `ik_llama.cpp.txt` hold one option a line, as they stand in the sources of the builds that
ggplan knows. An option that has nothing to do with memory or speed is here too: a command line cannot be read
without knowing how many words belong to it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from ggplan.ggml_types import Engine

ENGINES: tuple[Engine, ...] = ("llama.cpp", "ik_llama.cpp")

# What `common/arg.cpp` calls each program; `llama SUBCOMMAND` is the same program.
PROGRAMS: Mapping[str, str] = {
    "llama-server": "server",
    "llama-cli": "cli",
    "llama-completion": "completion",
    "llama-perplexity": "perplexity",
    "llama-imatrix": "imatrix",
    "llama-bench": "llama-bench",
    "llama-batched-bench": "bench",
    "llama-sweep-bench": "bench",
    "llama-fit-params": "fit_params",
    "llama-mtmd-cli": "mtmd",
    "llama-embedding": "embedding",
    "llama-parallel": "parallel",
    "llama-speculative": "speculative",
    "llama-lookup": "lookup",
}


@dataclass(frozen=True, slots=True)
class Flag:
    """One option.

    Attributes
    ----------
    names
        All spellings that say yes, or that take the values; the first is how ggplan calls it.
    negations
        Spellings that say no.
    n_values
        Words that follow it; None for one that older builds did not take.
    programs
        The programs that take it, as in `PROGRAMS`; "common" is every one but llama-bench.
    variable
        The environment variable that sets it, or "".
    """

    names: tuple[str, ...]
    negations: tuple[str, ...]
    n_values: int | None
    programs: frozenset[str]
    variable: str


@functools.cache
def flags_of(engine: Engine, program: str) -> Mapping[str, Flag]:
    """The options that a program of an engine takes, by every spelling.

    Parameters
    ----------
    program
        A key of `PROGRAMS`.
    """
    kind = PROGRAMS[program]
    kinds = {kind} if kind == "llama-bench" else {kind, "common"}
    # An option of the program itself comes before one of the same name that all share.
    flags = sorted((f for f in _table(engine) if f.programs & kinds), key=lambda f: kind in f.programs)
    return {name: flag for flag in flags for name in (*flag.names, *flag.negations)}


@functools.cache
def all_flags(engine: Engine) -> Mapping[str, Flag]:
    """The options of all programs of an engine, by every spelling."""
    return {name: flag for flag in _table(engine) for name in (*flag.names, *flag.negations)}


@functools.cache
def _table(engine: Engine) -> tuple[Flag, ...]:
    text = (resources.files(__package__) / f"{engine}.txt").read_text(encoding="utf-8")
    return tuple(_flag(line) for line in text.splitlines() if not line.startswith("#"))


def _flag(line: str) -> Flag:
    count, programs, *words = line.split()
    variable = words.pop()[1:] if words[-1].startswith("$") else ""
    cut = words.index("/") if "/" in words else len(words)
    n_values = None if count == "?" else int(count)
    return Flag(
        tuple(words[:cut]), tuple(words[cut + 1 :]), n_values, frozenset(programs.split(",")), variable
    )
