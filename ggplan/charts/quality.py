"""What each quantization loses against what it costs: the chart for choosing a mix.

Smaller is to the left (or faster to the right), better is down. The staircase joins the mixes that no other
dominates; dominated ones are small, ties hollow. Error bars are one standard error, pale where not paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from ggplan.charts.drawing import (
    PAIR_WIDTH,
    WIDTH,
    Box,
    Key,
    Unit,
    finish,
    new_figure,
    shortened,
    text_box,
    unit_for,
)
from ggplan.charts.frontier import Leads, Standing, staircase, standings
from ggplan.charts.given import GivenRecord, paths_of, records_of, require_choice
from ggplan.charts.labels import is_inside, overlap
from ggplan.charts.naming_points import name_points
from ggplan.charts.output import Drawing
from ggplan.charts.points import QUALITIES, Panel, Point, Quality, panels
from ggplan.charts.quality_text import point_title, quality_caption, quality_table
from ggplan.charts.scales import (
    Scale,
    apply_scale,
    cost_scale,
    divergence_scale,
    linear_scale,
    loss_scale,
)
from ggplan.charts.style import BACKGROUND, BAND, FAINT, MUTED, Mark, marks_of, settings
from ggplan.errors import ChartError
from ggplan.measure.guard import lead
from ggplan.measure.record_file import Scores, kept_scores
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cost = Literal["size", "bpw", "speed"]
_MARKER, _SMALL_MARKER = 6.5, 4.5
_X_LABELS: dict[Cost, str] = {
    "size": "size of the file",
    "bpw": "bits per weight",
    "speed": "tokens per second, writing",
}
_X_WORDS: dict[Cost, str] = {"size": "size", "bpw": "bits per weight", "speed": "speed of writing"}
_Y_WORDS: dict[Quality, str] = {
    "kld": "KL divergence",
    "kld99": "99 % KL divergence",
    "kld999": "99.9 % KL divergence",
    "dppl": "loss of perplexity",
    "ppl": "perplexity",
}


def draw_quality(
    records: GivenRecord | Sequence[GivenRecord],
    *,
    metric: Quality | None = None,
    x: Cost | None = None,
    text: str | None = None,
    n_ctx: int | None = None,
    mixed: bool = False,
    scores: Scores | None = None,
    title: str = "",
) -> Drawing:
    """Draw quality against size, bits per weight or speed, a panel for each text.

    Parameters
    ----------
    records
        Records, or the files of records, logs and tables.
    metric
        What is lost; by default the best that all measurements have: KL divergence, else perplexity above
        the base's, else perplexity.
    x
        What it costs: size, bits per weight ("bpw"), or tokens per second ("speed"); by default size, or
        bits per weight where sizes are not known.
    text
        Draw what was measured on this text only, by its name or the beginning of its digest.
    n_ctx
        Draw what was measured with this context only, in tokens.
    mixed
        Draw points of different conditions on one axis.
    scores
        Every token's scores, where they were kept (`ggplan.measure.kept_scores`): two points are then
        compared token by token.

    Raises
    ------
    ChartError
        If there is nothing to draw, the points must not share an axis, or `metric` or `x` has no such value.
    MeasureError
        If a file cannot be read.
    """
    if metric is not None:
        require_choice("metric", metric, Quality)
    if x is not None:
        require_choice("x", x, Cost)
    given = records_of(records)
    if scores is None and (paths := paths_of(records)):
        scores = kept_scores(*paths)
    return draw_panels(
        panels(given, quality=metric, text=text, n_ctx=n_ctx, mixed=mixed, scores=scores),
        cost=x,
        title=title,
    )


def draw_panels(
    panels: Sequence[Panel], *, cost: Cost | None = None, title: str = "", note: str = ""
) -> Drawing:
    """Draw panels of points side by side, on axes that they share.

    Parameters
    ----------
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
    shown = [(panel, _with_cost(panel, chosen)) for panel in panels]
    everything = [point for _, points in shown for point in points]
    unit = unit_for(p.n_bytes for p in everything)
    marks = marks_of([p.series for p in everything])
    two_axes = chosen != "speed" and any(panel.n_weights for panel in panels)
    several = len(panels) > 1
    with settings():
        figure, axes = new_figure(
            3.9, len(panels), PAIR_WIDTH if several else WIDTH, left=0.85, gap=0.3,
            above=(0.42 if two_axes else 0.08) + (0.3 if several else 0),
        )  # fmt: skip
        heading = title or f"{panels[0].model}: {_Y_WORDS[panels[0].quality]} against {_X_WORDS[chosen]}"
        across = cost_scale([_x_of(p, chosen, unit) for p in everything])
        up = _quality_scale(panels, everything)
        for number, ((panel, points), ax) in enumerate(zip(shown, axes, strict=True)):
            if several:
                room = ax.get_position().width * figure.get_figwidth()
                name = shortened(figure, f"{panel.text} ({panel.use})" if panel.use else panel.text, room, 11)
                ax.set_title(name, fontsize=10, pad=36 if two_axes else 8)
            apply_scale(ax, across, "x", _short)
            apply_scale(ax, up, "y", _short)
            ax.set_xlabel(_X_LABELS[chosen] + (f" ({unit.name})" if chosen == "size" else ""))
            if number:
                ax.tick_params(axis="y", labelleft=False)
            else:
                ax.set_ylabel(QUALITIES[panel.quality] + ", lower is better")
            if two_axes:
                _second_axis(ax, panel, chosen, unit, across)
            unnamed += _draw_points(panel, points, ax, chosen, unit, marks, f"p{number}", titles)
        caption = quality_caption(panels, everything, faster=chosen == "speed") + (
            f" {printable(note)}" if note else ""
        )
        if unnamed:
            have, them = ("point has", "it") if unnamed == 1 else ("points have", "them")
            caption += f" {unnamed} {have} no room for a name here; hover over {them} in the SVG."
        keys = [Key(name or "no author", mark.ink, mark.marker) for name, mark in marks.items()]
        finish(figure, heading, caption, keys if any(marks) else ())
    table = quality_table(shown, unit, faster=chosen == "speed")
    return Drawing(figure, heading, caption.replace("\n", " "), titles, table)


def _with_cost(panel: Panel, cost: Cost) -> list[Point]:
    """The points of a panel that have a place on the horizontal axis."""
    points = [
        p for p in panel.points if (p.tg if cost == "speed" else p.n_bytes if cost == "size" else p.bpw)
    ]
    if points:
        return points
    if cost == "speed":
        hint = "`ggplan measure --parse` reads llama-bench and llama-sweep-bench; --x chooses another axis"
        raise ChartError("no point has tokens per second", hint=hint)
    raise ChartError(
        f"no point has {'a size' if cost == 'size' else 'bits per weight'}",
        hint="a log does not say how large its file is: give --gguf FILE or --size NAME=24.6MiB,"
        " or choose another axis with --x",
    )


def _best_cost(panels: Sequence[Panel]) -> Cost:
    points = [p for panel in panels for p in panel.points]
    n_sizes, n_bpw = sum(bool(p.n_bytes) for p in points), sum(bool(p.bpw) for p in points)
    return "size" if 2 * n_sizes >= len(points) or n_sizes >= n_bpw else "bpw"


def _x_of(point: Point, cost: Cost, unit: Unit) -> float:
    if cost == "speed":
        return point.tg or 0.0
    return point.n_bytes / unit.n_bytes if cost == "size" else point.bpw


def _quality_scale(panels: Sequence[Panel], points: Sequence[Point]) -> Scale:
    """One scale for all panels, with room for every error bar and for the base."""
    quality = panels[0].quality
    ys = [p.y for p in points]
    ends = [p.y + sign * (p.error or 0.0) for p in points for sign in (-1, 1)]
    found = divergence_scale(ys, ends) if quality != "ppl" or max(ys) > 3 * min(ys) else None
    if found is None and quality == "dppl":
        found = loss_scale(ys, ends, _noise(points) or 0.0)
    bases = [panel.base_y for panel in panels if panel.base_y is not None]
    return found or linear_scale([*ys, *ends, *bases])


def _draw_points(
    panel: Panel, points: Sequence[Point], ax: Axes, cost: Cost, unit: Unit, marks: dict[str, Mark],
    prefix: str, titles: dict[str, str],
) -> int:  # fmt: skip
    """Draw one text's points; returns how many of them have no room for their name."""
    xs, ys = [_x_of(p, cost, unit) for p in points], [p.y for p in points]
    faster = cost == "speed"
    standing = standings(xs, ys, _leads(points), more_is_better=faster)
    corners = staircase(xs, ys, standing, more_is_better=faster)
    ax.plot(*zip(*corners, strict=True), color=FAINT.light, linewidth=1.2, zorder=2)
    for i, (x, point, stand) in enumerate(zip(xs, points, standing, strict=True)):
        _draw_point(ax, x, point, stand, marks[point.series], f"{prefix}-{i}")
        titles[f"{prefix}-{i}"] = point_title(point, panel, unit)
    markers = [_marker_box(ax, x, point) for x, point in zip(xs, points, strict=True)]
    bars = [_bar_box(ax, x, point) for x, point in zip(xs, points, strict=True) if point.error]
    names, lines = _reference_lines(ax, panel, points, [*markers, *bars])
    lines += _line_boxes(ax, corners)
    named = [(x, p.y, p.name, stand) for x, p, stand in zip(xs, points, standing, strict=True)]
    return name_points(ax, named, [*markers, *names], lines, bars)


def _leads(points: Sequence[Point]) -> Leads:
    return lambda i, j: lead(points[i].contender, points[j].contender)


def _noise(points: Sequence[Point]) -> float | None:
    """The smallest paired error: smaller differences cannot be seen on this text."""
    errors = [p.error for p in points if p.paired and p.error]
    return min(errors) if errors else None


def _draw_point(ax: Axes, x: float, point: Point, stand: Standing, mark: Mark, gid: str) -> None:
    colour = mark.ink.light
    if point.error:
        style: dict[str, Any] = {"elinewidth": 1.4, "capsize": 2.5, "capthick": 1.2}
        if not point.paired:
            style = {"elinewidth": 0.9, "capsize": 0}
        ax.errorbar(
            x, point.y, yerr=point.error, fmt="none", ecolor=colour if point.paired else FAINT.light,
            alpha=0.8 if point.paired else 0.6, zorder=3, **style,
        )  # fmt: skip
    hollow = stand is Standing.TIE
    (drawn,) = ax.plot(
        x, point.y, marker=mark.marker, linestyle="none", zorder=4, color=colour, markeredgewidth=1.3,
        markersize=_SMALL_MARKER if stand is Standing.DOMINATED else _MARKER,
        markerfacecolor=BACKGROUND.light if hollow else colour,
    )  # fmt: skip
    drawn.set_gid(gid)
    if point.url.startswith(("https://", "http://")):
        drawn.set_url(point.url)


def _reference_lines(
    ax: Axes, panel: Panel, points: Sequence[Point], obstacles: Sequence[Box]
) -> tuple[list[Box], list[Box]]:
    """The base and q8_0 across the panel, and the noise floor; the boxes of their names, and of the lines."""
    names: list[Box] = []
    boxes: list[Box] = []
    low, high = ax.get_ylim()
    frame = text_box(ax)
    noise = _noise(points)
    if panel.quality != "ppl" and noise is not None and low < noise:
        ax.axhspan(max(low, -noise), min(high, noise), color=BAND.light, zorder=0.5)
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
        at = float(ax.transData.transform((ax.get_xlim()[0], y))[1])
        boxes.append((frame[0], at - 1, frame[2], at + 1))
        box = _name_line(ax, y, name, [*obstacles, *names])
        if box is not None:
            names.append(box)
    return names, boxes


def _name_line(ax: Axes, y: float, name: str, obstacles: Sequence[Box]) -> Box | None:
    """Name a line at its right end or else its left one, above it or below; None if there is no room."""
    for right in (True, False):
        for above in (True, False):
            text = ax.annotate(
                printable(name), (1 if right else 0, y), xycoords=("axes fraction", "data"),
                xytext=(-3 if right else 3, 2.5 if above else -2.5), textcoords="offset points",
                ha="right" if right else "left", va="bottom" if above else "top", fontsize=8,
                color=MUTED.light,
            )  # fmt: skip
            box = text_box(text)
            if is_inside(box, text_box(ax)) and not any(overlap(box, other) for other in obstacles):
                return box
            text.remove()
    return None


def _second_axis(ax: Axes, panel: Panel, cost: Cost, unit: Unit, scale: Scale) -> None:
    """A second axis above for the same sizes: bits per weight beside GiB, or the reverse."""
    if not panel.n_weights:
        return
    factor = 8 * unit.n_bytes / panel.n_weights
    there = scale.times(factor if cost == "size" else 1 / factor)
    second = ax.twiny()
    second.grid(visible=False)
    apply_scale(second, there, "x", _short)
    second.set_xlabel(
        "bits per weight" if cost == "size" else f"size ({unit.name})", fontsize=8.5, labelpad=4
    )
    second.tick_params(labelsize=8, length=3)
    for spine in second.spines.values():
        spine.set_visible(False)


def _line_boxes(ax: Axes, corners: Sequence[tuple[float, float]]) -> list[Box]:
    """The staircase, as thin boxes that no label may cover."""
    pixels = [tuple(ax.transData.transform(corner)) for corner in corners]
    return [
        (min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)
        for (x0, y0), (x1, y1) in pairwise(pixels)
    ]


def _marker_box(ax: Axes, x: float, point: Point) -> Box:
    """The pixels of a point's marker."""
    from matplotlib.figure import Figure

    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    px, py = ax.transData.transform((x, point.y))
    half = _MARKER * figure.dpi / 72 / 2 + 1
    return (px - half, py - half, px + half, py + half)


def _bar_box(ax: Axes, x: float, point: Point) -> Box:
    """The pixels of a point's error bar, as far as it is in the plot."""
    low, high = ax.get_ylim()
    error = point.error or 0.0
    ends = [min(max(point.y + s * error, low), high) for s in (-1, 1)]
    (px, bottom), (_, top) = (ax.transData.transform((x, y)) for y in ends)
    return (px - 3, bottom, px + 3, top)


def _short(value: float) -> str:
    return f"{value:.4g}" if value >= 1e-4 or value <= -1e-4 or value == 0 else f"{value:.0e}"
