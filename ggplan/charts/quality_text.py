"""The words of a chart of quality: the tooltip of a point, the caption, and the table of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ggplan.charts.drawing import Unit, html_table
from ggplan.charts.points import QUALITIES, Panel, Point
from ggplan.measure.tables import UNKNOWN_TEXT
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
    m = panels[0].measurement
    texts = " and ".join(f"{p.text} ({p.use})" if p.use else p.text for p in panels)
    chunks = f", {m.n_chunks} chunks of {m.n_ctx} tokens" if m.n_chunks and m.n_ctx else ""
    tokens = f", {m.n_tokens:,} of them scored" if m.n_tokens else ""
    engine = f"{m.engine} {m.build}".strip()
    known = m.text != UNKNOWN_TEXT
    facts = [f"Measured on {texts}{chunks}{tokens}" if known else "It is not recorded on which text"]
    if engine:
        facts.append(f"by {engine}" + (f" on {m.hardware}" if m.hardware else ""))
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
    dated = f" {m.date}." if m.date else ""
    return printable(", ".join(facts)) + f".{dated}{_base(panels)}\n" + " ".join(how)


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
