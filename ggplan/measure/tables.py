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
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

from ggplan.errors import MeasureError
from ggplan.measure.log_lines import SIZE, bytes_of
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
from ggplan.text import printable

UNKNOWN_TEXT = Text("text not recorded")
_GIB = 1 << 30
_NUMBER = r"(-?\d{1,12}(?:\.\d{1,12})?(?:[eE][-+]?\d{1,3})?)"
_FIGURE = re.compile(rf"\s*{_NUMBER}\s*%?(?:\s*(?:\+/-|±|_|\ufffd)\s*{_NUMBER}\s*%?)?\s*$")
_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(-?\d{1,12}),(\d{1,12})(?![\d,.])")
_EMPTY = re.compile(r"(?:-+|—|–|\?+|n/?a|[+-]?nan|[+-]?inf(?:inity)?|none|null|tbd|404)?", re.IGNORECASE)
"""What stands in a cell without a figure; 404 is Thireus' mark."""
_MARKUP = re.compile(r"[*`]")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_SIZE = re.compile(SIZE)
_BARE_SIZE = re.compile(r"\d{1,7}(?:\.\d{1,6})?")
_BPW = re.compile(r"\d{1,3}(?:\.\d{1,9})?")
_ERROR = re.compile(_NUMBER)

# Columns by their headings, in lower case without markup, brackets and their contents.
_KLD = r"(?:kld|kl[-_ ]?div(?:ergence)?)"
_COLUMNS: tuple[tuple[str, str], ...] = (
    ("model", r"model"),
    (
        "name",
        r"q(?:uant)?[ _-]?types?|quants?|quantization|name|file(?: ?name)?|gguf|mix|recipe|f?type|link",
    ),
    ("author", r"author|quantizer|by"),
    ("url", r"url"),
    ("note", r"notes?|comments?|remarks?"),
    ("bpw", r"bpw|bits ?(?:/|per) ?weight"),
    ("size", r"(?:(?:file|model)[ _]?)?(?:size|größe)(?:[ _]?(?:in )?[kmgt]i?b)?|[kmgt]i?b"),
    ("ppl", r"(?:(?:final|mean)[ _])?(?:ppl|perplexity)(?:\(q\))?(?:[ _]mean)?"),
    ("error", r"±|\+/-|(?:ppl[ _]?)?(?:±|\+/-|error|err|stderr|std[ _]?err(?:or)?)"),
    ("kld999", r"99\.9 ?% ?kld?|kld ?99\.9 ?%?|kld ?999"),
    ("kld99", r"99(?:\.0)? ?% ?kld|kld ?99(?:\.0)? ?%?"),
    ("kld90", r"90(?:\.0)? ?% ?kld|kld ?90(?:\.0)? ?%?"),
    ("kld_max", rf"max(?:imum)?[ _]{_KLD}|{_KLD}[ _]max(?:imum)?"),
    ("kld_median", rf"median[ _]{_KLD}|{_KLD}[ _]median"),
    ("kld", rf"(?:(?:mean|avg|average)[ _])?{_KLD}(?:[ _](?:mean|avg|average))?"),
    ("delta_p_rms", r"rms[ _](?:δ|delta[ _])p|(?:δ|delta[ _])p[ _]rms"),
    ("delta_p_mean", r"mean[ _](?:δ|delta[ _])p|(?:δ|delta[ _])p[ _]mean"),
    ("same_top", r"same[ _]top(?:[ _]?p)?(?: ?%)?"),
)
_METRICS = (
    "ppl",
    "kld",
    "kld_max",
    "kld999",
    "kld99",
    "kld90",
    "kld_median",
    "delta_p_rms",
    "delta_p_mean",
    "same_top",
)
_SHOWN = 6
# A mean near 0 is printed below it by the errors of its sum.
_LEAST_KLD = 1e-3
_PER_CENT = ("delta_p_rms", "delta_p_mean", "same_top")


@dataclass(frozen=True, slots=True)
class Published:
    """A published quantization, its model ("" if the table does not name it) and its line."""

    model: str
    quantization: Quantization
    line: int = 0


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table are: the place of each that is read, and the unit of sizes.

    `unread` are the headings of those that are not read, `per_cent` the columns whose figures are per cent.
    """

    places: Mapping[str, int]
    unit: str = ""
    unread: tuple[str, ...] = ()
    per_cent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NoFigure:
    """Why a row gives no quantization; `is_damaged` if a cell holds something that is no figure."""

    why: str
    is_damaged: bool = False


@dataclass(frozen=True, slots=True)
class TableRows:
    """The rows of a table, and why others are left out, with their lines.

    `unread` are columns that are not read; `line` is their heading's. `cells_left_out` are sizes and bits
    per weight that cannot be read in rows that are kept.
    """

    rows: tuple[Published, ...]
    left_out: tuple[tuple[int, str], ...]
    unread: tuple[str, ...] = ()
    line: int = 0
    cells_left_out: tuple[tuple[int, str], ...] = ()


def columns_of(headings: Sequence[str]) -> Columns | None:
    """The columns of a table of results; None of a table without names or without figures."""
    places: dict[str, int] = {}
    unit, unread = "", []
    for place, heading in enumerate(headings):
        plain = re.sub(r"[*`]", "", heading).strip()
        bare = re.sub(r"\s*[\[(](?!q\b)[^\])]*[\])]", "", plain.lower()).strip()
        kind = next((kind for kind, pattern in _COLUMNS if re.fullmatch(pattern, bare)), "")
        if not kind or kind in places:
            unread += [plain] if plain else []
            continue
        places[kind] = place
        if kind == "size" and (found := re.search(r"(?<![a-z])([KMGT]i?B)(?![a-z])", plain, re.IGNORECASE)):
            unit = found[1]
    if "name" not in places and "model" in places:
        places["name"] = places.pop("model")
    if "name" not in places or not any(name in places for name in _METRICS):
        return None
    return Columns(places, unit, tuple(unread), frozenset(_PER_CENT))


def unread_words(unread: Sequence[str]) -> str:
    """What is to be told of columns that are not read."""
    names = ", ".join(printable(name)[:40] for name in unread[:_SHOWN])
    more = f" and {len(unread) - _SHOWN:,} more" if len(unread) > _SHOWN else ""
    column = "columns" if len(unread) > 1 else "column"
    return f"what stands in the {column} {names}{more}, which records do not keep"


def with_fractions(columns: Columns, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Columns:
    """The columns, where shares of a table are fractions: none of them is above 1 or has a `%`.

    Changes of probability may all be below one per cent: they count as fractions if the shares do.
    """

    def is_fraction(kind: str) -> bool:
        place = columns.places.get(kind)
        if place is None or "%" in headings[place]:
            return False
        figures = [(row[place], _FIGURE.match(row[place])) for row in rows]
        values = [abs(float(found[1])) for cell, found in figures if found and "%" not in cell]
        return bool(values) and max(values) <= 1 and not any("%" in cell for cell, _ in figures)

    if not is_fraction("same_top"):
        return columns
    return replace(columns, per_cent=frozenset(kind for kind in _PER_CENT if not is_fraction(kind)))


def published_row(columns: Columns, cells: Sequence[str]) -> Quantization | NoFigure:
    """The quantization in a row of a table, or why there is none."""
    named = {kind: _plain(cells[place]) for kind, place in columns.places.items()}
    name = named["name"]
    if _EMPTY.fullmatch(name):
        return NoFigure("a row without a name")
    metrics = _metrics_in(named, columns.per_cent)
    if isinstance(metrics, NoFigure):
        return replace(metrics, why=printable(name)[:60] + metrics.why)
    bpw = _BPW.match(named.get("bpw", ""))
    return Quantization(
        name, FileFacts(n_bytes=_bytes(named.get("size", ""), columns.unit)), float(bpw[0]) if bpw else 0.0,
        author=named.get("author", ""), url=named.get("url", ""), note=named.get("note", ""),
        measurements=(Measurement(UNKNOWN_TEXT, 0, 0, 0, "", metrics),),
    )  # fmt: skip


def _metrics_in(named: Mapping[str, str], per_cent: frozenset[str]) -> dict[str, Metric] | NoFigure:
    """The figures of a row, or why there are none, to be put behind the row's name."""
    metrics: dict[str, Metric] = {}
    for kind in _METRICS:
        cell = named.get(kind, "")
        if _EMPTY.fullmatch(cell):
            continue
        found = _FIGURE.match(cell)
        if found is None:
            return NoFigure(f": the {kind} {printable(cell)[:40]!r} is not a number", is_damaged=True)
        factor = 0.01 if kind in per_cent else 1.0
        error = found[2] if found[2] is not None else named.get("error", "") if kind == "ppl" else ""
        metric = metrics[kind] = _metric(kind, found[1], error, factor)
        if not -1e12 < metric.value < 1e12:
            return NoFigure(f": the {kind} {printable(cell)[:40]!r} cannot be", is_damaged=True)
        if kind == "kld" and metric.value < -_LEAST_KLD:
            return NoFigure(f": the kld {printable(cell)[:40]} cannot be: a mean is not below 0")
        if kind == "ppl" and 0 <= metric.value < 1:
            return NoFigure(f": the ppl {printable(cell)[:40]} cannot be: none is below 1")
    return metrics or NoFigure(f" has no {' or '.join(kind for kind in _METRICS if kind in named)}")


def _plain(cell: str) -> str:
    """A cell without markup and the addresses of links."""
    if "*" in cell or "`" in cell:
        cell = _MARKUP.sub("", cell)
    return (_LINK.sub(r"\1", cell) if "[" in cell else cell).strip()


def unread_cell(columns: Columns, cells: Sequence[str]) -> str:
    """What is to be told of a row whose size or bits per weight are not read, or ""."""
    told = []
    for kind in ("size", "bpw"):
        cell = _MARKUP.sub("", cells[columns.places[kind]]).strip() if kind in columns.places else ""
        if _EMPTY.fullmatch(cell):
            continue
        if kind == "size" and not _bytes(cell, columns.unit):
            number = re.fullmatch(r"[\d.]+", cell)
            told.append(f"the size {printable(cell)[:40]!r}, which {'has no unit' if number else 'is none'}")
        if kind == "bpw" and not re.match(r"\d{1,3}(?:\.\d{1,9})?(?![\d.])", cell):
            told.append(f"the bpw {printable(cell)[:40]!r}, which cannot be")
    if not told:
        return ""
    return f"{printable(cells[columns.places['name']].strip())[:60]}: {' and '.join(told)}"


def _metric(kind: str, value: str, error: str, factor: float) -> Metric:
    number = round(factor * float(value), 12)
    if not error or _ERROR.fullmatch(error.strip()) is None:
        return Metric(number)
    spread = round(factor * float(error), 12)
    if not 0 <= spread < 1e12:
        return Metric(number)
    return Metric(number, spread, "unpaired tokens" if kind == "ppl" else "paired tokens")


def _bytes(cell: str, unit: str) -> int:
    found = _SIZE.match(cell)
    if found is not None:
        return bytes_of(found[1], found[2])
    number = _BARE_SIZE.fullmatch(cell)
    return bytes_of(number[0], unit) if number and unit else 0


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
    if delimiter == ";":
        lines = [(at, [_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in cells]) for at, cells in lines]
    (first, headings), *rows = lines
    known = columns_of([cell.strip() for cell in headings])
    assert known is not None
    for line, cells in rows:
        if len(cells) != len(headings):
            raise MeasureError(f"line {line}: it has {len(cells)} cells, and the heading {len(headings)}")
    columns = with_fractions(known, headings, [cells for _, cells in rows])
    found, left_out, cells_left_out = [], [], []
    for line, cells in rows:
        row = published_row(columns, cells)
        if isinstance(row, NoFigure):
            if row.is_damaged:
                raise MeasureError(f"line {line}: {row.why}")
            left_out.append((line, row.why))
        else:
            own = cells[columns.places["model"]].strip() if "model" in columns.places else model
            _check(row, line)
            found.append(Published(own, row, line))
            if told := unread_cell(columns, cells):
                cells_left_out.append((line, told))
    return TableRows(tuple(found), tuple(left_out), columns.unread, first, tuple(cells_left_out))


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


def _check(quantization: Quantization, line: int) -> None:
    """Refuse figures that cannot be."""
    ppl = quantization.measurements[0].metrics.get("ppl")
    if ppl is not None and ppl.value < 0:
        raise MeasureError(f"line {line}: the ppl {ppl.value:g} cannot be")


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
    return cells[3] == "bpw" or all(_EMPTY.fullmatch(c) or _FIGURE.match(c) for c in cells[3:5])


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
            _check(found, number)
            rows.append(Published(cells[0], found, number))
            if told := unread_cell(columns, cells):
                cells_left_out.append((number, told))
    return TableRows(tuple(rows), tuple(left_out), cells_left_out=tuple(cells_left_out))


def parse_chart_data(value: object) -> Iterator[Published]:
    """The points of forum charts' JSON.

    Raises
    ------
    MeasureError
        If a point has no name or no perplexity.
    """
    title = ""
    if isinstance(value, dict):
        title, value = str(value.get("title", "")), value.get("data")
    if not isinstance(value, list):
        raise MeasureError("this JSON is neither a record nor a list of points")
    for i, point in enumerate(value):
        if not isinstance(point, Mapping) or "name" not in point or "ppl" not in point:
            raise MeasureError(f"point {i + 1} has no name or no ppl")
        if point.get("skip"):
            continue
        found = _FIGURE.match(str(point["ppl"]))
        if found is None:
            raise MeasureError(f"the perplexity of point {i + 1} is {printable(str(point['ppl']))[:40]!r}")
        metric = _metric("ppl", found[1], found[2] or "", 1.0)
        if not 1 <= metric.value < 1e12:
            raise MeasureError(f"the perplexity of point {i + 1} cannot be: {metric.value:g}")
        size, bpw = _number(point.get("size", 0), "size"), _number(point.get("bpw", 0), "bpw")
        quantization = Quantization(
            str(point["name"]), FileFacts(n_bytes=round(size * _GIB)), bpw,
            url=str(point.get("url") or ""), note=str(point.get("comment") or ""),
            measurements=(Measurement(UNKNOWN_TEXT, 0, 0, 0, "", {"ppl": metric}),),
        )  # fmt: skip
        yield Published(title, quantization)


def _number(value: object, what: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise MeasureError(f"the {what} {printable(str(value))[:40]!r} is not a number") from None
    if not 0 <= number < 1e12:
        raise MeasureError(f"the {what} {number} cannot be")
    return number


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
