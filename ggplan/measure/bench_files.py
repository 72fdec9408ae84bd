"""llama-bench's CSV and JSON, which are no lines of a log: their tests are taken out of a text as a whole.

They may stand alone or among the lines of a log, for `2>&1` puts those before and behind them. A row or an
item that is cut short is told with its line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ggplan.errors import MeasureError
from ggplan.measure.log_runs import LeftOut
from ggplan.measure.speed_logs import BenchTest, bench_item, not_numbers

_ARRAY = re.compile(r"^[ \t]*\[\s*(?=\{)", re.MULTILINE)
_BETWEEN = re.compile(r"[\s,]*")
_CSV_HEAD = re.compile(r'^"?build_commit"?,.*avg_ts', re.MULTILINE)
_COMMIT = re.compile(r'"?(?:[0-9a-f]{3,40}|unknown)"?,')


@dataclass(frozen=True, slots=True)
class MachineTests:
    """What the tables for machines in a text hold.

    Attributes
    ----------
    groups
        The tests of each table.
    left_out
        Items and rows that give no test.
    rest
        The text without the tables of JSON, with as many lines.
    """

    groups: tuple[tuple[BenchTest, ...], ...]
    left_out: tuple[LeftOut, ...]
    rest: str


@dataclass(slots=True)
class _Reading:
    groups: list[list[BenchTest]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def take(self, item: Mapping[str, object], line: int) -> None:
        """Take a test."""
        try:
            test = bench_item(item, line)
        except ValueError as error:
            raise not_numbers(line, error) from None
        if test is None:
            self.left_out.append(LeftOut(line, "a test of llama-bench without a rate"))
        else:
            self.groups[-1].append(test)


def machine_tests(text: str) -> MachineTests:
    """The tests of llama-bench's CSV and JSON tables in a text.

    Raises
    ------
    MeasureError
        If a test is not numbers, or a line of CSV damaged; the message has the line.
    """
    reading = _Reading()
    rest = _read_json(text, reading) if '"avg_ts"' in text or '"build_commit"' in text else text
    if "build_commit" in rest and _CSV_HEAD.search(rest):
        _read_csv(rest, reading)
    groups = tuple(tuple(group) for group in reading.groups if group)
    return MachineTests(groups, tuple(reading.left_out), rest)


def _read_json(text: str, reading: _Reading) -> str:
    """Read the lists of tests, and give the text without them."""
    decoder = json.JSONDecoder()
    kept, after, line, counted = [], 0, 1, 0
    for start in _ARRAY.finditer(text):
        if start.start() < after:
            continue
        at, items = start.end(), list[tuple[int, object]]()
        is_whole = False
        while True:
            line, counted = line + text.count("\n", counted, at), at
            if is_whole := text.startswith("]", at):
                at += 1
                break
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                break
            items.append((line, value))
            at = _BETWEEN.match(text, end).end()  # type: ignore[union-attr]
        is_bench = any(isinstance(item, dict) and "avg_ts" in item for _, item in items)
        if not is_bench and (is_whole or '"build_commit"' not in text[at : at + 1000]):
            continue
        reading.groups.append([])
        for number, item in items:
            if isinstance(item, dict) and "avg_ts" in item:
                reading.take(item, number)
            else:
                reading.left_out.append(LeftOut(number, "an item of a llama-bench list that is no test"))
        if not is_whole and text[at : at + 1]:
            reading.left_out.append(LeftOut(line, "a test of llama-bench that is cut short"))
        elif not is_whole:
            reading.left_out.append(LeftOut(line, "a list of llama-bench that ends before its last test"))
        if not is_whole:
            # The lines of the test that is cut, up to one that is of no JSON.
            at = _end_of_cut(text, at)
        kept += [text[after : start.start()], "\n" * text.count("\n", start.start(), at)]
        after = at
    return "".join([*kept, text[after:]])


def _end_of_cut(text: str, at: int) -> int:
    """The end of the lines that belong to an item that is cut."""
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        if text[at:end].strip()[:1] not in ('"', "{", "[", "}", "]", ""):
            return at
        at = end + 1
    return len(text)


def _read_csv(text: str, reading: _Reading) -> None:
    headings: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        is_head = _CSV_HEAD.match(line) is not None
        if not (is_head or headings) or "," not in line:
            continue
        is_row = _COMMIT.match(line) is not None
        try:
            cells = next(csv.reader([line]), [])
        except csv.Error as error:
            if is_row:
                raise MeasureError(f"line {number}: {error}") from None
            continue
        if is_head:
            headings = cells
            reading.groups.append([])
        elif len(cells) == len(headings):
            reading.take(dict(zip(headings, cells, strict=True)), number)
        elif is_row:
            why = f"a row of llama-bench with {len(cells)} cells, and the heading has {len(headings)}"
            reading.left_out.append(LeftOut(number, why))
