"""What a text of logs holds: runs with their results, and what is left out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ggplan.measure import speed_logs as speeds
from ggplan.measure.log_lines import Facts
from ggplan.measure.perplexity_logs import PerplexityRun
from ggplan.measure.record import Quantization, Speed
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class Run:
    """One run in a text.

    Attributes
    ----------
    line
        Where it starts.
    facts
        What stands before it.
    quality, speeds, row
        Its result: of llama-perplexity, of a benchmark, or a row of a table of results.
    name, n_bytes
        The file as the result itself names it, "" and 0 where it does not.
    settings
        What tells it from other runs of the file in the same table.
    is_log
        Whether more than the result of llama-perplexity is there.
    """

    line: int
    facts: Facts
    quality: PerplexityRun | None = None
    speeds: tuple[Speed, ...] = ()
    row: Quantization | None = None
    name: str = ""
    n_bytes: int = 0
    settings: str = ""
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run or a row without a result that can be kept: its line, and why."""

    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Log:
    """The runs in a text, in their order.

    Attributes
    ----------
    is_of_llama_cpp
        Whether any line is of llama.cpp's loader.
    """

    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]
    is_of_llama_cpp: bool


def bench_run(found: speeds.BenchRun, line: int, facts: Facts) -> Run:
    """One file of a benchmark with one set of settings, as a run."""
    run = Run(line, facts, speeds=found.speeds, name=found.model)
    return replace(run, n_bytes=found.n_bytes, settings=found.settings)


def bench_results(
    tests: Sequence[speeds.BenchTest], build: str, line: int, facts: Facts
) -> tuple[list[Run], list[LeftOut]]:
    """The runs that tests of llama-bench are of, and the tests that a record does not keep."""
    runs, left_out = [], []
    for found in speeds.bench_runs(tests, build):
        if found.speeds:
            runs.append(bench_run(found, line, facts))
        only = "a record keeps one speed of reading and one of writing at a depth"
        left_out += [LeftOut(t.line or line, f"the test {printable(t.test)}: {only}") for t in found.left_out]
    return runs, left_out


def of_models(runs: list[Run]) -> list[Run]:
    """The runs, where headings name the models of tables: several of them have a row of the same name."""
    above: dict[str, set[str]] = {}
    for run in runs:
        if run.row is not None:
            above.setdefault(run.name, set()).add(run.facts.heading)
    if not any(len(headings - {""}) > 1 for headings in above.values()):
        return runs
    return [
        replace(run, facts=replace(run.facts, model=run.facts.model or run.facts.heading))
        if run.row is not None
        else run
        for run in runs
    ]
