"""The picture of docs/calibrating.md: why two columns know more than one, and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ggplan.charts.drawing import PAIR_WIDTH, Key, finish, html_table, new_figure
from ggplan.charts.output import Drawing
from ggplan.charts.style import BACKGROUND, FAINT, GRID, MUTED, SERIES, TEXT, Ink, settings
from ggplan.measure import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CORRELATION = 0.8
"""Of the inputs of the two columns that are drawn."""
WEIGHTS = np.array([0.47, 0.42])
"""Two weights of a row, in steps of their type's scale."""
_MOMENTS = np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
_REACH = 1.7
_PLAIN, _BY_MOMENTS, _CORRECTED = SERIES[1], SERIES[0], SERIES[2]
_WAYS = (
    (" best", _PLAIN, "--effort best with an imatrix"),
    (" calibrated", _BY_MOMENTS, "--calibration"),
    (" corrected", _CORRECTED, "--calibration --correct"),
)


def calibration_picture(record: Record, note: str) -> Drawing:
    """Draw the idea, and what a record of `tools/measure_mixes.py --calibration` says it is worth.

    `note` is a caveat for the caption.

    Left: the codes that two weights may get, as errors of the weights, with the lines of equal error of the
    output, by the diagonal of H alone. Middle: the same by H. Right: KL divergences of the record's mixes.
    """
    alone, together = chosen(np.diag(np.diag(_MOMENTS))), chosen(_MOMENTS)
    kept = output_error(together) / output_error(alone)
    with settings():
        figure, axes = new_figure(2.75, 3, PAIR_WIDTH, left=0.55, right=0.3, above=0.45, below=0.5, gap=0.75)
        _draw_codes(axes[0], np.diag(np.diag(_MOMENTS)), alone, "An imatrix: each column alone")
        _draw_codes(axes[1], _MOMENTS, together, "A calibration: columns together", other=alone)
        rows = _draw_gains(axes[2], record)
        caption = (
            f"Left and middle: two weights of a row, {WEIGHTS[0]:g} and {WEIGHTS[1]:g} of a step above a"
            f" code, and inputs with a correlation of {CORRELATION:g}. A dot is what two codes do to the"
            " weights; on an ellipse the error of the output, E H E^T, is equal. Rounded to the nearest code"
            " both weights get smaller, and their errors add up; rounded apart they cancel, and"
            f" {100 * kept:.0f} % of the output's error is left. A real row has hundreds of columns, and"
            " scales to choose as well.\n"
            f"Right: {record.model.name}, tensors of equal bytes, on {_texts(record)}; the mean of both"
            f" ratios, and beside best its KL divergence on the first. {note}"
        )
        keys = [Key(label, ink) for _, ink, label in _drawn(record)]
        heading = "Errors of weights that cancel in the output"
        finish(figure, heading, caption, keys)
    table = html_table(("mix", "way", "text", "KL divergence", "of best"), rows)
    return Drawing(figure, heading, caption.replace("\n", " "), {}, table)


def output_error(error: Any) -> float:
    """E H E^T."""
    return float(error @ _MOMENTS @ error)


def chosen(moments: Any) -> Any:
    """The errors of the two weights by the codes with the least error, as these moments have it."""
    return min(_errors(), key=lambda e: float(e @ moments @ e))


def _errors() -> list[Any]:
    """What the codes around the weights do to them."""
    return [np.array([i, j]) - WEIGHTS for i in range(-1, 3) for j in range(-1, 3)]


def _draw_codes(ax: Axes, moments: Any, best: Any, title: str, other: Any = None) -> None:
    ax.set_title(title, fontsize=9.5, pad=8)
    ax.set_aspect("equal", adjustable="box")
    ax.grid(visible=False)
    for at in [best] if other is None else [best, other]:
        ax.plot(*_ellipse(moments, at), color=FAINT.light, linewidth=0.8)
    for e in _errors():
        if max(abs(e)) < _REACH:
            ax.plot(*e, "o", color=FAINT.light, markersize=5)
    ink = _PLAIN if other is None else _BY_MOMENTS
    if other is not None:
        ax.plot(*other, "o", color=_PLAIN.light, markersize=8, markerfacecolor=BACKGROUND.light)
    ax.plot([0, best[0]], [0, best[1]], color=ink.light, linewidth=1.6)
    ax.plot(*best, "o", color=ink.light, markersize=8)
    ax.plot(0, 0, "+", color=TEXT.light, markersize=9, markeredgewidth=1.6)
    named = [(best, ink)] if other is None else [(best, ink), (other, _PLAIN)]
    for at, own in named:
        ax.annotate(
            f"error {output_error(at):.2f}", at, (-9, -17), textcoords="offset points", fontsize=8.5,
            color=own.light, fontweight="bold", ha="center" if at[0] > 0 else "right",
        )  # fmt: skip
    ax.set_xlim(-_REACH, _REACH)
    ax.set_ylim(-_REACH, _REACH)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("error of the first weight", color=MUTED.light)
    ax.set_ylabel("of the second", color=MUTED.light)


def _ellipse(moments: Any, through: Any) -> Any:
    """The errors of equal error of the output, (2, n), as these moments have it."""
    angles = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    shape = np.linalg.inv(np.linalg.cholesky(moments).T)
    return shape @ circle * np.sqrt(through @ moments @ through)


def _texts(record: Record) -> str:
    measurement = record.quantizations[-1].measurements[0]
    names = dict.fromkeys(m.text.name for q in record.quantizations for m in q.measurements)
    return f"{' and '.join(names)}, {measurement.n_chunks} chunks of {measurement.n_ctx} tokens of each"


def _drawn(record: Record) -> list[tuple[str, Ink, str]]:
    """The ways of writing a mix that a record has."""
    return [way for way in _WAYS if any(q.name.endswith(way[0]) for q in record.quantizations)]


def _draw_gains(ax: Axes, record: Record) -> list[Sequence[str]]:
    """Bars of KL divergence in parts of that of best, a mix a group, the mean of the texts' ratios."""
    files = {q.name: q for q in record.quantizations}
    bests = sorted((q for q in files.values() if q.name.endswith(" best")), key=lambda q: q.file.n_bytes)
    mixes = [q.name.removesuffix(" best") for q in bests]
    ways = _drawn(record)
    ax.set_title("KL divergence, parts of best's", fontsize=9.5, pad=8)
    rows: list[Sequence[str]] = []
    for place, mix in enumerate(mixes):
        base = files[f"{mix} best"]
        for k, (way, ink, _) in enumerate(ways):
            found = files.get(mix + way)
            if found is None:
                continue
            klds = [m.metrics["kld"].value for m in found.measurements]
            parts = [a / m.metrics["kld"].value for a, m in zip(klds, base.measurements, strict=True)]
            part = float(np.exp(np.mean(np.log(parts))))
            y = place + (k - (len(ways) - 1) / 2) * 0.27
            ax.barh(y, part, height=0.24, color=ink.light, zorder=3)
            ax.text(part + 0.015, y, f"{part:.2f}" if k else f"{klds[0]:.4f} nats", fontsize=7.5,
                    va="center_baseline", color=MUTED.light, zorder=4)  # fmt: skip
            rows += [
                (mix, way.strip(), m.text.name, f"{kld:.5f}", f"{p:.2f}")
                for m, kld, p in zip(found.measurements, klds, parts, strict=True)
            ]
    ax.set_yticks(range(len(mixes)), mixes)
    ax.set_ylim(len(mixes) - 0.5, -0.5)
    ax.set_xlim(0, 1.3)
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.grid(visible=False, axis="y")
    ax.grid(color=GRID.light, axis="x")
    return rows
