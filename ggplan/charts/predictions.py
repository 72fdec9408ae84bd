"""The curve of the best files of all sizes, as predicted, with stock mixes, measured and published points.

What is predicted is hollow or a line, what was measured is filled. The band about the curve is one standard
deviation of the level of all predictions together: it says where the whole curve may lie, not how its points
lie to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from ggplan.allocation.pareto import Curve
from ggplan.charts.drawing import Box, Key, Unit, finish, html_table, new_figure, text_box, unit_for
from ggplan.charts.frontier import Standing
from ggplan.charts.naming_points import name_points
from ggplan.charts.output import Drawing
from ggplan.charts.points import Panel
from ggplan.charts.scales import Scale, apply_scale, cost_scale
from ggplan.charts.style import BACKGROUND, MUTED, SERIES, Ink, settings
from ggplan.errors import ChartError
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Source = Literal["best", "mix", "measured", "published"]
_LOOKS: dict[Source, tuple[Ink, str]] = {
    "best": (SERIES[0], "o"), "mix": (MUTED, "D"), "measured": (SERIES[1], "s"), "published": (SERIES[2], "^")
}  # fmt: skip
_SIZES: dict[Source, float] = {"best": 4.0, "mix": 5.0, "measured": 6.5, "published": 6.5}
_LABELS: dict[Source, str] = {
    "best": "best of its size, predicted",
    "mix": "stock mix, predicted",
    "measured": "measured",
    "published": "published, measured by others",
}


@dataclass(frozen=True, slots=True)
class Published:
    """A KL divergence that others measured, of a file of so many bits per weight.

    Attributes
    ----------
    name
        What to write beside it.
    bits_per_weight, kld
        Of the whole file; nats.
    credit
        Who measured it, for the caption.
    """

    name: str
    bits_per_weight: float
    kld: float
    credit: str = ""


@dataclass(frozen=True, slots=True)
class _Dot:
    source: Source
    name: str
    x: float
    y: float
    error: float | None
    said: str


def draw_frontier(
    curve: Curve,
    *,
    measured: Panel | None = None,
    published: Sequence[Published] = (),
    x: Literal["size", "bpw"] = "size",
    title: str = "",
) -> Drawing:
    """Draw the best files of all sizes and what is to be compared with them.

    Parameters
    ----------
    curve
        What `ggplan.pareto` or `read_curve` gives.
    measured
        Points of a record, whose quality is the KL divergence.
    published
        What others measured.
    x
        Size of the file, or bits per weight.

    Raises
    ------
    ChartError
        If the curve has no point above zero, a measured point has no size, or another quality was measured.
    """
    unit = unit_for(p.file_bytes for p in (*curve.points, *curve.mixes))
    dots = [
        *_predicted(curve, x, unit),
        *([] if measured is None else _measured(measured, curve, x, unit)),
        *(_published(p, curve, x, unit) for p in published),
    ]
    best = [d for d in dots if d.source == "best"]
    if not best:
        raise ChartError("no point of the curve has a KL divergence above zero")
    titles: dict[str, str] = {}
    heading = title or f"{curve.model}: KL divergence of the best files of all sizes"
    with settings():
        figure, (ax,) = new_figure(4.6, left=0.85, above=0.08)
        apply_scale(ax, cost_scale([d.x for d in dots]), "x", _short)
        low, high = min(d.y for d in dots), max(d.y for d in dots)
        apply_scale(ax, Scale("log", low / 1.6, high * 1.6), "y", _short)
        ax.set_xlabel(f"size of the file ({unit.name})" if x == "size" else "bits per weight")
        ax.set_ylabel("mean KL divergence (nats), lower is better")
        _draw_band(ax, curve, x, unit)
        ax.plot([d.x for d in best], [d.y for d in best], color=_LOOKS["best"][0].light, linewidth=1.6)
        for number, dot in enumerate(dots):
            _draw_dot(ax, dot, f"p{number}")
            titles[f"p{number}"] = dot.said
        unnamed = _name(ax, dots)
        caption = _caption(curve, measured, published, unnamed)
        present = [s for s in _LOOKS if any(d.source == s for d in dots)]
        finish(figure, heading, caption, [_key(source) for source in present])
    rows = [
        [d.name or "best of its size", _LABELS[d.source], f"{d.x:.4g}", f"{d.y:.4g}", d.said]
        for d in sorted(dots, key=lambda d: d.x)
    ]
    size = unit.name if x == "size" else "bits per weight"
    table = html_table(("file", "what it is", size, "KL divergence, nats", "in words"), rows)
    return Drawing(figure, heading, caption.replace("\n", " "), titles, table)


def _key(source: Source) -> Key:
    ink, marker = _LOOKS[source]
    return Key(_LABELS[source], ink, marker, is_hollow=source in ("best", "mix"))


def _predicted(curve: Curve, x: str, unit: Unit) -> list[_Dot]:
    found = []
    for point in (*curve.points, *curve.mixes):
        kld = point.forecast
        if kld.kld <= 0:
            continue
        place = point.file_bytes / unit.n_bytes if x == "size" else point.bits_per_weight
        said = (
            f"{point.name or 'best of its size'}: {unit.shown(point.file_bytes)},"
            f" {point.bits_per_weight:.3f} bpw, KL divergence {kld.kld:.3g} predicted"
            f" ({kld.low:.3g} to {kld.high:.3g})"
        )
        found.append(_Dot("mix" if point.name else "best", point.name, place, kld.kld, None, said))
    return found


def _measured(panel: Panel, curve: Curve, x: str, unit: Unit) -> list[_Dot]:
    if panel.quality != "kld":
        raise ChartError(
            "the record has no KL divergence to compare predictions with",
            hint="`ggplan measure --kld` measures it",
        )
    found = []
    for point in panel.points:
        n_bytes = point.n_bytes or round(point.bpw * (panel.n_weights or curve.n_weights) / 8)
        bpw = point.bpw or (8 * n_bytes / curve.n_weights if curve.n_weights else 0.0)
        place = n_bytes / unit.n_bytes if x == "size" else bpw
        if not place or point.y <= 0:
            continue
        error = f" ± {point.error:.2g}" if point.error else ""
        said = f"{point.name}: {unit.shown(n_bytes)}, KL divergence {point.y:.3g}{error} measured"
        found.append(_Dot("measured", point.name, place, point.y, point.error, said))
    if not found:
        raise ChartError(
            "no measured point has a size and a KL divergence above zero",
            hint="give --gguf FILE or --size NAME=24.6MiB",
        )
    return found


def _published(point: Published, curve: Curve, x: str, unit: Unit) -> _Dot:
    place = point.bits_per_weight
    if x == "size":
        if not curve.n_weights:
            raise ChartError("the curve does not say how many weights the model has", hint="--x bpw")
        place *= curve.n_weights / 8 / unit.n_bytes
    said = (
        f"{point.name}: {point.bits_per_weight:.3f} bpw, KL divergence {point.kld:.3g} published"
        f" ({point.credit})"
    )
    return _Dot("published", point.name, place, point.kld, None, said)


def _draw_band(ax: Axes, curve: Curve, x: str, unit: Unit) -> None:
    points = [p for p in curve.points if p.forecast.low > 0]
    ax.fill_between(
        [p.file_bytes / unit.n_bytes if x == "size" else p.bits_per_weight for p in points],
        [p.forecast.low for p in points],
        [p.forecast.high for p in points],
        color=_LOOKS["best"][0].light,
        alpha=0.14,
        linewidth=0,
        zorder=0.5,
    )


def _draw_dot(ax: Axes, dot: _Dot, gid: str) -> None:
    ink, marker = _LOOKS[dot.source]
    is_measured = dot.source in ("measured", "published")
    if dot.error:
        style: dict[str, Any] = {"elinewidth": 1.4, "capsize": 2.5, "capthick": 1.2}
        ax.errorbar(dot.x, dot.y, yerr=dot.error, fmt="none", ecolor=ink.light, zorder=3, **style)
    (drawn,) = ax.plot(
        dot.x, dot.y, marker=marker, linestyle="none", zorder=4, color=ink.light, markeredgewidth=1.3,
        markersize=_SIZES[dot.source], markerfacecolor=ink.light if is_measured else BACKGROUND.light,
    )  # fmt: skip
    drawn.set_gid(gid)


def _name(ax: Axes, dots: Sequence[_Dot]) -> int:
    """Names beside all but the curve's own points; returns how many have no room."""
    named = [
        (d.x, d.y, d.name, Standing.FRONTIER if d.source == "measured" else Standing.DOMINATED)
        for d in dots
        if d.source != "best"
    ]
    if not named:
        return 0
    boxes = [_box(ax, d.x, d.y, _SIZES[d.source]) for d in dots]
    best = [ax.transData.transform((d.x, d.y)) for d in dots if d.source == "best"]
    lines: list[Box] = []
    for (x0, y0), (x1, y1) in pairwise(best):
        steps = 8
        for k in range(steps):
            ax0, ay0 = x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps
            ax1, ay1 = x0 + (x1 - x0) * (k + 1) / steps, y0 + (y1 - y0) * (k + 1) / steps
            lines.append((min(ax0, ax1) - 1, min(ay0, ay1) - 1, max(ax0, ax1) + 1, max(ay0, ay1) + 1))
    frame = text_box(ax)
    inside = [b for b in boxes if frame[0] <= b[0] <= frame[2] and frame[1] <= b[1] <= frame[3]]
    return name_points(ax, named, inside, lines, [])


def _box(ax: Axes, x: float, y: float, size: float) -> Box:
    from matplotlib.figure import Figure

    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    px, py = ax.transData.transform((x, y))
    half = size * figure.dpi / 72 / 2 + 1
    return (px - half, py - half, px + half, py + half)


def _caption(curve: Curve, measured: Panel | None, published: Sequence[Published], unnamed: int) -> str:
    lines = [
        "Line and hollow: predicted, before a weight was read. Filled: measured. Band: one standard deviation"
        " of the level of all predictions together."
    ]
    gaps = [p.gap for p in curve.points if p.gap is not None]
    if gaps:
        lines.append(
            f"No file of these types and bands is predicted to be more than {100 * max(*gaps, 1e-4):.2g} %"
            " below the line's points."
        )
    lines += curve.caveats
    if measured is not None:
        n_ctx = measured.measurement.n_ctx
        context = f", context {n_ctx:,}" if n_ctx else ""
        base = f" against {measured.base}" if measured.base else ""
        lines.append(f"Measured on {measured.text}{context}{base}.")
    credits = dict.fromkeys(p.credit for p in published if p.credit)
    said = " ".join([*lines, *(f"Published: {c.rstrip('.')}." for c in credits)])
    if unnamed:
        points, them = ("1 point has", "it") if unnamed == 1 else (f"{unnamed} points have", "them")
        said += f" {points} no room for a name here; hover over {them} in the SVG."
    return "\n".join(
        map(printable, (said, f"Sensitivities: {curve.source}. {' '.join(curve.credit)}".strip()))
    )


def _short(value: float) -> str:
    return f"{value:.4g}" if value >= 1e-4 or value == 0 else f"{value:.0e}"
