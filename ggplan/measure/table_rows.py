"""A row of a published table of results: what its columns are, and the figures in its cells.

Cells are as people write them: with markup, links and units, `6.2332 ± 0.0378`, `94.2 %`, decimal commas, and
marks for no figure. A figure that cannot be is never kept, and a cell that is not read is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ggplan.measure.log_lines import SIZE, bytes_of
from ggplan.measure.record import FileFacts, Measurement, Metric, Quantization, Text
from ggplan.text import printable

UNKNOWN_TEXT = Text("text not recorded")
LONGEST_CELL = 2000
"""The most characters of a cell."""
_NUMBER = r"(-?(?:\d{1,12}(?:\.\d{0,20})?|\.\d{1,20})(?:[eE][-+]?\d{1,3})?)"
_FIGURE = re.compile(rf"\s*{_NUMBER}(?:\s*%)?(?:\s*(?:\+/-|\+-|±|_|\ufffd)\s*{_NUMBER}(?:\s*%)?)?\s*$")
_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(-?\d{0,12}),(\d{1,20})(?![\d,.])")
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2},\d{3}(?!\d)")
_POINT = re.compile(r"\d\.\d|(?<!\d)\.\d")
_EMPTY = re.compile(r"(?:-+|—|–|\?+|n/?a|[+-]?nan|[+-]?inf(?:inity)?|none|null|tbd|404)?", re.IGNORECASE)
"""What stands in a cell without a figure; 404 is Thireus' mark."""
_FAILED = re.compile(r"[+-]?nan|[+-]?inf(?:inity)?|404", re.IGNORECASE)
_MARKUP = re.compile(r"[*`]")
_LINK = re.compile(r"\[([^\]]{0,400})\]\([^)]{0,800}\)")
_BRACKETS = re.compile(r"[\[(](?!q\b)[^\])]{0,200}[\])]")
_UNIT = re.compile(r"(?<![a-z])([KMGT]i?B)(?![a-z])", re.IGNORECASE)
_SIZE = re.compile(SIZE)
_BARE_SIZE = re.compile(r"\d{1,7}(?:\.\d{1,20})?")
_BPW = re.compile(r"(\d{1,3}(?:\.\d{1,20})?)(?:\s*bpw)?", re.IGNORECASE)
_ERROR = re.compile(_NUMBER)
# A heading that is of figures, whether they are read or not.
_FIGURES = re.compile(
    r"ppl|perplexity|kld|kl.?div|t/s|tok|speed|score|accuracy|mmlu|hellaswag|\b(?:pp|tg)\d{0,6}\b",
    re.IGNORECASE,
)

# Columns by their headings, in lower case without markup, brackets and their contents.
_KLD = r"(?:kld|kl[-_ ]?div(?:ergence)?)"


def _percentile(digits: str) -> str:
    """The headings of a percentile of the divergence: `99.9% KLD`, `kld_p999`, `KLD 99.9 %`, `p99 KLD`."""
    number = rf"p?(?:{digits[:2]}\.?{digits[2:]}(?:\.0)?)(?:th)?"
    number += r" ?(?:%|percentile|pct)?"
    kld = rf"(?:{_KLD}|kl)"
    return rf"{number}[ _-]?{kld}|{kld}[ _@-]{{0,3}}{number}"


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
    *((f"kld{digits}", _percentile(digits)) for digits in ("999", "99", "90")),
    ("kld_max", rf"max(?:imum)?[ _]{_KLD}|{_KLD}[ _]max(?:imum)?"),
    ("kld_median", rf"median[ _]{_KLD}|{_KLD}[ _]median"),
    ("kld", rf"(?:(?:mean|avg|average)[ _])?{_KLD}(?:[ _](?:mean|avg|average))?"),
    ("delta_p_rms", r"rms[ _](?:δ|delta[ _])p|(?:δ|delta[ _])p[ _]rms"),
    ("delta_p_mean", r"mean[ _](?:δ|delta[ _])p|(?:δ|delta[ _])p[ _]mean"),
    (
        "same_top",
        r"same[ _-]?top(?:[ _-]?[p1])?(?: ?%)?"
        r"|top[ _-]?(?:1|p|token)(?:[ _](?:agreement|match(?:es)?|same))?(?: ?%)?",
    ),
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
class Columns:
    """What the columns of a table are: the place of each that is read, and the unit of sizes.

    `unread` are the headings of those that are not read, `per_cent` the columns whose figures are per cent,
    `commas` those with decimal commas.
    """

    places: Mapping[str, int]
    unit: str = ""
    unread: tuple[str, ...] = ()
    per_cent: frozenset[str] = frozenset()
    commas: frozenset[str] = frozenset()

    @property
    def of_numbers(self) -> frozenset[str]:
        """The columns that hold numbers."""
        return frozenset(self.places.keys() & {"size", "bpw", "error", *_METRICS})


@dataclass(frozen=True, slots=True)
class NoFigure:
    """Why a row gives no quantization; `is_damaged` if a cell holds something that is no figure."""

    why: str
    is_damaged: bool = False


def columns_of(headings: Sequence[str]) -> Columns | None:
    """The columns of a table of results; None of a table without names or without figures."""
    places: dict[str, int] = {}
    unit, unread = "", []
    for place, heading in enumerate(headings):
        plain = _MARKUP.sub("", heading[:LONGEST_CELL]).strip()
        bare = " ".join(_BRACKETS.sub(" ", plain.lower()).split())
        kind = next((kind for kind, pattern in _COLUMNS if re.fullmatch(pattern, bare)), "")
        if not kind or kind in places:
            unread += [plain] if plain else []
            continue
        places[kind] = place
        if kind == "size" and (found := _UNIT.search(plain)):
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
    what = "columns" if len(unread) > 1 else "column"
    return f"what stands in the {what} {names}{more}, which ggplan does not read from tables"


def unread_table(headings: Sequence[str]) -> str:
    """What is to be told of a table with a column of names and figures, none of which is read, or ""."""
    figures = [_MARKUP.sub("", heading).strip() for heading in headings if _FIGURES.search(heading[:200])]
    with_figure = columns_of([*headings, "kld"])
    if not figures or with_figure is None or columns_of(headings) is not None:
        return ""
    names = ", ".join(printable(name)[:40] for name in figures[:_SHOWN])
    return f"a table of {names}, which ggplan does not read from tables"


def with_forms(columns: Columns, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Columns:
    """The columns, with how a table writes its numbers: shares as fractions, and decimal commas.

    Shares are fractions if none of them is above 1 or has a `%`. Changes of probability may all be below one
    per cent: they count as fractions if the shares do. `5,1234` has a decimal comma; `1,234` has one if
    another number of the table does, and no number of its column has a point.
    """
    own = {k: [row[columns.places[k]] for row in rows] for k in columns.of_numbers}
    without = {k for k, cells in own.items() if not any(_POINT.search(c[:LONGEST_CELL]) for c in cells)}
    if any("," in c and _DECIMAL_COMMA.search(_THOUSANDS.sub("", c[:200])) for k in without for c in own[k]):
        columns = replace(columns, commas=frozenset(without))

    def is_fraction(kind: str) -> bool:
        place = columns.places.get(kind)
        if place is None or "%" in headings[place]:
            return False
        cells = [_plain(row[place], with_commas=kind in columns.commas) for row in rows]
        figures = [(cell, _FIGURE.match(cell[:LONGEST_CELL])) for cell in cells]
        values = [abs(float(found[1])) for cell, found in figures if found and "%" not in cell]
        return bool(values) and max(values) <= 1 and not any("%" in cell for cell, _ in figures)

    if not is_fraction("same_top"):
        return columns
    return replace(columns, per_cent=frozenset(kind for kind in _PER_CENT if not is_fraction(kind)))


def is_figure(cell: str, *, or_empty: bool = False) -> bool:
    """Whether a cell is a figure; `or_empty` takes a mark for none as well."""
    return len(cell) <= LONGEST_CELL and bool(_FIGURE.match(cell) or (or_empty and _EMPTY.fullmatch(cell)))


def published_row(columns: Columns, cells: Sequence[str]) -> Quantization | NoFigure:
    """The quantization in a row of a table, or why there is none."""
    if (longest := max(map(len, cells))) > LONGEST_CELL:
        return NoFigure(f"a cell of {longest:,} characters", is_damaged=True)
    named = _named(columns, cells)
    name = named["name"]
    if _EMPTY.fullmatch(name):
        return NoFigure("a row without a name")
    metrics = _metrics_in(named, columns.per_cent)
    if isinstance(metrics, NoFigure):
        return replace(metrics, why=printable(name)[:60] + metrics.why)
    bpw = _BPW.fullmatch(named.get("bpw", ""))
    return Quantization(
        name, FileFacts(n_bytes=_bytes(named.get("size", ""), columns.unit)), float(bpw[1]) if bpw else 0.0,
        author=named.get("author", ""), url=named.get("url", ""), note=named.get("note", ""),
        measurements=(Measurement(UNKNOWN_TEXT, 0, 0, 0, "", metrics),),
    )  # fmt: skip


def _named(columns: Columns, cells: Sequence[str]) -> dict[str, str]:
    """The cells by what their columns are, without markup."""
    return {k: _plain(cells[place], with_commas=k in columns.commas) for k, place in columns.places.items()}


def _plain(cell: str, *, with_commas: bool = False) -> str:
    """A cell without markup and the addresses of links; `with_commas` says that its numbers have some."""
    if "*" in cell or "`" in cell:
        cell = _MARKUP.sub("", cell)
    cell = (_LINK.sub(r"\1", cell) if "](" in cell else cell).strip()
    return _DECIMAL_COMMA.sub(r"\1.\2", cell) if with_commas and "," in cell else cell


def _metrics_in(named: Mapping[str, str], per_cent: Iterable[str]) -> dict[str, Metric] | NoFigure:
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
        if kind == "same_top" and not 0 <= metric.value <= 1:
            return NoFigure(f": the same top {printable(cell)[:40]} cannot be: a share is from 0 to 100 %")
    if not metrics:
        marks = {kind: named[kind] for kind in _METRICS if kind in named}
        why = " or ".join(
            f"{kind} ({cell})" if _FAILED.fullmatch(cell) else kind for kind, cell in marks.items()
        )
        return NoFigure(f" has no {why}")
    return _out_of_order(metrics) or metrics


def _out_of_order(metrics: Mapping[str, Metric]) -> NoFigure | None:
    """Why divergences of one file cannot be: none of its tokens is above the largest."""
    order = [kind for kind in ("kld_median", "kld90", "kld99", "kld999", "kld_max") if kind in metrics]
    pairs = [*pairwise(order), *([("kld", "kld_max")] if "kld_max" in metrics else [])]
    for low, high in pairs:
        if low in metrics and metrics[low].value > metrics[high].value:
            values = f"{metrics[low].value:g} and {metrics[high].value:g}"
            return NoFigure(f": its {low} and {high} cannot be, {values}: the first is never the larger")
    return None


def unread_cell(columns: Columns, cells: Sequence[str]) -> str:
    """What is to be told of the cells that are not read in a row that is kept, or ""."""
    told = []
    named = _named(columns, cells)
    size, bpw = named.get("size", ""), named.get("bpw", "")
    if not _EMPTY.fullmatch(size) and not _bytes(size, columns.unit):
        number = re.fullmatch(r"[\d.]+", size)
        told.append(f"the size {printable(size)[:40]!r}, which {'has no unit' if number else 'is none'}")
    if not _EMPTY.fullmatch(bpw) and _BPW.fullmatch(bpw) is None:
        told.append(f"the bpw {printable(bpw)[:40]!r}, which cannot be")
    for kind in _METRICS:
        cell = named.get(kind, "")
        if _FAILED.fullmatch(cell):
            told.append(f"the {kind} {printable(cell)!r}, which is no figure")
        found = _FIGURE.match(cell)
        error = (found[2] if found else "") or (named.get("error", "") if kind == "ppl" else "")
        if (
            error
            and not _EMPTY.fullmatch(error)
            and (error[:1] == "-" or not _ERROR.fullmatch(error.strip()))
        ):
            told.append(f"the error {printable(error)[:40]!r} of its {kind}, which cannot be")
    if not told:
        return ""
    return f"{printable(named['name'])[:60]}: {' and '.join(told)}"


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
