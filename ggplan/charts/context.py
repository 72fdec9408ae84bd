"""Speed against context: how reading and writing slow down as the cache fills (sweep-bench)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.charts.drawing import PAIR_WIDTH, Key, finish, html_table, new_figure
from ggplan.charts.given import GivenRecord, records_of
from ggplan.charts.output import Drawing
from ggplan.charts.scales import Scale, apply_scale
from ggplan.charts.style import MARKERS, MUTED, SERIES, Ink, marks_of, settings
from ggplan.errors import ChartError
from ggplan.measure.record import Quantization, Record, Speed
from ggplan.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class _Curve:
    """Speeds of a quantization by one engine, build and machine; `of` says which, if there are several."""

    record: Record
    quantization: Quantization
    speeds: tuple[Speed, ...]
    of: str = ""


@dataclass(frozen=True, slots=True)
class _Look:
    ink: Ink
    marker: str
    dash: str


def draw_context(records: GivenRecord | Sequence[GivenRecord], *, title: str = "") -> Drawing:
    """Draw tokens per second against tokens in the cache: reading a prompt on the left, writing on the right.

    Raises
    ------
    ChartError
        If no quantization has speeds at two places or more.
    MeasureError
        If `records` names a file, and it cannot be read.
    """
    given = records_of(records)
    curves = [curve for r in given for q in r.quantizations for curve in _curves(r, q)]
    if not curves:
        raise ChartError(
            "no record has speeds at several contexts",
            hint="`ggplan measure --parse` reads llama-sweep-bench, and llama-bench with several depths (-d)",
        )
    models = list(dict.fromkeys(curve.record.model.name for curve in curves))
    looks = _looks(curves)
    titles: dict[str, str] = {}
    with settings():
        figure, panels = new_figure(3.2, 2, PAIR_WIDTH, left=0.75, above=0.3, gap=0.75)
        heading = title or f"{' and '.join(models)}: speed against context"
        last = max(s.n_kv for curve in curves for s in curve.speeds)
        across = Scale("linear", -0.03 * last, 1.03 * last)
        for ax, kind, name in zip(panels, ("pp", "tg"), ("reading a prompt", "writing"), strict=True):
            rates = [r for c in curves for s in c.speeds if (r := getattr(s, kind)) is not None]
            ax.set_title(name, fontsize=10, pad=8)
            apply_scale(ax, Scale("linear", 0, 1.08 * max(rates, default=1.0)), "y", lambda v: f"{v:g}")
            apply_scale(ax, across, "x", _in_k, _round_numbers(last))
            for k, (curve, look) in enumerate(zip(curves, looks, strict=True)):
                _draw_curve(ax, curve, kind, look, f"{kind}-{k}", titles)
            ax.set_xlabel("tokens in the cache")
            ax.set_ylabel("tokens per second, higher is better")
            if not rates:
                ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=MUTED.light)
        names = [_name(curve, models) for curve in curves]
        keys = [Key(name, look.ink, look.marker) for name, look in zip(names, looks, strict=True)]
        caption = _caption([s for curve in curves for s in curve.speeds]) + _not_drawn(without_curve(given))
        finish(figure, heading, caption, keys)
    return Drawing(figure, heading, caption, titles, _table(curves))


def _curves(record: Record, quantization: Quantization) -> list[_Curve]:
    """The curves of a quantization, [] where none has two places.

    Speeds of two engines, builds or machines do not go on with each other.
    """
    groups: dict[tuple[str, str, str], list[Speed]] = {}
    for speed in quantization.speeds:
        groups.setdefault((speed.engine, speed.build, speed.hardware), []).append(speed)
    if not any(len({speed.n_kv for speed in speeds}) > 1 for speeds in groups.values()):
        return []
    differ = [len({key[i] for key in groups}) > 1 for i in range(3)]
    return [
        _Curve(
            record,
            quantization,
            tuple(sorted(speeds, key=lambda speed: speed.n_kv)),
            ", ".join(fact or "not recorded" for fact, several in zip(key, differ, strict=True) if several),
        )
        for key, speeds in groups.items()
    ]


def _looks(curves: Sequence[_Curve]) -> list[_Look]:
    """How each curve looks: in its author's colour if there are several authors, else in one of its own."""
    marks = marks_of([curve.quantization.author for curve in curves])
    dashes = ("-", "--", "-.", ":")
    if len(marks) < 2:
        n = len(SERIES)
        return [
            _Look(SERIES[k % n], MARKERS[k % len(MARKERS)], dashes[k // n % 4]) for k in range(len(curves))
        ]
    looks = []
    seen: dict[str, int] = {}
    for author in (curve.quantization.author for curve in curves):
        k = seen[author] = seen.get(author, -1) + 1
        first = MARKERS.index(marks[author].marker)
        looks.append(_Look(marks[author].ink, MARKERS[(first + k) % len(MARKERS)], dashes[k % 4]))
    return looks


def _name(curve: _Curve, models: Sequence[str]) -> str:
    record, quantization = curve.record, curve.quantization
    author = f" by {quantization.author}" if quantization.author not in ("", quantization.name) else ""
    name = quantization.name.removesuffix(f" ({quantization.author})") + author
    name += f", {curve.of}" if curve.of else ""
    return f"{record.model.name}: {name}" if len(models) > 1 else name


def _draw_curve(ax: Axes, curve: _Curve, kind: str, look: _Look, gid: str, titles: dict[str, str]) -> None:
    speeds = [(s.n_kv, s.pp if kind == "pp" else s.tg) for s in curve.speeds]
    known = [(n, rate) for n, rate in speeds if rate is not None]
    if not known:
        return
    (line,) = ax.plot(
        *zip(*known, strict=True), color=look.ink.light, marker=look.marker, markersize=4.5, linewidth=1.5,
        linestyle=look.dash,
    )  # fmt: skip
    line.set_gid(gid)
    (first, fast), (last, slow) = known[0], known[-1]
    titles[gid] = f"{curve.quantization.name}: {fast:.4g} t/s at {first}, {slow:.4g} t/s at {last} tokens"


def _in_k(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _round_numbers(last: int) -> list[float]:
    """Numbers of tokens from 0 to the last in steps of a power of two, nine at most."""
    step = 1
    while last / step > 8:
        step *= 2
    return [float(n) for n in range(0, last + 1, step)]


def _caption(speeds: Sequence[Speed]) -> str:
    engines = dict.fromkeys(f"{s.engine} {s.build}".strip() for s in speeds)
    hardware = dict.fromkeys(s.hardware for s in speeds if s.hardware)
    facts = [f"Measured by {', '.join(e for e in engines if e) or 'an engine that is not recorded'}"]
    if hardware:
        facts.append(f"on {', '.join(hardware)}")
    return printable(" ".join(facts)) + "."


def without_curve(records: Sequence[Record]) -> list[str]:
    """The names of the quantizations that a chart of these records leaves out."""
    return [q.name for record in records for q in record.quantizations if not _curves(record, q)]


def _not_drawn(names: Sequence[str]) -> str:
    """What is to be told of quantizations that have no curve."""
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"\nNot drawn, without speeds at two contexts: {printable(', '.join(names[:_SHOWN]))}{more}."


def _table(curves: Sequence[_Curve]) -> str:
    rows = [
        [
            curve.quantization.name + (f", {curve.of}" if curve.of else ""),
            str(s.n_kv),
            f"{s.pp:.2f}" if s.pp is not None else "",
            f"{s.tg:.2f}" if s.tg is not None else "",
        ]
        for curve in curves
        for s in curve.speeds
    ]
    return html_table(("name", "tokens in the cache", "reading t/s", "writing t/s"), rows)
