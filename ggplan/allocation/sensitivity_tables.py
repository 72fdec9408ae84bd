"""Published tables of sensitivities: how much a model loses when tensors get a type.

Thireus' GGUF Tool Suite publishes them as CSV, `kld_results.csv`, `ppl_results.csv` and `topp_results.csv`:

    QTYPE,blk.0.attn_k.weight,blk.0.attn_q.weight,...    the model with this tensor alone at the type
    iq1_kt,0.005400,404,...

    QTYPE,bpw,group0                                     the model with all tensors of a group at the type;
    q4_K,4.509094,0.023768                               group0 is the whole model

Other forms hold the same: `tensor,...,kld` with a line for each tensor, whose type a comment tells (`# ...
when this tensor alone is iq1_kt`), `tensor,q4_K,q8_0,...` with a line for each tensor and a column for each
type, and `model,bf16,q8_0,...` with a line for each model.

Cells may be separated by semicolons or tabs, and the column `tensor` be called name or tensor_name and stand
anywhere. Beside a figure, a column `error` may have its standard error. The columns `columns`, `rows` and
`slices` are ggml's ne0, ne1, ne2.

A figure that was not measured is an empty cell, `NA`, 404, or 0: no type but an unquantized one loses exactly
nothing, and no perplexity is 0. (0 per cent of equal tokens can be measured, and a loss of 0.00 %.)

Perplexities in per cent (`0.01%`) are how much larger they are than the unquantized model's.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ggplan.allocation.sensitivities import Figure, Of, Sensitivities, Sensitivity
from ggplan.errors import MeasureError, TypeNameError
from ggplan.ggml_types import parse_type
from ggplan.substitutes import read_limited
from ggplan.text import decode_text, printable

_MAX_BYTES = 64 << 20
_START = 4096
_MOST_KLD = 1e6  # nats; no logits are so far apart
_HEADS = ("qtype", "tensor", "model")
_TENSOR_HEADS = ("tensor", "tensor_name", "tensor name", "name")
_ERROR_HEADS = ("error", "stderr", "std_error", "standard error", "se", "kld_error", "kld_stderr", "kld_se")
_EMPTY = ("", "-", "na", "n/a", "#n/a", "null", "none")
_SEPARATORS = ";\t"
_UNQUANTIZED = ("bf16", "f16", "f32")
_WHOLE = "group0"
_TENSOR = re.compile(r"[A-Za-z]\w*(?:\.\w+)+")
_SHAPE = ("columns", "rows", "slices")
_FIGURE_NAMES: tuple[tuple[Figure, str], ...] = (
    ("kld", r"kld|kl[ _-]divergence"),
    ("dppl", r"(?:\bd|delta[ _-]?)ppl"),
    ("ppl", r"(?<!\bd)(?<!delta)(?<!delta[ _-])ppl|perplexity"),
    ("top_p", r"top[ _-]?p"),
)
_NO_FIGURE = r"(?:0*(?:\.0*)?|404(?:\.0*)?|[+-]?nan|-|#?n/?a|null|none)\s*%?"
_ALONE = re.compile(r"\bis (\w+)")


@dataclass(frozen=True, slots=True)
class _Row:
    """The cells of a line, and the line's number."""

    line: int
    cells: tuple[str, ...]


def is_sensitivity_table(path: str | Path) -> bool:
    """Whether a file begins as such a table does; False where there is no file."""
    try:
        if not Path(path).is_file():  # a pipe would wait for a writer
            return False
        with open(path, "rb") as file:
            start = decode_text(file.read(_START))
    except (OSError, ValueError):
        return False
    lines = (line for line in start.split("\n") if line.strip() and not line.startswith("#"))
    head = next(lines, "")
    first, comma, _ = head.partition(_separator(head))
    return bool(comma) and first.strip().strip('"').lower() in _HEADS


def read_sensitivities(
    path: str | Path, *, figure: Figure | None = None, groups: Mapping[str, str] | None = None
) -> tuple[Sensitivities, ...]:
    """Read a table of sensitivities.

    Parameters
    ----------
    figure
        What the figures are; by default as the table or the name of the file says.
    groups
        Patterns of the tensors of groups, by the groups' names; `group0` is the whole model.

    Returns
    -------
    One value; of a table with a line for each model, one for each.

    Raises
    ------
    MeasureError
        If the file cannot be read or is no such table, with the line.
    """
    path = Path(path)
    shown = printable(str(path))
    if path.exists() and not path.is_file():
        raise MeasureError(f"{shown} is not a file")
    text = decode_text(read_limited(path, _MAX_BYTES, "table of sensitivities", MeasureError))
    remarks = tuple(line.lstrip("# ").strip() for line in text.split("\n") if line.startswith("#"))
    try:
        head, *rows = _rows(text)
        kind = head.cells[0].lower() if head.cells else ""
        if kind not in _HEADS:
            raise MeasureError(
                "its heading begins with none of QTYPE, tensor, model",
                hint="a table by hand has the columns tensor,type,kld",
            )
        if not {name.lower() for name in head.cells} - {"qtype", "bpw", "ppl", "kld"}:
            raise MeasureError(
                "it is a table of results of whole files, not of sensitivities",
                hint="`ggplan measure --parse` reads it",
            )
        said = _figure_in(" ".join(remarks))
        _check_asked(figure, said, "its comments say")
        known = figure or said or figure_of_name(path)
        if kind == "tensor" and not _has_columns_of_types(head):
            return (_by_lines(head, rows, remarks, figure),)
        if known is None:
            raise MeasureError(
                "neither a comment nor the file's name says what its figures are",
                hint=f"say what they are: {', '.join(get_args(Figure))} (`--figure`)",
            )
        if kind != "qtype":
            return _by_rows(head, rows, remarks, known)
        return (_by_types(head, rows, remarks, known, groups or {}),)
    except MeasureError as error:
        raise MeasureError(f"{shown}: {error.message}", hint=error.hint) from None


def _separator(head: str) -> str:
    """What is between the cells of a heading."""
    return next((mark for mark in _SEPARATORS if mark in head and "," not in head), ",")


def _rows(text: str) -> list[_Row]:
    """The lines of the table, all as long as the first, the tensor's name in front."""
    head = next((line for line in text.split("\n") if line.strip() and not line.startswith("#")), "")
    reader = csv.reader(io.StringIO(text), delimiter=_separator(head))
    rows: list[_Row] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells) or cells[0].startswith("#"):
                continue
            rows.append(_Row(reader.line_num, tuple(cell.strip() for cell in cells)))
            if len(cells) != len(rows[0].cells):
                raise MeasureError(
                    f"line {reader.line_num}: it has {len(cells)} cells, and the heading {len(rows[0].cells)}"
                )
    except csv.Error as error:
        raise MeasureError(f"line {reader.line_num}: {error}") from None
    if len(rows) < 2:
        raise MeasureError("the table has no line below its heading")
    at = next((i for i, name in enumerate(rows[0].cells) if name.lower() in _TENSOR_HEADS), None)
    if at is not None:
        first = [row.cells[at] for row in rows]
        first[0] = "tensor"
        rows = [
            _Row(row.line, (name, *row.cells[:at], *row.cells[at + 1 :]))
            for row, name in zip(rows, first, strict=True)
        ]
    twice = [name for name, count in Counter(rows[0].cells).items() if count > 1]
    if twice:
        raise MeasureError(f"line {rows[0].line}: two columns are called {printable(twice[0])!r}")
    return rows


def figure_of_name(path: str | Path) -> Figure | None:
    """What the figures of a table are by the name of its file; None if the name does not say."""
    return _figure_in(Path(path).stem)


def _check_asked(asked: Figure | None, said: Figure | None, who: str) -> None:
    """Refuse to take figures for others than the table says."""
    if asked and said and asked != said and {asked, said} != {"ppl", "dppl"}:
        raise MeasureError(f"{who} that its figures are {said}, not {asked}", hint="leave --figure out")


def _in_per_cent(head: _Row, rows: Sequence[_Row], places: Sequence[int], figure: Figure) -> Figure:
    """The figure that the cells hold: a perplexity in per cent is a loss of perplexity.

    Raises
    ------
    MeasureError
        If some are in per cent and others are not, or it is a KL divergence.
    """
    first: dict[bool, tuple[_Row, int]] = {}
    for row in rows:
        for place in places:
            cell = row.cells[place]
            if re.fullmatch(_NO_FIGURE, cell, re.IGNORECASE) is None:
                first.setdefault(cell.endswith("%"), (row, place))
    if True not in first or figure == "top_p":
        return figure
    row, place = first[True]
    at = f"line {row.line}, column {printable(head.cells[place])}: {printable(row.cells[place])[:40]!r}"
    if figure == "kld":
        raise MeasureError(f"{at} is per cent, and a KL divergence is in nats")
    if False in first:
        other, there = first[False]
        raise MeasureError(
            f"{at} is per cent, and {printable(other.cells[there])[:40]!r} on line {other.line} is not"
        )
    return "dppl"


def _figure_in(text: str) -> Figure | None:
    found = [figure for figure, pattern in _FIGURE_NAMES if re.search(pattern, text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def _by_types(
    head: _Row, rows: Sequence[_Row], remarks: tuple[str, ...], figure: Figure, groups: Mapping[str, str]
) -> Sensitivities:
    """A table with a line for each type and a column for each tensor or group."""
    columns = {name: place for place, name in enumerate(head.cells[1:], 1)}
    bpw_place = columns.pop("bpw", None)
    patterns = {name: _pattern(name, head.line, groups) for name in columns}
    of: Of = "tensor" if all(map(_TENSOR.fullmatch, columns)) else "group"
    if list(columns) == [_WHOLE]:
        of = "model"
    figure = _in_per_cent(head, rows, list(columns.values()), figure)
    figures: dict[str, dict[str, float]] = {name: {} for name in columns}
    missing: dict[str, list[str]] = {name: [] for name in columns}
    marks: dict[str, int] = {}
    bpw: dict[str, float] = {}
    seen: dict[str, int] = {}
    for row in rows:
        type_ = _type(row.cells[0], row.line)
        if type_ in seen:
            raise MeasureError(f"line {row.line}: {type_} is also on line {seen[type_]}")
        seen[type_] = row.line
        if bpw_place is not None and (value := _number(row, bpw_place, "bpw")) not in (None, 0.0, 404.0):
            bpw[type_] = float(value or 0)
        for name, place in columns.items():
            found = _figure(row, place, name, type_, figure, marks)
            if found is None:
                missing[name].append(type_)
            else:
                figures[name][type_] = found
    places = tuple(Sensitivity(n, patterns[n], figures[n], tuple(missing[n])) for n in columns)
    return Sensitivities(figure, of, places, bpw, remarks=remarks, marks=marks)


def _pattern(name: str, line: int, groups: Mapping[str, str]) -> str:
    if name in groups:
        try:
            re.compile(groups[name])
        except re.error as error:
            raise MeasureError(f"the pattern of {printable(name)} is none: {error}") from None
        return groups[name]
    if name == _WHOLE:
        return ""
    if _TENSOR.fullmatch(name):
        return f"^{re.escape(name)}$"
    if re.fullmatch(r"group\d+", name):
        raise MeasureError(
            f"line {line}: {name} is a group whose tensors the table does not name",
            hint="give the patterns of groups to `read_sensitivities`",
        )
    raise MeasureError(f"line {line}: the column {printable(name)!r} is neither a tensor nor a group")


def _by_lines(
    head: _Row, rows: Sequence[_Row], remarks: tuple[str, ...], asked: Figure | None
) -> Sensitivities:
    """A table with a line for each tensor."""
    columns = {name.lower(): place for place, name in enumerate(head.cells)}
    as_written = dict(zip(columns, head.cells, strict=False))
    type_place = next((columns[name] for name in ("type", "qtype") if name in columns), None)
    error_place = next((columns[name] for name in _ERROR_HEADS if name in columns), None)
    values = [name for name in columns if _figure_in(name) is not None and name not in _ERROR_HEADS]
    known = ("tensor", "type", "qtype", *_SHAPE, *_ERROR_HEADS, *values)
    unknown = [name for name in columns if name not in known]
    if unknown or len(values) != 1:
        what = (
            f"the column {printable(as_written[unknown[0]])!r} is not known"
            if unknown
            else "it has no figures, or several"
        )
        raise MeasureError(
            f"line {head.line}: {what}",
            hint="a table with a line for each tensor has the columns tensor, type and one of kld, ppl, dppl,"
            " top_p, or the columns tensor and types; one with a column for each tensor begins with QTYPE",
        )
    said = _figure_in(values[0])
    _check_asked(asked, said, "its column says")
    figure = asked or said
    assert figure is not None
    figure = _in_per_cent(head, rows, [columns[values[0]]], figure)
    alone = next((found for remark in remarks if (found := _ALONE.search(remark))), None)
    if type_place is None and alone is None:
        raise MeasureError("neither a column nor a comment says which type the tensors had")
    figures: dict[str, dict[str, float]] = {}
    missing: dict[str, list[str]] = {}
    patterns: dict[str, str] = {}
    errors: dict[str, dict[str, float]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    marks: dict[str, int] = {}
    for row in rows:
        name = row.cells[0]
        patterns[name] = _pattern_of(row)
        shape = _shape(row, columns)
        if shapes.setdefault(name, shape) != shape:
            raise MeasureError(f"line {row.line}: {printable(name)} has another shape in a line above")
        text = row.cells[type_place] if type_place is not None else alone[1] if alone else ""
        type_ = _type(text, row.line)
        if type_ in figures.get(name, {}) or type_ in missing.get(name, []):
            raise MeasureError(f"line {row.line}: {printable(name)} as {type_} is there twice")
        value = _figure(row, columns[values[0]], values[0], type_, figure, marks)
        figures.setdefault(name, {})
        if value is None:
            missing.setdefault(name, []).append(type_)
            continue
        figures[name][type_] = value
        if error_place is not None and (error := _number(row, error_place, head.cells[error_place])):
            if not 0 <= error < math.inf:
                raise MeasureError(f"line {row.line}: {error:g} is no standard error")
            errors.setdefault(name, {})[type_] = error
    places = tuple(
        Sensitivity(
            name, patterns[name], values_, tuple(missing.get(name, ())), errors.get(name, {}), shapes[name]
        )
        for name, values_ in figures.items()
    )
    return Sensitivities(figure, "tensor", places, remarks=remarks, marks=marks)


def _shape(row: _Row, columns: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that a line tells, slices first, without the ones that are 1; () if it tells none."""
    sizes = [_number(row, columns[name], name) for name in reversed(_SHAPE) if name in columns]
    if any(size is not None and (size < 1 or size != int(size)) for size in sizes):
        raise MeasureError(f"line {row.line}: {printable(row.cells[0])} cannot have that shape")
    return tuple(int(size) for size in sizes if size is not None and size > 1)


def _pattern_of(row: _Row) -> str:
    """What finds the tensor that a line begins with."""
    name = row.cells[0]
    if not _TENSOR.fullmatch(name):
        raise MeasureError(f"line {row.line}: {printable(name)!r} is no name of a tensor")
    return f"^{re.escape(name)}$"


def _has_columns_of_types(head: _Row) -> bool:
    """Whether a table of tensors has types for headings, and none that says what a figure is."""
    others = [name for name in head.cells[1:] if name.lower() not in _SHAPE]
    return not any(map(_figure_in, others)) and any(map(_is_type, others))


def _by_rows(
    head: _Row, rows: Sequence[_Row], remarks: tuple[str, ...], figure: Figure
) -> tuple[Sensitivities, ...]:
    """A table with a line for each tensor or each model, and a column for each type."""
    is_of_tensors = head.cells[0].lower() == "tensor"
    types: dict[str, int] = {}
    for place, name in enumerate(head.cells[1:], 1):
        if is_of_tensors and name.lower() in _SHAPE:
            continue
        if (type_ := _type(name, head.line)) in types:
            raise MeasureError(f"line {head.line}: two columns are of {type_}")
        types[type_] = place
    figure = _in_per_cent(head, rows, list(types.values()), figure)
    tables = []
    seen: dict[str, int] = {}
    for row in rows:
        name = row.cells[0]
        if is_of_tensors and name in seen:
            raise MeasureError(f"line {row.line}: {printable(name)} is also on line {seen[name]}")
        seen[name] = row.line
        marks: dict[str, int] = {}
        found = {t: _figure(row, place, head.cells[place], t, figure, marks) for t, place in types.items()}
        figures = {type_: value for type_, value in found.items() if value is not None}
        missing = tuple(type_ for type_, value in found.items() if value is None)
        shape = _shape(row, {n.lower(): i for i, n in enumerate(head.cells)}) if is_of_tensors else ()
        pattern = _pattern_of(row) if is_of_tensors else ""
        place_ = Sensitivity(name, pattern, figures, missing, shape=shape)
        tables.append(Sensitivities(figure, "model", (place_,), model=name, remarks=remarks, marks=marks))
    if not is_of_tensors:
        return tuple(tables)
    counted = sum((Counter(table.marks) for table in tables), Counter[str]())
    places = tuple(place for table in tables for place in table.places)
    return (Sensitivities(figure, "tensor", places, remarks=remarks, marks=dict(counted)),)


def _type(name: str, line: int) -> str:
    try:
        return parse_type(name).name
    except TypeNameError as error:
        raise MeasureError(f"line {line}: {error.message}", hint=error.hint) from None


def _is_type(name: str) -> bool:
    with suppress(TypeNameError):
        return bool(parse_type(name))
    return False


def _number(row: _Row, place: int, column: str) -> float | None:
    """The number in a cell, None where it is empty."""
    cell = row.cells[place].removesuffix("%").strip()
    if cell.lower() in _EMPTY:
        return None
    try:
        number = float(cell)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        shown = printable(cell)[:40]
        raise MeasureError(f"line {row.line}, column {printable(column)}: {shown!r} is not a number")
    return number


def _figure(
    row: _Row, place: int, column: str, type_: str, figure: Figure, marks: dict[str, int]
) -> float | None:
    """The figure in a cell, None where a mark says that it was not measured; `marks` counts these."""
    number = _number(row, place, column)
    mark = ""
    if number is None:
        mark = "empty"
    elif math.isnan(number):
        mark = "nan"
    elif number == 404:
        mark = "404"
    elif number == 0 and figure not in ("top_p", "dppl") and not (figure == "kld" and type_ in _UNQUANTIZED):
        mark = "0"
    if mark:
        marks[mark] = marks.get(mark, 0) + 1
        return None
    assert number is not None
    least = {"kld": -1.0, "dppl": -100.0}.get(figure, 0.0)
    most = {"kld": _MOST_KLD, "top_p": 100.0}.get(figure, math.inf)
    if not least <= number <= most:
        raise MeasureError(f"line {row.line}, column {printable(column)}: {number:g} cannot be")
    return number
