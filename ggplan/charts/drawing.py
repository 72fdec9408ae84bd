"""`Drawing`, which every chart gives to the file writer, and the heading, caption and table of all charts."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.charts.style import MUTED
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHARACTERS_PER_INCH = 15.5  # of DejaVu Sans at 8 points, the margins taken off


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure and what goes with it into a file.

    Attributes
    ----------
    title, description
        What the picture is and what it shows, for readers who cannot see it.
    titles
        The tooltip of each named part (`gid`) of the drawing.
    table
        HTML of the data.
    """

    figure: Figure
    title: str
    description: str
    titles: dict[str, str]
    table: str = ""


def write_heading(figure: Figure, text: str) -> None:
    """The chart's name, upper left."""
    figure.text(0.02, 0.965, printable(text), fontsize=13, fontweight="bold", va="top")


def write_caption(figure: Figure, text: str) -> None:
    """What was measured and how to read it, lower left, in lines as wide as the figure."""
    room = int(_CHARACTERS_PER_INCH * figure.get_figwidth())
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, room)]
    figure.text(0.02, 0.02, "\n".join(lines), fontsize=8, color=MUTED.light, va="bottom", linespacing=1.45)


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The data behind a chart, escaped."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(printable(c))}</td>" for c in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
