"""What each quantization loses against what it costs: the chart for choosing a mix.

Smaller is to the left (or faster to the right), better is down. The staircase joins the mixes that no other
dominates; dominated ones are pale, ties hollow. Error bars are one standard error, pale where not paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from ggplan.charts.drawing import Drawing, html_table, write_caption, write_heading
from ggplan.charts.frontier import Leads, Standing, staircase, standings
from ggplan.charts.labels import Box, leader_end, place_labels
from ggplan.charts.points import QUALITIES, Panel, Point
from ggplan.charts.style import (
    BACKGROUND,
    BAND,
    FAINT,
    GRID,
    MARKERS,
    MUTED,
    SERIES,
    TEXT,
    new_figure,
    settings,
)
from ggplan.errors import ChartError
from ggplan.measure.guard import lead
from ggplan.measure.tables import UNKNOWN_TEXT
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cost = Literal["size", "bpw", "speed"]
_GIB = 1 << 30
_MIB = 1 << 20
_MARKER = 6.5
_INDEPENDENT = " (errors taken as independent where the tokens' scores were not kept)."


def draw_quality(
    panels: Sequence[Panel], *, cost: Cost | None = None, title: str = "", note: str = ""
) -> Drawing:
    """Draw quality against size or speed, a panel for each text.

    Parameters
    ----------
    cost
        The horizontal axis: size in GiB, bits per weight, or tokens per second; by default size, or bits
        per weight where sizes are not known.
    note
        A caveat for the caption.

    Raises
    ------
    ChartError
        If no point has what the horizontal axis needs.
    """
    chosen = cost or _best_cost(panels)
    titles: dict[str, str] = {}
    unnamed = 0
    with settings():
        several = len(panels) > 1
        figure, axes = new_figure(5.4, len(panels), 12.6 if several else 8.4)
        heading = title or f"{panels[0].model}: {_words(panels[0].quality, chosen)}"
        caption = _caption(panels, chosen) + (f" {printable(note)}" if note else "")
        two_axes = chosen != "speed" and any(panel.n_weights for panel in panels)
        top = (0.83 if two_axes else 0.89) - (0.06 if several else 0)
        left = 0.065 if several else 0.095
        figure.subplots_adjust(left=left, right=0.975, top=top, bottom=0.2, wspace=0.14)
        write_heading(figure, heading)
        for number, (panel, ax) in enumerate(zip(panels, axes, strict=True)):
            if several:
                ax.set_title(
                    f"{printable(panel.text)} ({panel.use})",
                    fontsize=10,
                    pad=36 if two_axes else 8,
                )
            unnamed += _draw_panel(panel, ax, chosen, f"p{number}", titles)
            if number:
                ax.set_ylabel("")
        if unnamed:
            have = "point has" if unnamed == 1 else "points have"
            caption += f" {unnamed} {have} no room for a name here; hover over it in the SVG."
        write_caption(figure, caption)
    return Drawing(figure, heading, caption.replace("\n", " "), titles, _table(panels, chosen))


def _best_cost(panels: Sequence[Panel]) -> Cost:
    known = [p for panel in panels for p in panel.points if p.n_bytes]
    return "size" if 2 * len(known) >= sum(len(panel.points) for panel in panels) else "bpw"


def _words(quality: str, cost: Cost) -> str:
    what = {"kld": "KL divergence", "kld99": "99 % KL divergence", "kld999": "99.9 % KL divergence",
            "dppl": "loss of perplexity", "ppl": "perplexity"}[quality]  # fmt: skip
    return f"{what} against {'speed' if cost == 'speed' else 'size'}"


def _x_of(point: Point, cost: Cost) -> float | None:
    if cost == "speed":
        return point.tg
    return (point.n_bytes if cost == "size" else point.bpw) or None


_X_LABELS = {"size": "size of the file", "bpw": "bits per weight", "speed": "tokens per second, writing"}


def _draw_panel(panel: Panel, ax: Axes, cost: Cost, prefix: str, titles: dict[str, str]) -> int:
    """Draw one text's points; returns how many of them have no room for their name."""
    placed = [(x, p) for p in panel.points if (x := _x_of(p, cost)) is not None]
    if not placed:
        needs = {"size": "a size", "bpw": "bits per weight", "speed": "tokens per second"}[cost]
        raise ChartError(f"no point has {needs}", hint="choose another axis with --x")
    xs, points = [x for x, _ in placed], [p for _, p in placed]
    ys = [p.y for p in points]
    faster = cost == "speed"
    standing = standings(xs, ys, _leads(points), more_is_better=faster)
    unit = _GIB if max(p.n_bytes for p in points) >= _GIB else _MIB
    if cost == "size":
        xs = [x / unit for x in xs]
    _scale_axes(ax, panel, xs, ys, points)
    ax.set_xlabel(_X_LABELS[cost] + (f" ({'GiB' if unit == _GIB else 'MiB'})" if cost == "size" else ""))
    corners = staircase(xs, ys, standing, more_is_better=faster)
    ax.plot(*zip(*corners, strict=True), color=SERIES[0].light, linewidth=1.2, alpha=0.55, zorder=2)
    series = sorted({p.series for p in points})
    boxes: list[Box] = []
    for i, (x, point, stand) in enumerate(zip(xs, points, standing, strict=True)):
        k = series.index(point.series) % len(SERIES)
        _draw_point(ax, x, point, stand, SERIES[k].light, MARKERS[k], f"{prefix}-{i}")
        titles[f"{prefix}-{i}"] = _title(point, panel)
    lines = _reference_lines(ax, panel, points)
    if 1 < len(series) <= 8:
        boxes.append(_legend(ax, series, faster))
    _size_axis(ax, panel, cost, unit)
    for x, point in zip(xs, points, strict=True):
        boxes.extend(_point_boxes(ax, x, point))
    boxes.extend(lines)
    return _name_points(ax, xs, points, standing, boxes, _line_boxes(ax, corners))


def _leads(points: Sequence[Point]) -> Leads:
    return lambda i, j: lead(points[i].contender, points[j].contender)


def _scale_axes(
    ax: Axes, panel: Panel, xs: Sequence[float], ys: Sequence[float], points: Sequence[Point]
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = min(xs), max(xs)
    if high > 6 * low:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(LogLocator(2))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(low / 1.12, high * 1.12)
    else:
        room = 0.09 * (high - low) or 0.1 * high
        ax.set_xlim(low - room, high + room)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))
    ends = [y + s * (p.error or 0.0) for y, p in zip(ys, points, strict=True) if p.paired for s in (-1, 1)]
    lowest, highest = min([*ys, *ends]), max([*ys, *ends])
    if panel.quality in ("kld", "kld99", "kld999", "dppl") and min(ys) > 0 and max(ys) > 4 * min(ys):
        ax.set_yscale("log")
        lowest = max(lowest, min(ys) / 3)
        ax.set_ylim(lowest / 1.5, highest * 1.6)
    elif panel.quality == "dppl" and max(ys) > 10 * -min(ys):
        # Within the noise a loss can be negative, and a negative number has no logarithm.
        threshold = max(_noise(points) or 0.0, -2 * min(ys), max(ys) / 1000)
        ax.set_yscale("symlog", linthresh=threshold, linscale=0.6)
        ax.set_ylim(1.3 * min(lowest, -0.5 * threshold), highest * 1.6)
    elif panel.quality == "ppl" and max(ys) > 3 * min(ys):
        ax.set_yscale("log")
        ax.set_ylim(min(ys) / 1.06, max(ys) * 1.1)
    else:
        base = [panel.base_y] if panel.base_y is not None else []
        lowest, highest = min([lowest, *base]), max([highest, *base])
        room = 0.1 * (highest - lowest) or 0.1
        ax.set_ylim(lowest - room, highest + room)
    if ax.get_yscale() != "linear":
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))
        low, high = ax.get_ylim()
        if ax.get_yscale() == "log" and high < 40 * low:
            ax.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    ax.set_ylabel(QUALITIES[panel.quality] + ", lower is better")


def _noise(points: Sequence[Point]) -> float | None:
    """The smallest paired error: smaller differences cannot be seen on this text."""
    errors = [p.error for p in points if p.paired and p.error]
    return min(errors) if errors else None


def _draw_point(
    ax: Axes, x: float, point: Point, stand: Standing, colour: str, marker: str, gid: str
) -> None:
    alpha = {Standing.FRONTIER: 1.0, Standing.TIE: 0.9, Standing.DOMINATED: 0.38}[stand]
    if point.error:
        style: dict[str, Any] = {"elinewidth": 1.4, "capsize": 2.5, "capthick": 1.2}
        if not point.paired:
            style = {"elinewidth": 0.9, "capsize": 0}
        ax.errorbar(
            x, point.y, yerr=point.error, fmt="none", ecolor=colour if point.paired else FAINT.light,
            alpha=alpha * (0.8 if point.paired else 0.45), zorder=3, **style,
        )  # fmt: skip
    hollow = stand is Standing.TIE
    (drawn,) = ax.plot(
        x, point.y, marker=marker, markersize=_MARKER, linestyle="none", zorder=4, alpha=alpha,
        color=colour, markerfacecolor=BACKGROUND.light if hollow else colour, markeredgewidth=1.3,
    )  # fmt: skip
    drawn.set_gid(gid)
    if point.url.startswith(("https://", "http://")):
        drawn.set_url(point.url)


def _reference_lines(ax: Axes, panel: Panel, points: Sequence[Point]) -> list[Box]:
    """The base and q8_0 across the panel, and the noise floor; the boxes of their names."""
    boxes = []
    low, high = sorted(ax.get_ylim())
    noise = _noise(points)
    if panel.quality != "ppl" and noise is not None and low < noise:
        ax.axhspan(max(low, -noise), noise, color=BAND.light, zorder=0.5)
    lines = []
    if panel.base_y is not None and panel.base:
        value = f" {panel.base_y:.4g}" if panel.quality == "ppl" else ""
        lines.append((panel.base_y, panel.base + value, "-"))
    eight = [p for p in points if p.name.lower().replace("-", "_").endswith("q8_0")]
    if eight and not panel.base.lower().endswith("q8_0"):
        lines.append((eight[0].y, "q8_0", ":"))
    for y, name, dash in lines:
        if not low < y < high:
            continue
        ax.axhline(y, color=FAINT.light, linewidth=0.9, linestyle=dash, zorder=1)
        text = ax.annotate(
            printable(name), (1, y), xycoords=("axes fraction", "data"), xytext=(-3, 2.5),
            textcoords="offset points", ha="right", va="bottom", fontsize=8, color=MUTED.light,
        )  # fmt: skip
        boxes.append(_extent(text))
    return boxes


def _legend(ax: Axes, series: Sequence[str], faster: bool) -> Box:
    """The authors, in the corner where the worst mixes would be; returns the box it takes."""
    for k, name in enumerate(series):
        ax.plot(
            [], [], linestyle="none", marker=MARKERS[k % len(MARKERS)], markersize=_MARKER,
            color=SERIES[k % len(SERIES)].light, label=printable(name) or "no author",
        )  # fmt: skip
    legend = ax.legend(loc="upper left" if faster else "upper right", fontsize=8.5, handletextpad=0.2)
    box = legend.get_window_extent()
    return (box.x0, box.y0, box.x1, box.y1)


def _size_axis(ax: Axes, panel: Panel, cost: Cost, unit: int) -> None:
    """A second axis for the same sizes: bits per weight beside GiB, or the reverse."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    if cost == "speed" or not panel.n_weights:
        return
    unit = unit if cost == "size" else _GIB
    factor = 8 * unit / panel.n_weights
    if cost == "bpw":
        factor = 1 / factor

    def there(values: Any) -> Any:
        return values * factor

    def back(values: Any) -> Any:
        return values / factor

    second = ax.secondary_xaxis("top", functions=(there, back))
    second.set_xlabel("bits per weight" if cost == "size" else "size (GiB)", fontsize=8.5, labelpad=4)
    second.tick_params(labelsize=8, length=3)
    second.spines["top"].set_color(GRID.light)
    if ax.get_xscale() == "log":
        low, high = (v * factor for v in ax.get_xlim())
        ticks = [t for t in (1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32) if low <= t <= high]
        if cost == "size" and ticks:
            second.set_ticks(ticks)
        second.xaxis.set_minor_locator(NullLocator())
    else:
        second.xaxis.set_major_locator(MaxNLocator(8))
    second.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))


def _line_boxes(ax: Axes, corners: Sequence[tuple[float, float]]) -> list[Box]:
    """The staircase, as thin boxes that no label may cover."""
    pixels = [tuple(ax.transData.transform(corner)) for corner in corners]
    return [
        (min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)
        for (x0, y0), (x1, y1) in pairwise(pixels)
    ]


def _point_boxes(ax: Axes, x: float, point: Point) -> list[Box]:
    """The parts of a point that no label may cover: its marker and its error bar."""
    from matplotlib.figure import Figure

    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    px, py = ax.transData.transform((x, point.y))
    half = _MARKER * figure.dpi / 72 / 2 + 1
    boxes = [(px - half, py - half, px + half, py + half)]
    if point.error and point.paired:
        low, high = ax.get_ylim()
        ends = [min(max(point.y + s * point.error, low), high) for s in (-1, 1)]
        bottom, top = (ax.transData.transform((x, y))[1] for y in ends)
        boxes.append((px - 3, bottom, px + 3, top))
    return boxes


def _name_points(
    ax: Axes, xs: Sequence[float], points: Sequence[Point], standing: Sequence[Standing],
    boxes: Sequence[Box], lines: Sequence[Box],
) -> int:  # fmt: skip
    from matplotlib.figure import Figure

    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    order = sorted(range(len(points)), key=lambda i: (list(Standing).index(standing[i]), xs[i], points[i].y))
    texts, sizes = [], []
    centres: list[tuple[float, float]] = []
    twins: set[int] = set()
    for i in order:
        frontier = standing[i] is Standing.FRONTIER
        text = ax.text(
            0, 0, printable(points[i].name), fontsize=8.5 if frontier else 8, zorder=5, transform=None,
            color=TEXT.light if frontier else MUTED.light, fontweight="bold" if frontier else "normal",
        )  # fmt: skip
        left, bottom, right, top = _extent(text)
        texts.append(text)
        sizes.append((right - left, top - bottom))
        x, y = ax.transData.transform((xs[i], points[i].y))
        centre = (float(x), float(y))
        # If points of one name lie in one place, only one is named.
        near = [j for j, c in zip(order, centres, strict=False) if math.dist(c, centre) < _MARKER]
        if any(points[j].name == points[i].name for j in near):
            twins.add(i)
        centres.append(centre)
    window = ax.get_window_extent()
    frame = (window.x0 + 2, window.y0 + 2, window.x1 - 1, window.y1 - 1)
    named = [k for k, i in enumerate(order) if i not in twins]
    found = place_labels([centres[k] for k in named], [sizes[k] for k in named], boxes, frame, lines)
    by_place = dict(zip(named, found, strict=True))
    places = [by_place.get(k) for k in range(len(order))]
    unnamed = 0
    for i, text, size, centre, place in zip(order, texts, sizes, centres, places, strict=True):
        if place is None:
            text.remove()
            unnamed += i not in twins
            continue
        # Placed in pixels, kept as a share of the axes: the figure may be saved at any resolution.
        text.set_transform(ax.transAxes)
        text.set_position(tuple(ax.transAxes.inverted().transform((place.x, place.y))))
        text.set_verticalalignment("bottom")
        if place.leader:
            end = ax.transAxes.inverted().transform(leader_end(place, size, centre))
            start = ax.transAxes.inverted().transform(centre)
            ax.plot(
                [start[0], end[0]], [start[1], end[1]], transform=ax.transAxes, color=FAINT.light,
                linewidth=0.6, zorder=1.5, alpha=0.9,
            )  # fmt: skip
    return unnamed


def _extent(text: Any) -> Box:
    box = text.get_window_extent()
    return (box.x0, box.y0, box.x1, box.y1)


def _short(value: float) -> str:
    return f"{value:.4g}" if value >= 1e-4 or value <= -1e-4 or value == 0 else f"{value:.0e}"


def _title(point: Point, panel: Panel) -> str:
    error = f" ± {point.error:.2g}" if point.error else ""
    unit = "%" if panel.quality == "dppl" else ""
    size = f", {point.n_bytes / _GIB:.3g} GiB" if point.n_bytes else ""
    bpw = f", {point.bpw:.3f} bpw" if point.bpw else ""
    speed = f", {point.tg:.4g} t/s" if point.tg else ""
    author = f" by {point.series}" if point.series else ""
    n_nan = point.contender.measurement.n_nan
    nan = f", without {n_nan:,} tokens that have no number" if n_nan else ""
    return f"{point.name}{author}: {panel.quality} {point.y:.4g}{error}{unit}{size}{bpw}{speed}{nan}"


def _caption(panels: Sequence[Panel], cost: Cost) -> str:
    first = panels[0]
    m = first.measurement
    texts = " and ".join(f"{p.text} ({p.use})" if p.use else p.text for p in panels)
    chunks = f", {m.n_chunks} chunks of {m.n_ctx} tokens" if m.n_chunks and m.n_ctx else ""
    tokens = f", {m.n_tokens:,} of them scored" if m.n_tokens else ""
    engine = f"{m.engine} {m.build}".strip()
    known = m.text != UNKNOWN_TEXT
    facts = [f"Measured on {texts}{chunks}{tokens}" if known else "It is not recorded on which text"]
    if engine:
        facts.append(f"by {engine}" + (f" on {m.hardware}" if m.hardware else ""))
    points = [p for panel in panels for p in panel.points]
    how = []
    if any(p.error and p.paired for p in points):
        how.append("Bars: one standard error of the difference on the same tokens.")
    elif any(p.error for p in points):
        how.append("Pale bars: unpaired errors, mostly the text's own; differences are far more certain.")
    else:
        how.append("No errors are known.")
    how.append(f"Bold: nothing {'faster' if cost == 'speed' else 'smaller'} is as good.")
    if any(p.paired for p in points):
        apart = any(p.paired and p.contender.scores is None for p in points)
        how.append("Hollow: a tie within one error" + (_INDEPENDENT if apart else "."))
    if any(p.contender.measurement.n_nan for p in points):
        how.append("NaN tokens are left out: two files' figures may be over different tokens.")
    left_out = sum(panel.n_left_out for panel in panels)
    left_out += sum(_x_of(p, cost) is None for p in points)
    if left_out:
        how.append(f"Without this quality or cost, not drawn: {left_out}.")
    if any(panel.n_conditions > 1 for panel in panels):
        how.append(f"MIXED: {sum(p.n_conditions for p in panels)} different conditions on one axis.")
    measured = printable(", ".join(facts)) + "."
    dated = f" {m.date}." if m.date else ""
    return measured + dated + "\n" + " ".join(how)


def _table(panels: Sequence[Panel], cost: Cost) -> str:
    rows = [
        [
            p.name, p.series, panel.text, f"{p.n_bytes / _GIB:.3f}" if p.n_bytes else "",
            f"{p.bpw:.3f}" if p.bpw else "", f"{p.y:.5g}", f"{p.error:.2g}" if p.error else "",
        ]
        for panel in panels
        for p in sorted(panel.points, key=lambda p: (_x_of(p, cost) or math.inf, p.y))
    ]  # fmt: skip
    return html_table(("name", "author", "text", "GiB", "bpw", QUALITIES[panels[0].quality], "±"), rows)
