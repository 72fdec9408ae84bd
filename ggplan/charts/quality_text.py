"""The words of a chart of quality: the tooltip of a point, the caption, and the table of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ggplan.charts.drawing import Unit, html_table
from ggplan.charts.points import QUALITIES, Panel, Point
from ggplan.measure.record import Measurement
from ggplan.measure.table_rows import UNKNOWN_TEXT
from ggplan.text import printable

_INDEPENDENT = " (errors taken as independent where the tokens' scores were not kept)."


def point_title(point: Point, panel: Panel, unit: Unit) -> str:
    """What a point says when it is pointed at."""
    error = f" ± {point.error:.2g}" if point.error else ""
    percent = "%" if panel.quality == "dppl" else ""
    size = f", {point.n_bytes / unit.n_bytes:.3g} {unit.name}" if point.n_bytes else ""
    bpw = f", {point.bpw:.3f} bpw" if point.bpw else ""
    speed = f", {point.tg:.4g} t/s" if point.tg else ""
    author = f" by {point.series}" if point.series else ""
    n_nan = point.contender.measurement.n_nan
    nan = f", without {n_nan:,} tokens that have no number" if n_nan else ""
    return f"{point.name}{author}: {panel.quality} {point.y:.4g}{error}{percent}{size}{bpw}{speed}{nan}"


def quality_caption(panels: Sequence[Panel], points: Sequence[Point], *, faster: bool) -> str:
    """What was measured and against what, and how to read the marks of the points that are drawn."""
    # Panels that were measured alike are told together.
    alike: dict[tuple[str, str], list[str]] = {}
    for panel in panels:
        name = f"{panel.text} ({panel.use})" if panel.use else panel.text
        on = name if panel.measurement.text != UNKNOWN_TEXT else ""
        alike.setdefault((_amounts(panel), _engines(panel)), []).append(on)
    facts = []
    for (amounts, engines), texts in alike.items():
        on = " and ".join(text or "a text that is not recorded" for text in texts)
        first = f"Measured on {on}{amounts}" if any(texts) else "It is not recorded on which text"
        facts.append(f"{first}, by {engines}." if engines else f"{first}.")
    how = []
    if any(p.error and p.paired for p in points):
        how.append("Bars: one standard error of the difference on the same tokens.")
    elif any(p.error for p in points):
        how.append("Pale bars: unpaired errors, mostly the text's own; differences are far more certain.")
    else:
        how.append("No errors are known.")
    how.append(f"Bold: nothing {'faster' if faster else 'smaller'} is as good.")
    if any(p.paired for p in points):
        apart = any(p.paired and p.contender.scores is None for p in points)
        how.append("Hollow: a tie within one error" + (_INDEPENDENT if apart else "."))
    if any(p.contender.measurement.n_nan for p in points):
        how.append("NaN tokens are left out: two files' figures may be over different tokens.")
    left_out = sum(panel.n_left_out + len(panel.points) for panel in panels) - len(points)
    if left_out:
        how.append(f"Without this quality or cost, not drawn: {left_out}.")
    if any(panel.n_conditions > 1 for panel in panels):
        how.append(f"MIXED: {sum(p.n_conditions for p in panels)} different conditions on one axis.")
    dates = list(dict.fromkeys(m.date for panel in panels for m in _measurements(panel) if m.date))
    dated = f" {min(dates)}{f' to {max(dates)}' if len(dates) > 1 else ''}." if dates else ""
    return printable(" ".join(facts)) + f"{dated}{_base(panels)}\n" + " ".join(how)


def _measurements(panel: Panel) -> list[Measurement]:
    """The measurements that a panel draws; where several are of one kind, the one with most metrics first."""
    return [panel.measurement, *(p.contender.measurement for p in panel.points)]


def _amounts(panel: Panel) -> str:
    """How much of the text was measured; nothing that differs between the points."""
    found = {(m.n_chunks, m.n_ctx, m.n_tokens) for m in _measurements(panel)}
    if len(found) > 1:
        return ""
    ((n_chunks, n_ctx, n_tokens),) = found
    chunks = f", {n_chunks} chunks of {n_ctx} tokens" if n_chunks and n_ctx else ""
    return chunks + (f", {n_tokens:,} of them scored" if n_tokens else "")


def _engines(panel: Panel) -> str:
    """The engines of a panel's points, each with its build and hardware; "" if none is recorded."""
    found = dict.fromkeys(
        f"{m.engine} {m.build}".strip() + (f" on {m.hardware}" if m.hardware else "") if m.engine else ""
        for m in _measurements(panel)
    )
    return " and by ".join(e or "an engine that is not recorded" for e in found) if any(found) else ""


def _base(panels: Sequence[Panel]) -> str:
    """The base and its perplexity on each text: what every loss is a loss against."""
    names = list(dict.fromkeys(panel.base for panel in panels if panel.base))
    if not names:
        compared = any(panel.measurement.has_comparison for panel in panels)
        return " The base is not recorded." if compared else ""
    several = len(panels) > 1
    known = [
        f"{panel.base_ppl.value:.4g}"
        + (f" ± {panel.base_ppl.error:.2g}" if panel.base_ppl.error else "")
        + (f" on {panel.text}" if several else "")
        for panel in panels
        if panel.base_ppl is not None
    ]
    perplexity = f", perplexity {' and '.join(known)}" if known else ""
    return printable(f" Base: {' and '.join(names)}{perplexity}.")


def quality_table(shown: Sequence[tuple[Panel, Sequence[Point]]], unit: Unit, *, faster: bool) -> str:
    """The data as an HTML table, in the order of the horizontal axis."""
    rows = [
        [
            p.name, p.series, panel.text, f"{p.n_bytes / unit.n_bytes:.3f}" if p.n_bytes else "",
            f"{p.bpw:.3f}" if p.bpw else "", f"{p.tg:.4g}" if p.tg else "", f"{p.y:.5g}",
            f"{p.error:.2g}" if p.error else "",
        ]
        for panel, points in shown
        for p in sorted(
            points, key=lambda p: ((p.tg if faster else p.n_bytes or p.bpw) or math.inf, p.y)
        )
    ]  # fmt: skip
    quality = QUALITIES[shown[0][0].quality]
    return html_table(("name", "author", "text", unit.name, "bpw", "writing t/s", quality, "±"), rows)
