"""From records to points: one quantization under one set of conditions, with the values for the axes.

Measurements are comparable only if text, context, number of chunks, engine, build and base are the same.
Points of several conditions are refused unless the caller says `mixed`. A loss is against the base of the
same model, on the same text with the same context, whatever else is mixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ggplan.errors import ChartError
from ggplan.measure.guard import Contender
from ggplan.measure.record import (
    Base,
    Conditions,
    Measurement,
    Metric,
    Quantization,
    Record,
    Text,
    Use,
    text_names,
)
from ggplan.measure.record_file import Scores
from ggplan.measure.table_rows import UNKNOWN_TEXT
from ggplan.text import printable

Quality = Literal["kld", "kld99", "kld999", "dppl", "ppl"]
QUALITIES: dict[Quality, str] = {
    "kld": "mean KL divergence (nats)",
    "kld99": "99 % KL divergence (nats)",
    "kld999": "99.9 % KL divergence (nats)",
    "dppl": "loss of perplexity (%)",
    "ppl": "perplexity",
}
_BASES = ("bf16", "f16", "f32", "q8_0")


@dataclass(frozen=True, slots=True)
class Point:
    """One quantization in one measurement.

    Attributes
    ----------
    y, error
        The quality and its standard error, None where it is not known.
    paired
        Whether the error is of the difference on the same tokens; else it is mostly the text's.
    n_bytes, bpw
        Size; 0 where it is not known.
    tg
        Tokens per second when writing, at the shortest context measured; None where not measured.
    contender
        Its measurement and scores, for comparing it with others.
    """

    name: str
    series: str
    y: float
    error: float | None
    paired: bool
    n_bytes: int
    bpw: float
    tg: float | None
    contender: Contender
    url: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """The points of one text, and how they were measured, for the caption.

    Attributes
    ----------
    text
        What to call the text.
    base, base_y, base_ppl
        The base's name, its value if it can be drawn on this axis, and its perplexity if it was measured.
    n_weights
        Weights of the model, 0 where unknown: ties bytes to bits per weight.
    n_left_out
        Measurements that are no points, because they do not have the quality that is drawn.
    """

    model: str
    text: str
    quality: Quality
    points: tuple[Point, ...]
    base: str
    base_y: float | None
    base_ppl: Metric | None
    use: Use
    measurement: Measurement
    n_weights: int
    n_conditions: int = 1
    n_left_out: int = 0


@dataclass(frozen=True, slots=True)
class _Item:
    """One measurement among all that are to be drawn."""

    record: Record
    quantization: Quantization
    measurement: Measurement

    @property
    def is_base(self) -> bool:
        return self.quantization.is_base_of(self.measurement)


def panels(
    records: Sequence[Record],
    *,
    quality: Quality | None = None,
    text: str | None = None,
    n_ctx: int | None = None,
    mixed: bool = False,
    scores: Scores | None = None,
) -> list[Panel]:
    """One panel for each text, the text of choice before the held-out one.

    Parameters
    ----------
    quality
        What to draw; by default the best that all measurements have: KL divergence, else perplexity above
        the base's, else perplexity.
    text
        Draw this text's measurements only, by its name or the beginning of its digest.
    n_ctx
        Draw what was measured with this context only.
    mixed
        Draw points of different conditions on one axis.
    scores
        Every token's scores, where they were kept: two points are then compared token by token.

    Raises
    ------
    ChartError
        If there is nothing to draw, or the points must not share an axis.
    """
    items = [
        _Item(record, quantization, measurement)
        for record in records
        for quantization in record.quantizations
        for measurement in quantization.measurements
    ]
    names = {t: name for record in records for t, name in text_names(record).items()}
    measured = items if text is None else _on_text(items, text, names)
    if not measured:
        has_speeds = any(q.speeds for record in records for q in record.quantizations)
        raise ChartError(
            f"nothing was measured on {printable(text)}" if text else "the record holds no measurement",
            hint="it has speeds, which --kind context draws" if has_speeds and not text else "",
        )
    if n_ctx is not None:
        measured = _with_context(measured, n_ctx)
    models = list(dict.fromkeys(item.record.model.name for item in measured))
    if len(models) > 1 and not mixed:
        raise ChartError(
            f"these are different models: {', '.join(map(printable, models[:4]))}",
            hint="draw one, or --mixed",
        )
    groups = _by_use(measured)
    order: tuple[Use, ...] = ("choose", "", "held out")
    shown = [groups[use] for use in order if use in groups]
    drawn = quality or _best_of_all(shown)
    return [_panel(items, models, names, drawn, mixed, scores) for items in shown]


def _with_context(items: Sequence[_Item], n_ctx: int) -> list[_Item]:
    """What was measured with one context."""
    found = [item for item in items if item.measurement.n_ctx == n_ctx]
    if not found:
        there = sorted({item.measurement.n_ctx for item in items} - {0})
        hint = f"there is {', '.join(map(str, there[:8]))}" if there else "no measurement says its context"
        raise ChartError(f"nothing was measured with a context of {n_ctx}", hint=hint)
    return found


def _by_use(items: Sequence[_Item]) -> dict[Use, list[_Item]]:
    """The measurements by what their texts were used for.

    What says nothing of a use belongs to the measurements of the same text that do.
    """
    uses: dict[str, set[Use]] = {}
    for item in items:
        uses.setdefault(item.measurement.conditions.text, set()).add(item.measurement.use)
    groups: dict[Use, list[_Item]] = {}
    for item in items:
        stated = uses[item.measurement.conditions.text] - {""}
        own = item.measurement.use
        groups.setdefault(next(iter(stated)) if not own and len(stated) == 1 else own, []).append(item)
    return groups


def _on_text(items: Sequence[_Item], wanted: str, names: Mapping[Text, str]) -> list[_Item]:
    """What was measured on one text, under whatever names it has."""
    found = {
        item.measurement.conditions.text: t
        for item in items
        if wanted in ((t := item.measurement.text).name, names[t])
        or (len(wanted) >= 6 and t.sha256.startswith(wanted))
    }
    if len(found) > 1:
        shown = ", ".join(
            sorted(f"{printable(t.name)}: {t.sha256[:12] or 'no digest'}" for t in found.values())
        )
        raise ChartError(
            f"{len(found)} texts are called {printable(wanted)} ({shown})",
            hint="give --text the beginning of the digest",
        )
    return [item for item in items if item.measurement.conditions.text in found]


def _panel(
    items: Sequence[_Item], models: Sequence[str], texts: Mapping[Text, str], quality: Quality,
    mixed: bool, scores: Scores | None,
) -> Panel:  # fmt: skip
    conditions = list(dict.fromkeys(item.measurement.conditions for item in items))
    if len(conditions) > 1 and not mixed:
        raise ChartError(
            f"the points were measured under {len(conditions)} conditions: {_differences(items, texts)}",
            hint=_choice(items),
        )
    base, bases = _bases(items)
    points, of_bases, n_left_out = [], set(), 0
    for item in items:
        q, m = item.quantization, item.measurement
        is_base = item in bases
        found = _value(m, quality, _base_ppl(item, bases))
        if is_base and quality != "ppl":
            continue
        if found is None:
            n_left_out += 1
            continue
        if is_base:
            of_bases.add(found[0])
        series = q.author or (item.record.model.name if len(models) > 1 else "")
        name = q.name.removesuffix(f" ({series})")
        y, error, paired = found
        contender = Contender(name, m, scores(q, m) if scores is not None else None)
        size = q.file.n_bytes
        points.append(Point(name, series, y, error, paired, size, q.bpw, _writing(q), contender, q.url))
    if not points:
        there = [
            q
            for q in QUALITIES
            if any(
                _value(i.measurement, q, _base_ppl(i, bases)) for i in items if q == "ppl" or i not in bases
            )
        ]
        raise ChartError(
            f"no point has the metric {quality}",
            hint=f"there is {', '.join(there)} (--metric)" if there else "",
        )
    first = max(items, key=lambda item: len(item.measurement.metrics))
    base_y = 0.0 if quality == "dppl" else next(iter(of_bases)) if len(of_bases) == 1 else None
    return Panel(
        " and ".join(models), texts[first.measurement.text], quality, tuple(points), base, base_y,
        _one_ppl(bases), _use(items), first.measurement, first.record.model.n_weights,
        len(conditions), n_left_out,
    )  # fmt: skip


def _differences(items: Iterable[_Item], texts: Mapping[Text, str]) -> str:
    """What differs between the conditions, in names rather than digests."""

    def shown(m: Measurement) -> Conditions:
        base = m.base.name or m.base.sha256[:12]
        text = "not recorded" if m.text == UNKNOWN_TEXT else texts[m.text]
        return m.conditions._replace(text=text, base=base or "not recorded")

    conditions = list(dict.fromkeys(shown(item.measurement) for item in items))
    found = [
        f"{name} {' / '.join(dict.fromkeys(printable(str(getattr(c, name)))[:40] for c in conditions))}"
        for name in Conditions._fields
        if len({getattr(c, name) for c in conditions}) > 1
    ]
    return "; ".join(found) or "texts or bases of one name"


def _choice(items: Sequence[_Item]) -> str:
    """What can be chosen where items have several conditions: only what differs between them."""
    texts = {item.measurement.conditions.text for item in items}
    contexts = {item.measurement.n_ctx for item in items}
    options = ["--text"] * (len(texts) > 1) + ["--ctx"] * (len(contexts) > 1)
    mixed = "draw them all the same with --mixed"
    return f"choose with {' and '.join(options)}, or {mixed}" if options else mixed


def _bases(items: Sequence[_Item]) -> tuple[str, list[_Item]]:
    """The names of the bases, and their measurements among the items: each model has its own."""
    of_model: dict[int, list[_Item]] = {}
    for item in items:
        of_model.setdefault(id(item.record), []).append(item)
    found = [_bases_of_one(own) for own in of_model.values()]
    names = dict.fromkeys(name for name, _ in found if name)
    return " and ".join(names), [item for _, bases in found for item in bases]


def _bases_of_one(items: Sequence[_Item]) -> tuple[str, list[_Item]]:
    """The name of one model's base, and its measurements among the items.

    A stated base is known by its digest. Only if no measurement states one (those of logs do not), the most
    exact quantization is taken for it by its name, and never one that is itself compared with something.
    """
    stated = {b.sha256 or b.name: b.name for b in (item.measurement.base for item in items) if b != Base()}
    if stated:
        bases = [item for item in items if item.is_base]
        names = [item.quantization.name for item in bases] if len(stated) == 1 else []
        return " and ".join(dict.fromkeys(names or stated.values())), bases
    compared = {item.quantization.name for item in items if item.measurement.has_comparison}
    last_words = {
        name.lower().split(" ")[0].split("-")[-1]: name
        for name in (item.quantization.name for item in reversed(items))
        if name not in compared
    }
    name = next((last_words[t] for t in _BASES if t in last_words), "")
    return name, [item for item in items if name and item.quantization.name == name]


def _use(items: Sequence[_Item]) -> Use:
    """What the text of a panel was used for."""
    return next((item.measurement.use for item in items if item.measurement.use), "")


def _one_ppl(bases: Sequence[_Item]) -> Metric | None:
    """The perplexity of the base, if there is one base."""
    found = [b.measurement.metrics["ppl"] for b in bases if "ppl" in b.measurement.metrics]
    return found[0] if found and len({metric.value for metric in found}) == 1 else None


def _base_ppl(item: _Item, bases: Sequence[_Item]) -> float | None:
    """The perplexity of an item's base, under the same conditions if it is known; None if it is not known.

    It is one of the same model, and one on another text or with another context is none: the difference
    would be that of the two texts.
    """
    own = [b for b in bases if b.record is item.record and _on_the_same(b.measurement, item.measurement)]
    if item.measurement.base != Base():
        own = [b for b in own if b.quantization.is_base_of(item.measurement)]
    metrics = [
        b.measurement.metrics
        for b in sorted(own, key=lambda b: b.measurement.conditions != item.measurement.conditions)
    ]
    return next((m["ppl"].value for m in metrics if "ppl" in m), None)


def _on_the_same(a: Measurement, b: Measurement) -> bool:
    """Whether two measurements may be of the same tokens: nothing that is known of both differs."""
    texts = {m.conditions.text for m in (a, b)} - {UNKNOWN_TEXT.name}
    if len(texts) > 1:
        return False
    pairs = ((a.n_ctx, b.n_ctx), (a.n_chunks, b.n_chunks))
    return all(x == y or not x or not y for x, y in pairs)


def _metric(quality: Quality) -> str:
    """The metric of a record that is drawn."""
    return "delta_ln_ppl" if quality == "dppl" else quality


def _best_of_all(panels: Sequence[Sequence[_Item]]) -> Quality:
    """The best that all panels have, which share an axis."""
    best = [_best_quality(items, _bases(items)[1]) for items in panels]
    order: tuple[Quality, ...] = ("ppl", "dppl")
    return next((quality for quality in order if quality in best), "kld")


def _best_quality(items: Sequence[_Item], bases: Sequence[_Item]) -> Quality:
    others = [item for item in items if item not in bases]
    if not others:  # the base alone, which has lost nothing
        return "ppl"
    if all("kld" in item.measurement.metrics for item in others):
        return "kld"
    if all(_value(item.measurement, "dppl", _base_ppl(item, bases)) for item in others):
        return "dppl"
    return "ppl"


def _value(
    measurement: Measurement, quality: Quality, base_ppl: float | None
) -> tuple[float, float | None, bool] | None:
    metric = measurement.metrics.get(_metric(quality))
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
