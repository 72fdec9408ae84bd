"""Does it fit: what each device holds against its size, and tokens per second as the context fills.

A bar is as long as the share of its device that is used, so that 24 GB of a GPU and 128 GB of RAM can be read
beside each other; what goes beyond the line at 100 % does not fit. A band around a speed is where four of
five published reports lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggplan.charts.drawing import (
    PAIR_WIDTH,
    Key,
    finish,
    html_table,
    new_figure,
    shortened,
    text_width,
)
from ggplan.charts.output import Drawing
from ggplan.charts.scales import Scale, apply_scale
from ggplan.charts.style import BACKGROUND, FAINT, MARKERS, MUTED, SERIES, TEXT, Ink, settings
from ggplan.errors import ChartError
from ggplan.offload.allocation import HOST
from ggplan.offload.comparing import rates_by_depth
from ggplan.offload.machine import Machine
from ggplan.offload.placement import Placement
from ggplan.offload.speed import Rate
from ggplan.text import format_bytes, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 8
"""Placements in one chart."""

_ROW, _GAP, _SHORTEST = 0.27, 0.2, 2.6  # inches
_LABEL_SIZE, _NAME_SIZE = 8.0, 9.0
_STEPS = 16
_BANDS = 2  # more would hide each other
_STRETCH = 1.6  # of bars that are few
_PARTS = ("weights", "context", "compute", "margin")
_PART_INKS = dict(zip(_PARTS, (SERIES[0], SERIES[2], SERIES[4], FAINT), strict=True))
# Colours that no part of a bar has.
_LINE_INKS = (SERIES[1], SERIES[3], SERIES[5], SERIES[7])
_DASHES = ("-", "--")


@dataclass(frozen=True, slots=True)
class _Device:
    """One bar: bytes of each part, and of the device; 0 where its size is unknown."""

    name: str
    parts: tuple[int, ...]
    size: int

    @property
    def used(self) -> int:
        return sum(self.parts[:-1])

    @property
    def label(self) -> str:
        if not self.size:
            return format_bytes(self.used)
        over = sum(self.parts) - self.size
        of = f"{format_bytes(self.used)} of {format_bytes(self.size)}"
        return f"{of}, {format_bytes(over)} short" if over > 0 else of

    @property
    def shares(self) -> tuple[float, ...]:
        """Per cent of the device; of one whose size is unknown, of what is used."""
        return tuple(100 * n / (self.size or self.used or 1) for n in self.parts)


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    placement: Placement
    devices: tuple[_Device, ...]
    depths: tuple[int, ...]
    rates: tuple[Rate, ...]
    ink: Ink
    marker: str
    dash: str


def draw_fit(placements: Placement | Mapping[str, Placement], *, title: str = "") -> Drawing:
    """Draw what placements take of a machine's devices, and how fast they are as the context fills.

    Parameters
    ----------
    placements
        One, or several by their names, all on the same machine.

    Raises
    ------
    ChartError
        If there are none, more than `MOST`, or of different machines.
    """
    if isinstance(placements, Placement):
        placements = {placements.header.name: placements}
    if not placements or len(placements) > MOST:
        raise ChartError(f"{len(placements)} placements: from 1 to {MOST} can be drawn")
    machines = [p.machine for p in placements.values()]
    if any(machine != machines[0] for machine in machines):
        raise ChartError("the placements are on different machines", hint="draw each machine by itself")
    subjects = [_subject(k, name, p) for k, (name, p) in enumerate(placements.items())]
    models = list(dict.fromkeys(s.placement.header.name for s in subjects))
    heading = title or f"{' and '.join(models)}: does it fit, how fast is it"
    titles: dict[str, str] = {}
    rows = sum(len(s.devices) for s in subjects)
    named = len(subjects) > 1
    height = max(_SHORTEST, _ROW * rows + (_GAP + _ROW * named) * len(subjects))
    with settings():
        figure, (bars, speeds) = new_figure(height, 2, PAIR_WIDTH, left=0.75, above=0.3, gap=0.75)
        _draw_bars(figure, bars, subjects, height, titles, named=named)
        _draw_speeds(speeds, subjects, titles)
        keys = [Key(part, _PART_INKS[part]) for part in _PARTS]
        keys += [Key(s.name, s.ink, s.marker) for s in subjects if named and s.placement.fits]
        caption = _caption(subjects)
        finish(figure, heading, caption, keys)
    return Drawing(figure, heading, caption, titles, _table(subjects))


def _subject(k: int, name: str, placement: Placement) -> _Subject:
    context = (placement.settings.context or 0) // max(placement.settings.slots or 1, 1)
    depths = tuple(dict.fromkeys(context * i // _STEPS for i in range(_STEPS + 1)))
    rates = rates_by_depth(placement, depths) if placement.fits else ()
    look = _LINE_INKS[k % len(_LINE_INKS)], MARKERS[k % len(MARKERS)], _DASHES[k // len(_LINE_INKS) % 2]
    return _Subject(name, placement, _devices(placement), depths, rates, *look)


def _devices(placement: Placement) -> tuple[_Device, ...]:
    machine = placement.machine
    found = []
    for i, device in enumerate(placement.reckoning.devices):
        is_host = device.name == HOST
        size = (machine.ram or 0) if is_host else machine.gpus[i].memory
        margin = (machine.ram_margin if is_host else machine.gpu_margin) if size else 0
        context, compute = device.whole_context, device.whole_compute
        name = "RAM" if is_host else device.name
        found.append(_Device(name, (device.weights, context, compute, margin), size))
    return tuple(found)


def _draw_bars(
    figure: Figure, ax: Axes, subjects: list[_Subject], height: float, titles: dict[str, str], *, named: bool
) -> None:
    across = ax.get_position().width * figure.get_figwidth()
    labels = [text_width(figure, d.label, _LABEL_SIZE) for s in subjects for d in s.devices]
    fullest = max(sum(d.shares) for s in subjects for d in s.devices)
    end = max(100.0, fullest) * across / max(across - max(labels) - 0.15, 0.4 * across)
    apply_scale(ax, Scale("linear", 0, end), "x", lambda v: f"{v:g}")
    ticks = [v for v in (0, 25, 50, 75, 100) if v <= end]
    ax.set_xticks(ticks, [f"{v} %" for v in ticks])
    y, places, names = 0.0, [], []
    for subject in subjects:
        y += _GAP / 2
        if named:
            shown = shortened(figure, subject.name, across, _NAME_SIZE)
            ax.text(0, y + _ROW / 2, shown, fontsize=_NAME_SIZE, va="center_baseline", color=TEXT.light)
            y += _ROW
        for device in subject.devices:
            _draw_bar(ax, y + _ROW / 2, subject, device, 0.07 * end / across, titles)
            places.append(y + _ROW / 2)
            names.append(device.name)
            y += _ROW
        y += _GAP / 2
    ax.set_ylim(max(y, height / _STRETCH), 0)
    ax.axvline(100, color=MUTED.light, linewidth=1, linestyle=(0, (3, 2)), zorder=0.5)
    ax.set_yticks(places, names, color=TEXT.light)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.set_title("memory", fontsize=10, pad=8)
    ax.set_xlabel("of the device")


def _draw_bar(
    ax: Axes, y: float, subject: _Subject, device: _Device, gap: float, titles: dict[str, str]
) -> None:
    start = 0.0
    for part, n_bytes, share in zip(_PARTS, device.parts, device.shares, strict=True):
        if not n_bytes:
            continue
        ink = _PART_INKS[part]
        (drawn,) = ax.barh(
            [y], [share], left=[start], height=0.72 * _ROW, color=ink.light, edgecolor=BACKGROUND.light,
            linewidth=0.7,
        )  # fmt: skip
        gid = f"part-{len(titles)}"
        drawn.set_gid(gid)
        titles[gid] = f"{subject.name}, {device.name}: {part} {format_bytes(n_bytes)}"
        start += share
    ax.text(
        max(start, 100.0 if device.size else start) + gap, y, device.label, fontsize=_LABEL_SIZE,
        va="center_baseline", color=MUTED.light,
    )  # fmt: skip


def _draw_speeds(ax: Axes, subjects: list[_Subject], titles: dict[str, str]) -> None:
    drawn = [s for s in subjects if s.rates]
    ax.set_title("generation", fontsize=10, pad=8)
    ax.set_xlabel("tokens in the cache")
    ax.set_ylabel("tokens per second, higher is better")
    last = max((s.depths[-1] for s in drawn), default=1)
    with_bands = len(drawn) <= _BANDS
    most = max((r.high if with_bands else r.likely for s in drawn for r in s.rates), default=1.0)
    apply_scale(ax, Scale("linear", 0, 1.06 * most), "y", lambda v: f"{v:g}")
    apply_scale(ax, Scale("linear", 0, 1.02 * last), "x", _in_k, _round_numbers(last))
    if not drawn:
        ax.text(0.5, 0.5, "it does not fit", transform=ax.transAxes, ha="center", color=MUTED.light)
    for k, subject in enumerate(drawn):
        likely = [rate.likely for rate in subject.rates]
        if with_bands:
            low, high = [r.low for r in subject.rates], [r.high for r in subject.rates]
            band = ax.fill_between(
                subject.depths, low, high, color=subject.ink.light, alpha=0.14, linewidth=0
            )
            band.set_gid(f"band-{k}")
            titles[f"band-{k}"] = f"{subject.name}: {low[0]:.1f} to {high[0]:.1f} t/s in an empty context"
        (line,) = ax.plot(
            subject.depths, likely, color=subject.ink.light, linewidth=1.6, linestyle=subject.dash,
            marker=subject.marker, markersize=4.5, markevery=4,
        )  # fmt: skip
        line.set_gid(f"speed-{k}")
        titles[f"speed-{k}"] = (
            f"{subject.name}: {likely[0]:.1f} t/s in an empty context, {likely[-1]:.1f} after "
            f"{subject.depths[-1]:,} tokens"
        )


def _in_k(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _round_numbers(last: int) -> list[float]:
    step = 1
    while last / step > 6:
        step *= 2
    return [float(n) for n in range(0, last + 1, step)]


def _caption(subjects: list[_Subject]) -> str:
    first = subjects[0].placement
    text = f"{_machine_in_words(first.machine)}; {first.profile.name}. Speeds are expected, not measured"
    n_drawn = sum(bool(s.rates) for s in subjects)
    text += "; four of five reports lie within the band." if 0 < n_drawn <= _BANDS else "."
    contexts = dict.fromkeys(f"{s.placement.settings.context or 0:,}" for s in subjects)
    text += f" Context: {' and '.join(contexts)} tokens."
    missing = [s.name for s in subjects if not s.rates]
    if missing and len(missing) < len(subjects):
        text += f" Without a speed, as it does not fit: {', '.join(missing)}."
    return printable(text)


def _machine_in_words(machine: Machine) -> str:
    parts = []
    for gpu in machine.gpus:
        bandwidth = f" at {gpu.bandwidth / 1e9:.0f} GB/s" if gpu.bandwidth else ""
        parts.append(f"{gpu.name or 'a GPU of'} {format_bytes(gpu.memory)}{bandwidth}")
    ram = "RAM" if machine.ram is None else f"RAM {format_bytes(machine.ram)}"
    parts.append(ram + (f" at {machine.bandwidth / 1e9:.0f} GB/s" if machine.bandwidth else ""))
    parts += [f"{machine.cores} cores"] if machine.cores else []
    return ", ".join(parts)


def _table(subjects: list[_Subject]) -> str:
    rows = [
        [s.name, d.name, *map(format_bytes, d.parts), format_bytes(d.size) if d.size else ""]
        for s in subjects
        for d in s.devices
    ]
    memory = html_table(("name", "device", *_PARTS, "memory"), rows)
    speeds = [
        [s.name, f"{depth:,}", f"{rate.low:.2f}", f"{rate.likely:.2f}", f"{rate.high:.2f}"]
        for s in subjects
        for depth, rate in zip(s.depths, s.rates, strict=False)
    ]
    return memory + html_table(("name", "tokens in the cache", "low t/s", "likely t/s", "high t/s"), speeds)
