"""Where the GiB are: a bar for each quantization, cut by role and by type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggplan.charts.drawing import Drawing, html_table, write_caption
from ggplan.charts.style import BACKGROUND, MUTED, SERIES, TEXT, new_figure, settings
from ggplan.errors import ChartError
from ggplan.measure.record import Part, Quantization, Record, quantizations_by_size
from ggplan.text import format_bytes, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GIB, _MIB = 1 << 30, 1 << 20


def draw_parts(records: Sequence[Record], *, title: str = "") -> Drawing:
    """Draw the bytes of each role, the types written into them.

    Raises
    ------
    ChartError
        If no quantization's parts are known.
    """
    from matplotlib.patches import Patch

    shown = [q for r in records for q in quantizations_by_size(r.quantizations) if q.parts]
    if not shown:
        raise ChartError(
            "no record says where its bytes are", hint="`ggplan measure --record` notes it, or give a GGUF"
        )
    totals: dict[str, int] = {}
    for part in (p for q in shown for p in q.parts):
        totals[part.role] = totals.get(part.role, 0) + part.n_bytes
    roles = sorted(totals, key=lambda role: (-totals[role], role))
    largest = max(sum(p.n_bytes for p in q.parts) for q in shown)
    unit, unit_name = (_GIB, "GiB") if largest >= _GIB else (_MIB, "MiB")
    models = list(dict.fromkeys(r.model.name for r in records))
    titles: dict[str, str] = {}
    height = 1.9 + 0.42 * len(shown)
    with settings():
        figure, (ax,) = new_figure(height)
        longest = max(len(q.name) for q in shown)
        left = min(0.4, 0.05 + 0.011 * longest)
        figure.subplots_adjust(left=left, right=0.97, top=1 - 0.95 / height, bottom=0.8 / height)
        heading = title or f"{' and '.join(models)}: where the {unit_name} are"
        figure.text(0.02, 1 - 0.12 / height, printable(heading), fontsize=13, fontweight="bold", va="top")
        for row, quantization in enumerate(shown):
            end = 0.0
            for k, role in enumerate(roles):
                parts = sorted((p for p in quantization.parts if p.role == role), key=lambda p: -p.n_bytes)
                end = _draw_role(ax, row, end, parts, SERIES[k % len(SERIES)].light, unit, largest, titles)
            total = sum(p.n_bytes for p in quantization.parts)
            ax.text(
                end + 0.008 * largest / unit, row, _total(quantization, total), va="center", fontsize=8.5,
                color=MUTED.light,
            )  # fmt: skip
        ax.set_yticks(range(len(shown)), [printable(q.name) for q in shown], color=TEXT.light)
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.set_xlim(0, 1.26 * largest / unit)
        ax.set_xlabel(unit_name)
        handles = [Patch(color=SERIES[k % len(SERIES)].light) for k in range(len(roles))]
        figure.legend(
            handles, roles, loc="upper left", bbox_to_anchor=(left - 0.01, 1 - 0.42 / height), ncols=5,
            fontsize=8, handlelength=0.9, handletextpad=0.4, columnspacing=1.1,
        )  # fmt: skip
        caption = "Bytes of the tensors. Cuts within a colour are types, the most bytes first."
        write_caption(figure, caption)
    return Drawing(figure, heading, caption, titles, _table(shown))


def _draw_role(
    ax: Axes, row: int, start: float, parts: Sequence[Part], colour: str, unit: int, largest: int,
    titles: dict[str, str],
) -> float:  # fmt: skip
    for part in parts:
        width = part.n_bytes / unit
        (bar,) = ax.barh(
            [row], [width], left=[start], height=0.68, color=colour, edgecolor=BACKGROUND.light, linewidth=0.8
        )
        gid = f"part-{len(titles)}"
        bar.set_gid(gid)
        titles[gid] = f"{part.role} as {part.type}: {format_bytes(part.n_bytes)}"
        if width > (0.012 * len(part.type) + 0.012) * largest / unit:
            ax.text(
                start + width / 2, row, printable(part.type), ha="center", va="center", fontsize=7.5,
                color=BACKGROUND.light,
            )  # fmt: skip
        start += width
    return start


def _total(quantization: Quantization, n_bytes: int) -> str:
    bpw = f", {quantization.bpw:.2f} bpw" if quantization.bpw else ""
    return format_bytes(n_bytes) + bpw


def _table(shown: Sequence[Quantization]) -> str:
    rows = [
        [q.name, p.role, p.type, format_bytes(p.n_bytes), f"{p.n_weights:,}"]
        for q in shown
        for p in sorted(q.parts, key=lambda p: -p.n_bytes)
    ]
    return html_table(("name", "role", "type", "size", "weights"), rows)
