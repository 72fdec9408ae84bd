"""What a text of logs holds: runs with their results, and what is left out of it.

llama-bench's CSV and JSON are no lines of a log: their runs are read here as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ggplan.measure import speed_logs as speeds
from ggplan.measure.log_lines import NO_FACTS, Facts
from ggplan.measure.perplexity_logs import PerplexityRun
from ggplan.measure.record import Quantization, Speed
from ggplan.measure.speed_logs import BenchTest
from ggplan.measure.tables import json_documents


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


def bench_runs_in(text: str) -> list[Run]:
    """The runs of llama-bench's CSV or JSON, which are no lines of a log; [] for any other text.

    Raises
    ------
    MeasureError
        If a test is not numbers.
    """
    return [bench_run(run, 0, NO_FACTS) for tests in machine_tests(text) for run in speeds.bench_runs(tests)]


def machine_tests(text: str) -> list[list[BenchTest]]:
    """The tests of each of llama-bench's CSV or JSON tables in a text.

    Raises
    ------
    MeasureError
        If a test is not numbers.
    """
    groups = speeds.bench_csv(text)
    if text.lstrip().startswith("["):
        lists = [value for value in json_documents(text) if isinstance(value, list)]
        try:
            groups += [
                list(speeds.bench_items([i for i in items if isinstance(i, dict) and "avg_ts" in i]))
                for items in lists
            ]
        except ValueError as error:
            raise speeds.not_numbers(0, error) from None
    return groups


def bench_run(found: speeds.BenchRun, line: int, facts: Facts) -> Run:
    """One file of a benchmark with one set of settings, as a run."""
    run = Run(line, facts, speeds=found.speeds, name=found.model)
    return replace(run, n_bytes=found.n_bytes, settings=found.settings)
