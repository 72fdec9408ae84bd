"""Where the GiB are: a bar for each quantization, cut by role and by type.

A part that is too small for its type's name is named in the line below the bar, in the order of the bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.charts.drawing import (
    WIDTH,
    Key,
    Unit,
    finish,
    html_table,
    new_figure,
    shortened,
    text_width,
    unit_for,
    wrapped,
)
from ggplan.charts.given import GivenRecord, records_of
from ggplan.charts.output import Drawing
from ggplan.charts.scales import Scale, apply_scale
from ggplan.charts.style import BACKGROUND, MUTED, SERIES, TEXT, Ink, settings
from ggplan.charts.tensors import Drawable, typed
from ggplan.errors import ChartError
from ggplan.measure.record import Part, Record, quantizations_by_size
from ggplan.planning import Role
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR, _NOTE, _GAP = 0.28, 0.145, 0.16  # inches
_TYPE_SIZE, _NOTE_SIZE, _TOTAL_SIZE = 7.5, 7.5, 8.5
_FEW = 4
# A role has the same colour in all charts; what is rare shares one.
_INKS: dict[str, Ink] = dict(
    zip(
        (Role.ROUTED_EXPERTS, Role.ATTENTION, Role.SHARED_EXPERTS, Role.EMBEDDINGS, Role.DENSE_FFN,
         Role.OUTPUT, Role.SMALL, Role.NEXTN),
        (SERIES[1], SERIES[0], SERIES[2], SERIES[3], SERIES[4], SERIES[5], SERIES[6], SERIES[7]),
        strict=True,
    )
)  # fmt: skip
_OTHER = TEXT


@dataclass(frozen=True, slots=True)
class _Bar:
    name: str
    model: str
    parts: tuple[Part, ...]

    @property
    def n_bytes(self) -> int:
        return sum(p.n_bytes for p in self.parts)

    @property
    def total(self) -> str:
        n_weights = sum(p.n_weights for p in self.parts)
        return f", {8 * self.n_bytes / n_weights:.2f} bpw" if n_weights else ""


def draw_parts(
    subjects: GivenRecord | Drawable | Sequence[GivenRecord | Drawable], *, title: str = ""
) -> Drawing:
    """Draw the bytes of each role, the types written into them.

    Parameters
    ----------
    subjects
        Records, whose quantizations are drawn the largest first; models as they are stored; plans.
        A path is that of a record.

    Raises
    ------
    ChartError
        If no quantization's parts are known.
    """
    if isinstance(subjects, str) or not isinstance(subjects, Sequence):
        subjects = [subjects]
    bars = _bars_of(subjects)
    if not bars:
        raise ChartError(
            "no record says where its bytes are",
            hint="`ggplan measure --record` notes it; or draw a GGUF, a plan, or a model and -r RECIPE",
        )
    totals: dict[str, int] = {}
    for part in (p for bar in bars for p in bar.parts):
        totals[part.role] = totals.get(part.role, 0) + part.n_bytes
    roles = sorted(totals, key=lambda role: (-totals[role], role))
    unit = unit_for(bar.n_bytes for bar in bars)
    models = list(dict.fromkeys(bar.model for bar in bars))
    heading = title or f"{' and '.join(models)}: where the {unit.name} are"
    titles: dict[str, str] = {}
    left = min(2.6, 0.4 + 0.08 * max(len(bar.name) for bar in bars))
    across = WIDTH - left - 0.2
    with settings():
        figure, (ax,) = new_figure(1.0, left=left)
        labels = [unit.shown(bar.n_bytes) + bar.total for bar in bars]
        rooms = [across - 0.1 - text_width(figure, label, _TOTAL_SIZE) for label in labels]
        end = max(bar.n_bytes * across / room for bar, room in zip(bars, rooms, strict=True)) / unit.n_bytes
        apply_scale(ax, Scale("linear", 0, end), "x", lambda v: f"{v:g}")
        y, middles = 0.1, []
        for bar, label in zip(bars, labels, strict=True):
            middles.append(y + _BAR / 2)
            y = _draw_bar(figure, ax, y, bar, label, roles, unit, across / end, len(bars) <= _FEW, titles)
        _set_height(figure, ax, y)
        names = [shortened(figure, bar.name, left - 0.3, 9) for bar in bars]
        ax.set_yticks(middles, names, color=TEXT.light)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(unit.name)
        caption = "Bytes of the tensors. Cuts within a colour are types, the most bytes first."
        if any(str(text.get_gid()).startswith("note") for text in ax.texts):
            caption += " Below a bar: its parts that are too narrow to be named inside, from left to right."
        finish(figure, heading, caption, [Key(role, _ink(role)) for role in roles])
    return Drawing(figure, heading, caption, titles, _table(bars, unit))


def _bars_of(subjects: Sequence[GivenRecord | Drawable]) -> list[_Bar]:
    bars = []
    for subject in subjects:
        if isinstance(subject, str | Path):
            bars += _bars_of(records_of(subject))
            continue
        if isinstance(subject, Record):
            bars += [
                _Bar(q.name, subject.model.name, q.parts)
                for q in quantizations_by_size(subject.quantizations)
                if q.parts
            ]
        else:
            found = typed(subject)
            bars.append(_Bar(found.name, found.model, found.parts))
    return bars


def _ink(role: str) -> Ink:
    return _INKS.get(role, _OTHER)


def _draw_bar(
    figure: Figure, ax: Axes, y: float, bar: _Bar, label: str, roles: Sequence[str], unit: Unit, scale: float,
    with_sizes: bool, titles: dict[str, str],
) -> float:  # fmt: skip
    """Draw one bar with its top at `y`, in inches; returns where the next one may begin.

    Parameters
    ----------
    scale
        Inches of a unit.
    """
    start, small = 0.0, []
    for role in roles:
        unnamed = []
        for part in sorted((p for p in bar.parts if p.role == role), key=lambda p: (-p.n_bytes, p.type)):
            width = part.n_bytes / unit.n_bytes
            (drawn,) = ax.barh(
                [y + _BAR / 2], [width], left=[start], height=_BAR, color=_ink(role).light,
                edgecolor=BACKGROUND.light, linewidth=0.8,
            )  # fmt: skip
            gid = f"part-{len(titles)}"
            drawn.set_gid(gid)
            titles[gid] = f"{part.role} as {part.type}: {unit.shown(part.n_bytes)}"
            if text_width(figure, part.type, _TYPE_SIZE) + 0.07 <= width * scale:
                ax.text(
                    start + width / 2, y + _BAR / 2, printable(part.type), ha="center", va="center_baseline",
                    fontsize=_TYPE_SIZE, color=BACKGROUND.light,
                )  # fmt: skip
            else:
                size = f" {unit.shown(part.n_bytes)}" if with_sizes else ""
                unnamed.append(f"{part.type}{size}")
            start += width
        if unnamed:
            small.append((role, f"{role} {', '.join(unnamed)}"))
    ax.text(
        start + 0.07 / scale,
        y + _BAR / 2,
        label,
        va="center_baseline",
        fontsize=_TOTAL_SIZE,
        color=MUTED.light,
    )
    y += _BAR + 0.02
    room = ax.get_position().width * figure.get_figwidth()
    x = 0.0
    for role, words in small:
        width = text_width(figure, words, _NOTE_SIZE)
        lines = [words] if width <= room else wrapped(figure, words, room, _NOTE_SIZE)
        for line in lines:
            width = text_width(figure, line, _NOTE_SIZE)
            if x and x + width > room:
                x, y = 0.0, y + _NOTE
            ax.text(
                x / scale, y, printable(line), va="top", fontsize=_NOTE_SIZE, color=_ink(role).light,
                gid=f"note-{len(ax.texts)}",
            )  # fmt: skip
            x += width + 0.16
    return y + (_NOTE if small else 0) + _GAP


def _set_height(figure: Figure, ax: Axes, height: float) -> None:
    """Make the plot so tall that a unit of its vertical axis is an inch, counted from the top."""
    place = ax.get_position()
    width, old = figure.get_size_inches()
    new = old + height - place.height * old
    below = place.y0 * old
    figure.set_size_inches(width, new)
    ax.set_position((place.x0, below / new, place.width, height / new))
    ax.set_ylim(height, 0)


def _table(bars: Sequence[_Bar], unit: Unit) -> str:
    rows = [
        [bar.name, p.role, p.type, unit.shown(p.n_bytes), f"{p.n_weights:,}"]
        for bar in bars
        for p in sorted(bar.parts, key=lambda p: -p.n_bytes)
    ]
    return html_table(("name", "role", "type", "size", "weights"), rows)
