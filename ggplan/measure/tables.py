"""Published tables of results as records: model cards, chart data, Thireus' files.

- model cards in ubergarm's format: a heading `IQ4_K 65.4 GiB (4.89 BPW)` (the name may be in backticks or
  bold, `BPW` in any case), and below it `Final estimate: PPL = 4.6273 +/- 0.02805` (or the longer newer
  form);
- the data behind forum charts (ik_llama.cpp discussion 715): a JSON list of
  `{"name", "ppl": "3.3469 +/- 0.01936", "size": GiB, "bpw", "url"}`, or an object that holds it as "data";
- Thireus' `ppl_graphs`: CSV `QTYPE,bpw,ppl`, and the database `model|author|quant|bpw|ppl|url`.

Facts that such tables do not give (the text, the context) stay empty, so points of different sources cannot
be compared.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ggplan.errors import MeasureError
from ggplan.measure.logs import FINAL
from ggplan.measure.record import FileFacts, Measurement, Metric, Quantization, Text
from ggplan.text import printable

UNKNOWN_TEXT = Text("text not recorded")
_GIB = 1 << 30
_HEADING = re.compile(
    r"^#{1,6}\s+[*`_]*([A-Za-z][\w.+-]{0,80})[*`_]*\s+(\d+(?:\.\d+)?)\s*(GiB|MiB)\s*\(\s*(\d+(?:\.\d+)?)\s*(?i:bpw)\s*\)"
)


@dataclass(frozen=True, slots=True)
class Published:
    """A published quantization and its model ("" if the table does not name it)."""

    model: str
    quantization: Quantization


def is_model_card(text: str) -> bool:
    """Whether there is a heading with a name, a size and bits per weight."""
    return any(_HEADING.match(line) for line in text.splitlines())


def parse_model_card(text: str) -> Iterator[Published]:
    """The quantizations of a model card that have a perplexity."""
    heading: re.Match[str] | None = None
    for line in text.splitlines():
        found = _HEADING.match(line)
        if found is not None:
            heading = found
            continue
        if line.startswith("#"):
            heading = None
        final = FINAL.search(line)
        if heading is not None and final is not None:
            n_chunks, n_ctx = int(final[1] or 0), int(final[2] or 0)
            metric = Metric(float(final[3]), float(final[4]), "unpaired tokens")
            unit = _GIB if heading[3] == "GiB" else _GIB >> 10
            n_bytes = round(float(heading[2]) * unit)
            measurement = _measured(metric, n_ctx, n_chunks)
            yield Published("", _quantization(heading[1], n_bytes, float(heading[4]), measurement))
            heading = None


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
        found = re.match(r"\s*(\d+(?:\.\d+)?)(?:\s*(?:\+/-|±)\s*(\d+(?:\.\d+)?))?\s*$", str(point["ppl"]))
        if found is None:
            raise MeasureError(f"the perplexity of point {i + 1} is {printable(str(point['ppl']))[:40]!r}")
        error = found[2]
        metric = (
            Metric(float(found[1]), float(error), "unpaired tokens") if error else Metric(float(found[1]))
        )
        size, bpw = _number(point.get("size", 0), "size"), _number(point.get("bpw", 0), "bpw")
        quantization = _quantization(str(point["name"]), round(size * _GIB), bpw, _measured(metric))
        url, note = str(point.get("url") or ""), str(point.get("comment") or "")
        yield Published(title, replace(quantization, url=url, note=note))


def is_thireus_csv(text: str) -> bool:
    """Whether the first line is the heading of a Thireus table."""
    return text.partition("\n")[0].strip().lower() == "qtype,bpw,ppl"


def parse_thireus_csv(text: str, model: str) -> Iterator[Published]:
    """The points of a table `QTYPE,bpw,ppl`, whose file is named after the model."""
    for row in csv.DictReader(text.splitlines()):
        values = {str(k).lower(): v for k, v in row.items()}
        metric = Metric(_number(values.get("ppl"), "ppl"))
        bpw = _number(values.get("bpw"), "bpw")
        yield Published(model, _quantization(str(values["qtype"]), 0, bpw, _measured(metric)))


def is_thireus_database(text: str) -> bool:
    """Whether the lines are `model|author|quant|bpw|ppl|url`, without the address if there is none."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and all(line.count("|") in (4, 5) and line[0] != "|" for line in lines)


def parse_thireus_database(text: str) -> Iterator[Published]:
    """The points of a database; lines that begin with `#` are ignored."""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        model, author, name, bpw, ppl, *url = (cell.strip() for cell in line.split("|"))
        metric = Metric(_number(ppl, "ppl"))
        quantization = _quantization(name, 0, _number(bpw, "bpw"), _measured(metric))
        yield Published(model, replace(quantization, author=author, url="".join(url)))


def _quantization(name: str, n_bytes: int, bpw: float, measurement: Measurement) -> Quantization:
    return Quantization(name, FileFacts(n_bytes=n_bytes), bpw, measurements=(measurement,))


def _measured(metric: Metric, n_ctx: int = 0, n_chunks: int = 0) -> Measurement:
    n_tokens = n_chunks * (n_ctx - 1 - n_ctx // 2) if n_ctx else 0
    return Measurement(UNKNOWN_TEXT, n_ctx, n_chunks, n_tokens, "", {"ppl": metric})


def _number(value: object, what: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise MeasureError(f"the {what} {printable(str(value))[:40]!r} is not a number") from None
    if not 0 <= number < 1e12:
        raise MeasureError(f"the {what} {number} cannot be")
    return number


def chart_data_of(text: str) -> object:
    """The JSON in a text, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
