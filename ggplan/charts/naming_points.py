"""Names beside the points of a plot, where there is room for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggplan.charts.drawing import Box, shortened, text_box
from ggplan.charts.frontier import Standing
from ggplan.charts.labels import leader_end, place_labels
from ggplan.charts.style import FAINT, MUTED, TEXT
from ggplan.measure.subjects import short_names
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_MARKER = 6.5
_LONG_NAME = 24
_SHARES = (0.45, 0.28, 0.16)  # of a plot's width, the most that a name takes


def name_points(
    ax: Axes,
    points: Sequence[tuple[float, float, str, Standing]],
    boxes: Sequence[Box],
    lines: Sequence[Box],
    bars: Sequence[Box],
) -> int:
    """Write the names beside points; returns how many of them have no room for theirs.

    Parameters
    ----------
    points
        Their places in data, names, and standings: names on the frontier choose first and are bold.
    boxes, lines, bars
        As `place_labels` takes them.
    """
    from matplotlib.figure import Figure

    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    ranks = list(Standing)
    order = sorted(range(len(points)), key=lambda i: (ranks.index(points[i][3]), *points[i][:2]))
    texts: list[list[Text]] = []
    sizes: list[list[tuple[float, float]]] = []
    centres: list[tuple[float, float]] = []
    twins: set[int] = set()
    forms = _short_names([p[2] for p in points], figure, ax.get_window_extent().width / figure.dpi)
    for i in order:
        frontier = points[i][3] is Standing.FRONTIER
        texts.append(
            [
                ax.text(
                    0, 0, printable(name), fontsize=8.5 if frontier else 8, zorder=5, transform=None,
                    color=TEXT.light if frontier else MUTED.light,
                    fontweight="bold" if frontier else "normal",
                )
                for name in forms[i]
            ]
        )  # fmt: skip
        sizes.append([(b[2] - b[0], b[3] - b[1]) for b in map(text_box, texts[-1])])
        x, y = ax.transData.transform(points[i][:2])
        centre = (float(x), float(y))
        # If points of one name lie in one place, only one is named.
        near = [j for j, c in zip(order, centres, strict=False) if math.dist(c, centre) < _MARKER]
        if any(points[j][2] == points[i][2] for j in near):
            twins.add(i)
        centres.append(centre)
    window = ax.get_window_extent()
    frame = (window.x0 + 2, window.y0 + 2, window.x1 - 1, window.y1 - 1)
    named = [k for k, i in enumerate(order) if i not in twins]
    found = place_labels(
        [centres[k] for k in named], [sizes[k][0] for k in named], boxes, frame, lines, bars=bars,
        shorter=[sizes[k][1:] for k in named],
    )  # fmt: skip
    by_place = dict(zip(named, found, strict=True))
    places = [by_place.get(k) for k in range(len(order))]
    unnamed = 0
    for i, in_forms, widths, centre, place in zip(order, texts, sizes, centres, places, strict=True):
        for form, other in enumerate(in_forms):
            if place is None or form != place.form:
                other.remove()
        if place is None:
            unnamed += i not in twins
            continue
        text, size = in_forms[place.form], widths[place.form]
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


def _short_names(names: Sequence[str], figure: Figure, room: float) -> list[list[str]]:
    """Names to write beside points: if long, without what all begin with, and never half a plot wide.

    Each is followed by shorter forms, for points where it finds no place.
    """
    if max(map(len, names)) > _LONG_NAME:
        names = short_names(names)
    return [
        list(dict.fromkeys(shortened(figure, name, share * room, 8) for share in _SHARES)) for name in names
    ]
