"""Speed against context: how reading and writing slow down as the cache fills (sweep-bench)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggplan.charts.drawing import Drawing, write_caption, write_heading
from ggplan.charts.style import MARKERS, SERIES, new_figure, settings
from ggplan.errors import ChartError
from ggplan.measure.record import Quantization, Record, Speed
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_context(records: Sequence[Record], *, title: str = "") -> Drawing:
    """Draw tokens per second against tokens in the cache: reading a prompt on the left, writing on the right.

    Raises
    ------
    ChartError
        If no quantization has speeds at two places or more.
    """
    curves = [(r, q) for r in records for q in r.quantizations if len({s.n_kv for s in q.speeds}) > 1]
    if not curves:
        raise ChartError(
            "no record has speeds at several contexts",
            hint="`ggplan measure --parse` reads llama-sweep-bench",
        )
    models = list(dict.fromkeys(r.model.name for r, _ in curves))
    titles: dict[str, str] = {}
    with settings():
        figure, (reading, writing) = new_figure(4.6, 2, 10.5)
        figure.subplots_adjust(left=0.075, right=0.975, top=0.8, bottom=0.2, wspace=0.18)
        heading = title or f"{' and '.join(models)}: speed against context"
        write_heading(figure, heading)
        reading.set_title("reading a prompt", fontsize=10)
        writing.set_title("writing", fontsize=10)
        for ax, kind in ((reading, "pp"), (writing, "tg")):
            for k, (_, quantization) in enumerate(curves):
                _draw_curve(ax, quantization, kind, k, titles)
            ax.set_ylim(bottom=0)
            ax.set_xlabel("tokens in the cache")
            ax.set_ylabel("tokens per second, higher is better")
            ax.xaxis.set_major_formatter(lambda v, _: f"{v / 1024:g}k" if v else "0")
            _round_ticks(ax)
        if len(curves) > 1:
            writing.legend(loc="upper right", fontsize=8)
        speeds = [s for _, q in curves for s in q.speeds]
        caption = _caption(speeds, [q.name for _, q in curves])
        write_caption(figure, caption)
    return Drawing(figure, heading, caption.replace("\n", " "), titles, _table(curves))


def _draw_curve(ax: Axes, quantization: Quantization, kind: str, k: int, titles: dict[str, str]) -> None:
    speeds = sorted((s.n_kv, s.pp if kind == "pp" else s.tg) for s in quantization.speeds)
    known = [(n, rate) for n, rate in speeds if rate is not None]
    if not known:
        return
    (line,) = ax.plot(
        *zip(*known, strict=True), color=SERIES[k % len(SERIES)].light, marker=MARKERS[k % len(MARKERS)],
        markersize=4.5, linewidth=1.5, label=printable(quantization.name),
    )  # fmt: skip
    gid = f"{kind}-{k}"
    line.set_gid(gid)
    (first, fast), (last, slow) = known[0], known[-1]
    titles[gid] = f"{quantization.name}: {fast:.4g} t/s at {first}, {slow:.4g} t/s at {last} tokens"


def _round_ticks(ax: Axes) -> None:
    """Ticks at round numbers of 1024 tokens."""
    high = ax.get_xlim()[1]
    step = next((s for s in (256, 1024, 2048, 4096, 8192, 16384, 32768, 65536) if high / s <= 9), 131072)
    ax.set_xticks(range(0, int(high) + 1, step))


def _caption(speeds: Sequence[Speed], names: Sequence[str]) -> str:
    engines = dict.fromkeys(f"{s.engine} {s.build}".strip() for s in speeds)
    hardware = dict.fromkeys(s.hardware for s in speeds if s.hardware)
    facts = [f"Measured by {', '.join(e for e in engines if e) or 'an engine that is not recorded'}"]
    if hardware:
        facts.append(f"on {', '.join(hardware)}")
    one = f"\n{names[0]}" if len(names) == 1 else ""
    return printable(" ".join(facts)) + "." + (f"\n{printable(one.strip())}" if one else "")


def _table(curves: Sequence[tuple[Record, Quantization]]) -> str:
    from ggplan.charts.drawing import html_table

    rows = [
        [
            q.name,
            str(s.n_kv),
            f"{s.pp:.2f}" if s.pp is not None else "",
            f"{s.tg:.2f}" if s.tg is not None else "",
        ]
        for _, q in curves
        for s in sorted(q.speeds, key=lambda s: s.n_kv)
    ]
    return html_table(("name", "tokens in the cache", "reading t/s", "writing t/s"), rows)
