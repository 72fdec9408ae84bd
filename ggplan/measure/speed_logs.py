"""Results of llama-sweep-bench (ik_llama.cpp) and llama-bench.

A sweep is one table, as markdown or JSON lines: a row for each number of tokens in the cache, which grows by
the tokens of a prompt from row to row. A row that does not go on so is another run's.

llama-bench prints a table of tests, as markdown, CSV, JSON or JSON lines. Tests of one file with the same
settings are one run; a test that comes again is another run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ggplan.errors import MeasureError
from ggplan.measure.log_lines import SIZE, Facts, bytes_of, types_agree, without_ending
from ggplan.measure.record import MAX_COUNT, SWEEP_ENGINE, Speed
from ggplan.text import printable

_SWEEP_START = re.compile(r"^main: n_kv_max = \d+,.*?n_ubatch = (\d{1,9})")
_ELLIPSIS = re.compile(r"[\s|\[(<]{0,40}(?:\.{3,9}|…|snip)[\s|\])>.…]{0,80}")
_RATE = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
SWEEP_HEADINGS = ("PP", "TG", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s")
_TEST = re.compile(r"(pp|tg) ?(\d{1,9})(?: @ d(\d{1,15}))?$")
# What differs between the tests of one run.
_MEASURED = ("test", "t/s", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts",
             "stddev_ts", "samples_ns", "samples_ts")  # fmt: skip
_JSON_KEYS = ("build_commit", "n_prompt", "avg_ts", "n_kv", "n_kv_max", "speed_pp", "speed_tg")
_LONGEST_ITEM = 4000
_MAX_RATE = 1e9
_FILE_KEYS = ("model", "model_filename", "model_type", "size", "model_size", "params", "model_n_params",
              "build_commit", "build_number", "cpu_info", "gpu_info")  # fmt: skip


@dataclass(slots=True)
class OpenSweep:
    """A sweep whose rows are being read.

    Attributes
    ----------
    headings
        The columns of its table, () of JSON lines and before the table.
    n_prompt, n_written
        Tokens that each row reads and writes.
    is_log
        Whether it is a whole log and no table alone: its rows are without gaps, from 0 on.
    wrong
        Why the run is no sweep that can be read, or "".
    is_shortened
        Whether the line before says that rows were taken out: `...`.
    """

    line: int
    facts: Facts
    headings: tuple[str, ...] = ()
    n_prompt: int = 0
    n_written: int = 0
    is_log: bool = False
    speeds: list[Speed] = field(default_factory=list)
    wrong: str = ""
    is_shortened: bool = False

    def unfinished(self) -> str:
        """Why there is no result, or ""."""
        return self.wrong or (
            "" if self.speeds else "this is a sweep-bench log without a row: it ended before the first"
        )


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One row of a sweep: tokens read and written, with `speed.n_kv` tokens in the cache before."""

    n_prompt: int
    n_written: int
    speed: Speed


@dataclass(frozen=True, slots=True)
class BenchTest:
    """One test of llama-bench.

    Attributes
    ----------
    model
        The model as the line names it.
    test
        `pp512 @ d4096`.
    settings
        All that must be equal for two tests to be of one run, by column.
    speed
        None of tests that mix reading and writing.
    line
        Where it stands, 0 where that is not known.
    """

    model: str
    n_bytes: int
    test: str
    settings: Mapping[str, str]
    speed: Speed | None
    line: int = 0


@dataclass(slots=True)
class OpenBench:
    """A table of llama-bench whose rows are being read."""

    line: int
    facts: Facts
    headings: tuple[str, ...] = ()
    tests: list[BenchTest] = field(default_factory=list)
    build: str = ""

    def unfinished(self) -> str:
        """Why there is no result, or ""."""
        return (
            ""
            if any(t.speed for t in self.tests)
            else "a llama-bench table without a test of reading or writing"
        )


@dataclass(frozen=True, slots=True)
class BenchRun:
    """One file with one set of settings; `settings` in words only where several runs of the file differ."""

    model: str
    n_bytes: int
    settings: str
    speeds: tuple[Speed, ...]
    left_out: tuple[BenchTest, ...]


def is_ellipsis(line: str) -> bool:
    """Whether a line, or a row of a table, stands for others that a person took out."""
    return _ELLIPSIS.fullmatch(line) is not None


def is_start(line: str) -> bool:
    """Whether a line is the start of a sweep."""
    return line.startswith("main: n_kv_max") and _SWEEP_START.match(line) is not None


def sweep_at(line: str, number: int, facts: Facts) -> OpenSweep:
    """The sweep that begins with the line `main: n_kv_max = ...` (`is_start`)."""
    found = _SWEEP_START.match(line)
    assert found is not None
    run = OpenSweep(number, facts, n_prompt=int(found[1]), is_log=True)
    if "is_pp_shared" in line:
        run.wrong = "this is a log of llama-batched-bench, whose speeds are of several sequences at once"
    return run


def is_sweep(headings: Sequence[str]) -> bool:
    """Whether a table is of llama-sweep-bench, or of llama-batched-bench, which has one column more."""
    return "N_KV" in headings and "S_PP t/s" in headings


def has_sweep_cells(cells: Sequence[str]) -> bool:
    """Whether cells without a heading are numbers, as many as a row of a sweep has."""
    return len(cells) == len(SWEEP_HEADINGS) and all(_RATE.fullmatch(cell) for cell in cells)


def sweep_row(cells: Mapping[str, object]) -> SweepRow | None:
    """A row of a table or a JSON line of a sweep; None where it is not numbers that can be."""
    names = ("PP", "TG", "N_KV", "S_PP t/s", "S_TG t/s")
    keys = names if "N_KV" in cells else ("pp", "tg", "n_kv", "speed_pp", "speed_tg")
    pp, tg, n_kv, reading, writing = (cells.get(key) for key in keys)
    try:
        written = None if writing is None else _rate(writing)
        speed = Speed(_count(n_kv), _rate(reading), written, SWEEP_ENGINE)
        return SweepRow(_count(pp or 0), _count(tg or 0), speed)
    except ValueError:
        return None


def continues(run: OpenSweep, row: SweepRow) -> bool:
    """Whether a row may be the next of a sweep."""
    if not run.speeds:
        if run.is_log:
            return row.speed.n_kv == 0 and row.n_prompt == run.n_prompt
        return True
    before = run.speeds[-1].n_kv
    step = row.speed.n_kv - before
    same = (row.n_prompt, row.n_written) == (run.n_prompt, run.n_written)
    if run.is_shortened:
        return same and step > 0 and step % max(row.n_prompt, 1) == 0
    return same and step > 0 and (not run.is_log or step == row.n_prompt)


def take(run: OpenSweep, row: SweepRow) -> None:
    """Add a row."""
    run.n_prompt, run.n_written = row.n_prompt, row.n_written
    run.speeds.append(row.speed)
    run.is_shortened = False


def is_bench(headings: Sequence[str]) -> bool:
    """Whether a table is of llama-bench."""
    return {"model", "test", "t/s"} <= set(headings)


def is_bench_row(cells: Mapping[str, str]) -> bool:
    """Whether a row as long as those of llama-bench's table is one: its test reads (pp) or writes (tg)."""
    return cells["test"].startswith(("pp", "tg"))


def bench_test(cells: Mapping[str, str], line: int) -> BenchTest | None:
    """A row of llama-bench's table; None where it holds no rate."""
    value = _RATE.match(cells["t/s"])
    if value is None or not float(value[0]) < _MAX_RATE:
        return None
    size = re.match(SIZE, cells.get("size", ""))
    found = _TEST.match(cells["test"])
    settings = {key: cell for key, cell in cells.items() if key not in _MEASURED}
    speed = _speed(found[1], int(found[3] or 0), float(value[0])) if found else None
    n_bytes = int(float(size[1]) * bytes_of("1", size[2])) if size else 0
    return BenchTest(cells["model"], n_bytes, cells["test"], settings, speed, line)


def bench_item(item: Mapping[str, object], line: int) -> BenchTest | None:
    """A test in llama-bench's forms for machines: CSV, JSON and JSON lines; None where it has no rate.

    Raises
    ------
    ValueError
        If it is not numbers, or not such as can be.
    """
    if item["avg_ts"] is None or item["avg_ts"] == "":
        return None
    n_prompt, n_gen = _count(item.get("n_prompt") or 0), _count(item.get("n_gen") or 0)
    depth, rate = _count(item.get("n_depth") or 0), _rate(item["avg_ts"])
    n_bytes = _count(item.get("model_size") or 0)
    kind = "pp" if n_prompt and not n_gen else "tg" if n_gen and not n_prompt else ""
    speed = _speed(kind, depth, rate) if kind else None
    if speed is not None:
        build = f"{item.get('build_number', '')} ({item.get('build_commit', '')})"
        hardware = str(item.get("gpu_info") or item.get("cpu_info") or "")
        speed = replace(speed, build=build, hardware=hardware)
    test = f"{kind}{n_prompt or n_gen}" if kind else f"pp{n_prompt}+tg{n_gen}"
    settings = {str(key): str(value) for key, value in item.items() if key not in _MEASURED}
    name = str(item.get("model_filename", ""))
    return BenchTest(name, n_bytes, test + (f" @ d{depth}" if depth else ""), settings, speed, line)


def not_numbers(line: int, error: Exception) -> MeasureError:
    """The error of a damaged test."""
    return MeasureError(f"line {line}: a test of the benchmark is not numbers: {printable(str(error))[:80]}")


def json_line(line: str) -> dict[str, object] | None:
    """The JSON object that a line is, or None."""
    if not (line.startswith("{") and line.rstrip().endswith("}")):
        return None
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) else None


def is_cut_json(line: str) -> bool:
    """Whether a line is the beginning of a JSON line of a benchmark."""
    return line.startswith("{") and any(f'"{key}"' in line[:_LONGEST_ITEM] for key in _JSON_KEYS)


def is_cut_row(run: OpenSweep | OpenBench, cells: Sequence[str]) -> bool:
    """Whether cells are a row of an open table that has too few of them."""
    if not run.headings or len(cells) >= len(run.headings):
        return False
    if isinstance(run, OpenSweep):
        return all(_RATE.fullmatch(cell) for cell in cells if cell)
    return not run.tests or cells[0] in {test.model for test in run.tests[-8:]}


def facts_of_bench(run: OpenBench) -> Facts:
    """The facts before a table of llama-bench that are of its rows: of several models, no file is known.

    A heading or command line that names a file tells more than the model's description in the rows.
    """
    (model, *others) = {(test.model, test.n_bytes) for test in run.tests}
    facts = run.facts
    name = facts.name or without_ending(facts.file)
    if others or not (facts.file or types_agree(name, model[0])):
        return Facts(model="" if others else facts.model, build=facts.build)
    return replace(facts, name=name)


def bench_runs(tests: Sequence[BenchTest], build: str = "") -> list[BenchRun]:
    """The runs that tests are of."""
    groups: list[tuple[Mapping[str, str], dict[str, BenchTest]]] = []
    last: dict[frozenset[tuple[str, str]], dict[str, BenchTest]] = {}
    for test in tests:
        key = frozenset(test.settings.items())
        if test.test in last.get(key, {test.test: test}):
            last[key] = {}
            groups.append((test.settings, last[key]))
        last[key][test.test] = test
    keys = {key for settings, _ in groups for key in settings if key not in _FILE_KEYS}
    varied = {key for key in keys if len({settings.get(key) for settings, _ in groups}) > 1}
    runs = []
    for settings, by_name in groups:
        group = list(by_name.values())
        speeds, left_out = _merged(group, build)
        if speeds or left_out:
            words = ", ".join(f"{key} {settings[key]}" for key in settings if key in varied)
            runs.append(BenchRun(group[0].model, group[0].n_bytes, words, speeds, left_out))
    return runs


def _merged(tests: Sequence[BenchTest], build: str) -> tuple[tuple[Speed, ...], tuple[BenchTest, ...]]:
    """One speed for each number of tokens in the cache; reading and writing are two tests.

    A record has one speed of reading at a place: of `pp512` and `pp2048` the first counts, and the other is
    returned.
    """
    merged: dict[int, Speed] = {}
    left_out = []
    for test in tests:
        new = test.speed
        if new is None:
            left_out.append(test)
            continue
        old = merged.get(new.n_kv, replace(new, pp=None, tg=None))
        if (new.pp is not None and old.pp is not None) or (new.tg is not None and old.tg is not None):
            left_out.append(test)
            continue
        pp, tg = (new.pp if new.pp is not None else old.pp), (new.tg if new.tg is not None else old.tg)
        merged[new.n_kv] = replace(new, pp=pp, tg=tg, build=new.build or build)
    return tuple(merged.values()), tuple(left_out)


def _speed(kind: str, depth: int, rate: float) -> Speed:
    pp, tg = (rate, None) if kind == "pp" else (None, rate)
    return Speed(depth, pp, tg, "llama-bench")


def _count(value: object) -> int:
    number = int(str(value))
    if not 0 <= number <= MAX_COUNT:
        raise ValueError(f"{str(value)[:40]} is no count")
    return number


def _rate(value: object) -> float:
    number = float(str(value))
    if not (math.isfinite(number) and 0 <= number < _MAX_RATE):
        raise ValueError(f"{str(value)[:40]} is no rate")
    return number
