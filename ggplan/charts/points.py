"""From records to points: one quantization under one set of conditions, with what the axes need.

Measurements are comparable only if text, context, number of chunks, engine and build are the same. Points of
several conditions are refused unless the caller says `mixed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ggplan.errors import ChartError
from ggplan.measure.record import Measurement, Quantization, Record, Use
from ggplan.text import printable

Quality = Literal["kld", "kld99", "kld999", "dppl", "ppl"]
QUALITIES: dict[Quality, str] = {
    "kld": "mean KL divergence (nats)",
    "kld99": "99 % KL divergence (nats)",
    "kld999": "99.9 % KL divergence (nats)",
    "dppl": "loss of perplexity (%)",
    "ppl": "perplexity",
}
_METRICS: dict[Quality, str] = {
    "kld": "kld_mean",
    "kld99": "kld_99",
    "kld999": "kld_999",
    "dppl": "delta_ln_ppl",
    "ppl": "ppl",
}
_BASES = ("bf16", "f16", "f32", "q8_0")


@dataclass(frozen=True, slots=True)
class Point:
    """One quantization in one measurement.

    Attributes
    ----------
    y, error
        The quality and its standard error, None where nobody knows it.
    paired
        Whether the error is of the difference on the same tokens; else it is mostly the text's.
    n_bytes, bpw
        Size; 0 where it is not known.
    tg
        Tokens per second when writing, at the shortest context measured; None where not measured.
    """

    name: str
    series: str
    y: float
    error: float | None
    paired: bool
    n_bytes: int
    bpw: float
    tg: float | None
    url: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """The points of one text, and what was measured how, for the caption.

    Attributes
    ----------
    base
        The base's name and, where the axis has a place for it, its value.
    n_weights
        Weights of the model, 0 where unknown: ties bytes to bits per weight.
    """

    model: str
    quality: Quality
    points: tuple[Point, ...]
    base: str
    base_y: float | None
    use: Use
    measurement: Measurement
    n_weights: int
    n_conditions: int = 1


def panels(
    records: Sequence[Record], *, quality: Quality | None = None, text: str | None = None, mixed: bool = False
) -> list[Panel]:
    """One panel for each text of choice and held out, in that order.

    Parameters
    ----------
    quality
        What to draw; by default the best that all measurements have: KL divergence, else perplexity above
        the base's, else perplexity.
    text
        Draw this text's measurements only, by name.
    mixed
        Draw points of different conditions on one axis.

    Raises
    ------
    ChartError
        If there is nothing to draw, or what there is must not stand on one axis.
    """
    measured = [
        (record, quantization, measurement)
        for record in records
        for quantization in record.quantizations
        for measurement in quantization.measurements
        if text is None or measurement.text.name == text
    ]
    if not measured:
        raise ChartError(
            f"nothing was measured on {printable(text)}" if text else "the record holds no measurement"
        )
    models = list(dict.fromkeys(record.model.name for record, _, _ in measured))
    if len(models) > 1 and not mixed:
        raise ChartError(
            f"these are different models: {', '.join(map(printable, models[:4]))}",
            hint="draw one, or --mixed",
        )
    groups: dict[Use, list[tuple[Record, Quantization, Measurement]]] = {}
    for item in measured:
        groups.setdefault(item[2].use, []).append(item)
    order: tuple[Use, ...] = ("choose", "", "held out")
    return [_panel(groups[use], models, quality, mixed) for use in order if use in groups]


def _panel(
    items: list[tuple[Record, Quantization, Measurement]],
    models: Sequence[str],
    quality: Quality | None,
    mixed: bool,
) -> Panel:
    by_conditions: dict[tuple[object, ...], int] = {}
    for _, _, m in items:
        by_conditions[m.conditions] = by_conditions.get(m.conditions, 0) + 1
    if len(by_conditions) > 1 and not mixed:
        raise ChartError(
            f"the points were measured under {len(by_conditions)} conditions: {_differences(items)}",
            hint="choose with --text, or draw them all the same with --mixed",
        )
    base, base_ppl = _base(items)
    chosen = quality or _best_quality(items, base)
    points, base_y = [], None
    for record, q, m in items:
        found = _value(m, chosen, base_ppl)
        if q.name == base:
            base_y = found[0] if found and chosen in ("ppl", "dppl") else base_y
        if found is None or (q.name == base and chosen != "ppl"):
            continue
        series = q.author or (record.model.name if len(models) > 1 else "")
        name = q.name.removesuffix(f" ({series})")
        y, error, paired = found
        points.append(Point(name, series, y, error, paired, q.file.n_bytes, q.bpw, _writing(q), q.url))
    if not points:
        raise ChartError(f"no point has the metric {_METRICS[chosen]}", hint="another --metric may be there")
    first_record, _, first = max(items, key=lambda item: len(item[2].metrics))
    if chosen == "dppl":
        base_y = 0.0
    return Panel(
        " and ".join(models), chosen, tuple(points), base, base_y, first.use, first,
        first_record.model.n_weights, len(by_conditions),
    )  # fmt: skip


def _differences(items: Iterable[tuple[Record, Quantization, Measurement]]) -> str:
    conditions = list(dict.fromkeys(m.conditions for _, _, m in items))
    names = ("text", "context", "chunks", "engine", "build")
    found = [
        f"{name} {' / '.join(dict.fromkeys(printable(str(c[i]))[:24] for c in conditions))}"
        for i, name in enumerate(names)
        if len({c[i] for c in conditions}) > 1
    ]
    return "; ".join(found)


def _base(items: list[tuple[Record, Quantization, Measurement]]) -> tuple[str, float | None]:
    """The base's name and perplexity: as measurements name it, else the most exact one there is."""
    named = {m.base for _, _, m in items if m.base}
    name = named.pop() if len(named) == 1 else ""
    if not name:
        found = {q.name.lower().split(" ")[0].split("-")[-1]: q.name for _, q, _ in reversed(items)}
        name = next((found[t] for t in _BASES if t in found), "")
    ppl = next((m.metrics["ppl"].value for _, q, m in items if q.name == name and "ppl" in m.metrics), None)
    return name, ppl


def _best_quality(items: list[tuple[Record, Quantization, Measurement]], base: str) -> Quality:
    others = [m.metrics for _, q, m in items if q.name != base] or [m.metrics for _, _, m in items]
    if all("kld_mean" in metrics for metrics in others):
        return "kld"
    if base and all("delta_ln_ppl" in metrics or "ppl" in metrics for metrics in others):
        return "dppl"
    return "ppl"


def _value(
    measurement: Measurement, quality: Quality, base_ppl: float | None
) -> tuple[float, float | None, bool] | None:
    metric = measurement.metrics.get(_METRICS[quality])
    if quality != "dppl":
        if metric is None:
            return None
        return metric.value, metric.error, metric.method.startswith("paired")
    if metric is not None:
        ratio = math.exp(metric.value)
        error = None if metric.error is None else 100 * ratio * metric.error
        return 100 * (ratio - 1), error, metric.method.startswith("paired")
    ppl = measurement.metrics.get("ppl")
    if ppl is None or not base_ppl:
        return None
    error = None if ppl.error is None else 100 * ppl.error / base_ppl
    return 100 * (ppl.value / base_ppl - 1), error, False


def _writing(quantization: Quantization) -> float | None:
    speeds = sorted((s.n_kv, s.tg) for s in quantization.speeds if s.tg is not None)
    return speeds[0][1] if speeds else None
