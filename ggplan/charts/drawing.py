"""The sheet of all charts: a heading, a legend, plots and a caption, each as tall as what it holds.

Plots are made first, at their own size in inches; `finish` then puts heading and legend above them and the
caption below, and the figure becomes as tall as all of that takes.
"""

from __future__ import annotations

import html
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from ggplan.charts.style import BACKGROUND, MUTED, TEXT, Ink
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""

WIDTH, PAIR_WIDTH = 8.4, 10.4
_EDGE = 0.17
_HEADING, _LEGEND, _CAPTION = 13.0, 8.5, 8.0
_HEADING_LINE, _LEGEND_LINE, _CAPTION_LINE = 0.25, 0.22, 0.16
_SYMBOL = 0.15
_GIB, _MIB, _KIB = 1 << 30, 1 << 20, 1 << 10


@dataclass(frozen=True, slots=True)
class Key:
    """A line of a legend: a marker, or a square with a letter in it, and what it stands for."""

    label: str
    ink: Ink
    marker: str = ""
    letter: str = ""
    letter_ink: Ink = TEXT
    is_hollow: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of all sizes in a chart."""

    n_bytes: int
    name: str

    def shown(self, n_bytes: int) -> str:
        """A size with two decimals or three digits: `80.7 GiB`, `0.36 MiB`."""
        value = n_bytes / self.n_bytes
        if 0 < value < 0.005:
            return f"<0.01 {self.name}"
        digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
        return f"{value:.{digits}f} {self.name}"


def unit_for(sizes: Iterable[int]) -> Unit:
    """The unit in which the largest size is at least 1."""
    largest = max(sizes, default=0)
    return next(
        (Unit(n, name) for n, name in ((_GIB, "GiB"), (_MIB, "MiB")) if largest >= n), Unit(_KIB, "KiB")
    )


def new_figure(
    plot_height: float, n_panels: int = 1, width: float = WIDTH, *, left: float, right: float = 0.2,
    above: float = 0.1, below: float = 0.5, gap: float = 0.45,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """A figure with panels side by side, all lengths in inches; call it, and draw, inside `settings()`.

    Parameters
    ----------
    left, right, above, below
        Room around the plots for ticks and labels.
    gap
        Room between two plots.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = above + plot_height + below
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    across = (width - left - right - (n_panels - 1) * gap) / n_panels
    axes = [
        figure.add_axes(
            ((left + k * (across + gap)) / width, below / height, across / width, plot_height / height)
        )
        for k in range(n_panels)
    ]
    return figure, axes


def finish(figure: Figure, heading: str, caption: str, legend: Sequence[Key] = ()) -> None:
    """Put a heading and a legend above the plots and a caption below them, in lines as wide as the figure."""
    room = figure.get_figwidth() - 2 * _EDGE
    head = wrapped(figure, printable(heading), room, _HEADING, "bold")
    foot = [line for part in caption.splitlines() for line in wrapped(figure, part, room, _CAPTION)]
    rows = _in_rows(figure, legend, room)
    above = 0.1 + _HEADING_LINE * len(head) + (_LEGEND_LINE * len(rows) + 0.12 if rows else 0)
    _grow(figure, above, below=0.1 + _CAPTION_LINE * len(foot) + 0.06)
    inches: Any = figure.dpi_scale_trans
    top = figure.get_figheight() - 0.1
    for line in head:
        figure.text(_EDGE, top, line, transform=inches, fontsize=_HEADING, fontweight="bold", va="top")
        top -= _HEADING_LINE
    top -= 0.08
    for row in rows:
        for x, key in row:
            _draw_key(figure, x, top - _LEGEND_LINE / 2, key)
        top -= _LEGEND_LINE
    for k, line in enumerate(reversed(foot)):
        figure.text(
            _EDGE, 0.08 + k * _CAPTION_LINE, line, transform=inches, fontsize=_CAPTION, color=MUTED.light,
            va="bottom",
        )  # fmt: skip


def _grow(figure: Figure, above: float, below: float) -> None:
    """Make a figure taller; the plots keep their sizes in inches."""
    width, old = figure.get_size_inches()
    new = old + above + below
    places = [(ax, ax.get_position()) for ax in figure.axes]
    figure.set_size_inches(width, new)
    for ax, place in places:
        ax.set_position((place.x0, (place.y0 * old + below) / new, place.width, place.height * old / new))


def _in_rows(figure: Figure, keys: Sequence[Key], room: float) -> list[list[tuple[float, Key]]]:
    """The keys of a legend in rows, each with its place in inches from the left."""
    rows: list[list[tuple[float, Key]]] = []
    x = room + 1
    for key in keys:
        width = _SYMBOL + 0.07 + text_width(figure, key.label, _LEGEND)
        if x + width > room + _EDGE:
            rows.append([])
            x = _EDGE
        rows[-1].append((x, key))
        x += width + 0.2
    return rows


def _draw_key(figure: Figure, x: float, y: float, key: Key) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    inches: Any = figure.dpi_scale_trans
    if key.marker:
        figure.add_artist(
            Line2D(
                [x + _SYMBOL / 2], [y], marker=key.marker, markersize=6.5, linestyle="none",
                color=key.ink.light, transform=inches, markeredgewidth=1.3,
                markerfacecolor=BACKGROUND.light if key.is_hollow else key.ink.light,
            )
        )  # fmt: skip
    else:
        figure.add_artist(
            Rectangle(
                (x, y - _SYMBOL / 2), _SYMBOL, _SYMBOL, facecolor=key.ink.light, edgecolor="none",
                transform=inches,
            )
        )  # fmt: skip
        figure.text(
            x + _SYMBOL / 2, y, key.letter, transform=inches, fontsize=7, color=key.letter_ink.light,
            ha="center", va="center_baseline",
        )  # fmt: skip
    figure.text(
        x + _SYMBOL + 0.07, y, printable(key.label), transform=inches, fontsize=_LEGEND,
        va="center_baseline",
    )  # fmt: skip


def wrapped(figure: Figure, text: str, room: float, size: float, weight: str = "normal") -> list[str]:
    """A text in lines that take no more than so many inches; a word that is too long is cut."""
    lines: list[str] = []
    words = text.split()
    n_characters = int(144 * room / size)  # of a line, if they are half as wide as they are high
    while words:
        n = _n_fitting(lambda line: text_width(figure, line, size, weight) <= room, words, n_characters)
        if n == 0 and len(words[0]) > 1:
            width = text_width(figure, words[0], size, weight)
            cut = max(1, int(len(words[0]) * room / width))
            lines.append(words[0][:cut])
            words[0] = words[0][cut:]
            continue
        n = max(1, n)
        lines.append(" ".join(words[:n]))
        n_characters = len(lines[-1]) + 2
        words = words[n:]
    return lines


def _n_fitting(fits: Callable[[str], bool], words: Sequence[str], n_characters: int) -> int:
    """How many of the first words fit in a line, looked for from those of about so many characters.

    To measure a text takes long, and a word more makes it longer.
    """
    ends = list(accumulate(len(word) + 1 for word in words))
    n = max(1, bisect_right(ends, n_characters))
    if fits(" ".join(words[:n])):
        while n < len(words) and fits(" ".join(words[: n + 1])):
            n += 1
        return n
    n -= 1
    while n > 0 and not fits(" ".join(words[:n])):
        n -= 1
    return n


def shortened(figure: Figure, text: str, room: float, size: float) -> str:
    """A text that takes no more than so many inches, its middle left out where it is longer."""
    text = printable(text)
    n = len(text)
    shown = text
    while text_width(figure, shown, size) > room and n > 2:
        n -= max(1, n // 12)
        shown = f"{text[: n - n // 2]}…{text[len(text) - n // 2 :]}"
    return shown


def text_width(figure: Figure, text: str, size: float, weight: str = "normal") -> float:
    """The width of a line of text, in inches."""
    drawn = figure.text(0, 0, printable(text), fontsize=size, fontweight=weight)
    width = drawn.get_window_extent().width / figure.dpi
    drawn.remove()
    return float(width)


def text_box(text: Any) -> Box:
    """The pixels that a drawn text, or a plot, takes."""
    box = text.get_window_extent()
    return (box.x0, box.y0, box.x1, box.y1)


def set_ticks(axis: Axis, places: Sequence[float], labels: Sequence[str]) -> None:
    """Set ticks, of which every second is left out until no two labels touch."""
    places, labels = list(places), list(labels)
    axis.set_ticks(places, labels)
    while len(places) > 2 and _collide(axis):
        places, labels = places[::2], labels[::2]
        axis.set_ticks(places, labels)


def _collide(axis: Axis) -> bool:
    from matplotlib.axis import XAxis

    boxes = sorted(text_box(label) for label in axis.get_ticklabels() if label.get_text())
    flat = isinstance(axis, XAxis)
    ends = [(b[0], b[2]) if flat else (b[1], b[3]) for b in boxes]
    ends.sort()
    room = 5 if flat else 1
    return any(a[1] + room > b[0] for a, b in pairwise(ends))


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The data behind a chart, escaped."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(printable(c))}</td>" for c in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
