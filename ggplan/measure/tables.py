"""Published tables of results: rows with a name and figures.

- any table, of markdown or CSV, with a column of names (`quant`, `QTYPE`, `name`, `file`) and one of figures
  (`PPL`, `mean KLD`, `99.9% KLD`, `same top p`), as in llama.cpp's own pages and on model cards; Thireus'
  `QTYPE,bpw,ppl` is one;
- Thireus' database `model|author|quant|bpw|ppl|url`;
- the table that `ggplan measure --csv` writes;
- the data behind forum charts (ik_llama.cpp discussion 715): a JSON list of
  `{"name", "ppl": "3.3469 +/- 0.01936", "size": GiB, "bpw", "url"}`, or an object that holds it as "data".

A row without a figure is left out, and its line told. Facts that such tables do not give (the text, the
context) stay empty, so points of different sources cannot be compared.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast, get_args

from ggplan.errors import MeasureError
from ggplan.measure.record import (
    CSV_HEADER,
    MAX_COUNT,
    METRICS,
    Base,
    ErrorMethod,
    FileFacts,
    Measurement,
    Metric,
    Quantization,
    Text,
    Use,
)
from ggplan.measure.table_rows import (
    Columns,
    NoFigure,
    columns_of,
    is_figure,
    published_row,
    unread_cell,
    with_forms,
)
from ggplan.text import printable


@dataclass(frozen=True, slots=True)
class Published:
    """A published quantization, its model ("" if the table does not name it) and its line."""

    model: str
    quantization: Quantization
    line: int = 0


@dataclass(frozen=True, slots=True)
class TableRows:
    """The rows of a table, and why others are left out, with their lines.

    `unread` are columns that are not read; `line` is their heading's. `cells_left_out` are cells that cannot
    be read in rows that are kept. `place` is what lines are of a text of JSON: points.
    """

    rows: tuple[Published, ...]
    left_out: tuple[tuple[int, str], ...]
    unread: tuple[str, ...] = ()
    line: int = 0
    cells_left_out: tuple[tuple[int, str], ...] = ()
    place: str = "line"


def is_results_csv(text: str) -> bool:
    """Whether the first line is the heading of a table of results, as `QTYPE,bpw,ppl`."""
    return columns_of(cells_of(first_line(text))) is not None


def parse_results_csv(text: str, model: str) -> TableRows:
    """The rows of a CSV table whose file is named after the model.

    Raises
    ------
    MeasureError
        If a figure is not a number; the message has the line.
    """
    delimiter = _delimiter(first_line(text))
    lines = [(at, cells) for at, cells in csv_rows(text, 0, delimiter) if not cells[0].startswith("#")]
    (first, headings), *rows = lines
    known = columns_of([cell.strip() for cell in headings])
    assert known is not None
    for line, cells in rows:
        if len(cells) != len(headings):
            raise MeasureError(f"line {line}: it has {len(cells)} cells, and the heading {len(headings)}")
    columns = with_forms(known, headings, [cells for _, cells in rows])
    if delimiter == ";" and not columns.commas:
        columns = replace(columns, commas=columns.of_numbers)
    return _rows_of(columns, rows, model, "line", first)


def csv_rows(text: str, above: int = 0, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV that are not empty, with their lines; `above` lines stand before it.

    Raises
    ------
    MeasureError
        If a line is no CSV or a cell longer than any; the message has the line.
    """
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield above + reader.line_num, cells
    except csv.Error as error:
        raise MeasureError(f"line {above + reader.line_num}: {error}") from None


def first_line(text: str) -> str:
    """The first line that is not empty and no comment."""
    lines = (line for line in text.split("\n") if line.strip() and not line.startswith("#"))
    return next(lines, "").strip()


def _delimiter(heading: str) -> str:
    """What separates cells, by the heading: a comma, a tab, or `;` where numbers have decimal commas."""
    return max((",", ";", "\t"), key=heading.count)


def cells_of(line: str) -> list[str]:
    """The cells of one line, [] of none."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=_delimiter(line)), [])]
    except csv.Error:
        return []


def _check(quantization: Quantization, where: str) -> None:
    """Refuse figures that cannot be."""
    ppl = quantization.measurements[0].metrics.get("ppl")
    if ppl is not None and ppl.value < 0:
        raise MeasureError(f"{where}: the ppl {ppl.value:g} cannot be")


def is_record_csv(text: str) -> bool:
    """Whether this is the table that `record_to_csv` writes."""
    return first_line(text) == CSV_HEADER


def parse_record_csv(text: str) -> TableRows:
    """The quantizations of a table that `record_to_csv` wrote; without digests, names tell files and texts.

    Raises
    ------
    MeasureError
        If a line is damaged.
    """
    found: dict[tuple[str, str], Quantization] = {}
    (_, headings), *rows = [(at, cells) for at, cells in csv_rows(text) if not cells[0].startswith("#")]
    for line, cells in rows:
        try:
            row = dict(zip(headings, cells, strict=True))
            metric = Metric(float(row["value"]), float(row["error"]) if row["error"] else None)
            if not (math.isfinite(metric.value) and math.isfinite(metric.error or 0)):
                raise ValueError(f"{row['value']} ± {row['error']}")
            if row["metric"] not in METRICS or row["method"] not in get_args(ErrorMethod):
                raise ValueError(f"{row['metric']} by {row['method']}")
            if row["use"] not in get_args(Use):
                raise ValueError(row["use"])
            counts = [int(row[name] or 0) for name in ("n_ctx", "n_chunks", "n_tokens", "n_nan", "n_bytes")]
            bpw = float(row["bpw"] or 0)
            if not (math.isfinite(bpw) and all(0 <= count <= MAX_COUNT for count in counts)):
                raise ValueError("a number that cannot be")
        except (ValueError, TypeError, KeyError) as error:
            raise MeasureError(f"line {line}: it is damaged: {printable(str(error))[:80]}") from None
        metric = replace(metric, method=cast("ErrorMethod", row["method"]))
        key = (row["model"], row["name"])
        q = found.get(key, Quantization(row["name"], FileFacts(n_bytes=counts[4]), bpw))
        new = Measurement(
            Text(row["text"]), counts[0], counts[1], counts[2], row["engine"], {row["metric"]: metric},
            Base(row["base"]), row["build"], use=cast("Use", row["use"]), n_nan=counts[3],
        )  # fmt: skip
        same = [m for m in q.measurements if m.conditions == new.conditions]
        if same and row["metric"] in same[0].metrics:
            raise MeasureError(f"line {line}: {printable(q.name)} has a second {row['metric']}")
        if same:
            new = replace(new, metrics={**same[0].metrics, **new.metrics})
        others = tuple(m for m in q.measurements if m not in same)
        found[key] = replace(q, measurements=(*others, new))
    return TableRows(tuple(Published(model, q) for (model, _), q in found.items()), ())


def is_thireus_database(text: str) -> bool:
    """Whether the lines are `model|author|quant|bpw|ppl|url`, without the address if there is none."""
    cells = [cell.strip().lower() for cell in first_line(text).split("|")]
    if len(cells) not in (5, 6) or not cells[0]:
        return False
    return cells[3] == "bpw" or all(is_figure(c, or_empty=True) for c in cells[3:5])


def parse_thireus_database(text: str) -> TableRows:
    """The rows of a database; lines that begin with `#` are ignored.

    Raises
    ------
    MeasureError
        If a line has another number of cells, or a figure is not a number; the message has the line.
    """
    columns = Columns({"model": 0, "author": 1, "name": 2, "bpw": 3, "ppl": 4, "url": 5})
    rows, left_out, cells_left_out = [], [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) not in (5, 6):
            raise MeasureError(
                f"line {number}: it has {len(cells)} cells, not model|author|quant|bpw|ppl|url"
            )
        if [cell.lower() for cell in cells[3:5]] == ["bpw", "ppl"]:
            continue  # a heading
        found = published_row(columns, [*cells, ""][:6])
        if isinstance(found, NoFigure):
            if found.is_damaged:
                raise MeasureError(f"line {number}: {found.why}")
            left_out.append((number, found.why))
        elif not cells[0]:
            left_out.append((number, f"{printable(found.name)} has no model"))
        else:
            _check(found, f"line {number}")
            rows.append(Published(cells[0], found, number))
            if told := unread_cell(columns, [*cells, ""]):
                cells_left_out.append((number, told))
    return TableRows(tuple(rows), tuple(left_out), cells_left_out=tuple(cells_left_out))


def parse_chart_data(value: object) -> TableRows:
    """The points of forum charts' JSON: the names of their fields are those of columns, sizes are in GiB.

    Raises
    ------
    MeasureError
        If a point has no name or perplexity at all, or a figure is not a number; the message has its number.
    """
    title = ""
    if isinstance(value, dict):
        title, value = str(value.get("title", "")), value.get("data")
    if not isinstance(value, list):
        raise MeasureError("this JSON is neither a record nor a list of points")
    points: list[tuple[int, Mapping[str, object]]] = []
    for number, point in enumerate(value, 1):
        if not isinstance(point, Mapping) or "name" not in point or "ppl" not in point:
            raise MeasureError(f"point {number} has no name or no ppl")
        if not point.get("skip"):
            points.append((number, point))
    keys = list(dict.fromkeys(key for _, point in points for key in point if key not in _NOT_DATA))
    columns = columns_of(keys)
    if columns is None:
        return TableRows((), ())
    columns = replace(columns, unit=columns.unit or "GiB")
    rows = [(n, ["" if point.get(k) is None else str(point[k]) for k in keys]) for n, point in points]
    return _rows_of(with_forms(columns, keys, [cells for _, cells in rows]), rows, title, "point")


# What the page draws by, and says nothing of a file.
_NOT_DATA = ("skip", "legend", "color", "colour", "marker", "style")


def _rows_of(
    columns: Columns, rows: list[tuple[int, list[str]]], model: str, place: str, line: int = 0
) -> TableRows:
    """The rows of a table, which have as many cells as it has columns.

    Raises
    ------
    MeasureError
        If a figure is not a number; the message has the line.
    """
    found, left_out, cells_left_out = [], [], []
    for at, cells in rows:
        row = published_row(columns, cells)
        if isinstance(row, NoFigure):
            if row.is_damaged:
                raise MeasureError(f"{place} {at}: {row.why}")
            left_out.append((at, row.why))
            continue
        own = cells[columns.places["model"]].strip() if "model" in columns.places else model
        _check(row, f"{place} {at}")
        found.append(Published(own, row, at if place == "line" else 0))
        if told := unread_cell(columns, cells):
            cells_left_out.append((at, told))
    return TableRows(tuple(found), tuple(left_out), columns.unread, line, tuple(cells_left_out), place)


def json_documents(text: str) -> list[object]:
    """The JSON documents that a text consists of, one after another; [] of any other text."""
    found: list[object] = []
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found.append(value)
    return found
