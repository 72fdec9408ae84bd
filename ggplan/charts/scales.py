"""The scale of an axis: linear or logarithmic, from where to where, with ticks at round numbers.

Panels that stand side by side share their scales, so that what is lower in one is lower in the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ggplan.charts.drawing import set_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MANTISSAS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8), (1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5), (1, 3), (1,))
_MOST_TICKS = 9


@dataclass(frozen=True, slots=True)
class Scale:
    """How numbers become places on an axis; `threshold` is where "symlog" turns linear."""

    kind: Literal["linear", "log", "symlog"]
    low: float
    high: float
    threshold: float = 0.0

    def times(self, factor: float) -> Scale:
        """The same places, for numbers in another unit."""
        return replace(self, low=self.low * factor, high=self.high * factor)


def cost_scale(xs: Sequence[float]) -> Scale:
    """A scale for sizes or speeds: logarithmic if the largest is more than six times the smallest."""
    low, high = min(xs), max(xs)
    if high > 6 * low:
        room = (high / low) ** 0.06
        return Scale("log", low / room, high * room)
    room = 0.09 * (high - low) or 0.1 * high
    return Scale("linear", low - room, high + room)


def divergence_scale(ys: Sequence[float], ends: Sequence[float]) -> Scale | None:
    """A logarithmic scale for losses and the ends of their error bars; None if they are few or alike."""
    if min(ys) <= 0 or max(ys) <= 4 * min(ys):
        return None
    # A bar that reaches below zero has no lower end on a logarithmic axis.
    lowest = max(min([*ys, *ends]), min(ys) / 3)
    return Scale("log", lowest / 1.5, max([*ys, *ends]) * 1.6)


def loss_scale(ys: Sequence[float], ends: Sequence[float], noise: float) -> Scale | None:
    """As `divergence_scale`, for losses some of which are negative within the noise: linear around zero."""
    if min(ys) > 0 or max(ys) <= 10 * -min(ys):
        return None
    threshold = max(noise, -2 * min(ys), max(ys) / 1000)
    return Scale("symlog", 1.3 * min(*ys, *ends, -0.5 * threshold), max([*ys, *ends]) * 1.6, threshold)


def linear_scale(values: Sequence[float]) -> Scale:
    """A linear scale with room at both ends."""
    low, high = min(values), max(values)
    room = 0.1 * (high - low) or 0.2 * abs(high) or 0.1
    return Scale("linear", low - room, high + room)


def apply_scale(
    ax: Axes, scale: Scale, axis: Literal["x", "y"], shown: Callable[[float], str],
    ticks: Sequence[float] | None = None,
) -> None:  # fmt: skip
    """Give an axis of a plot its scale and its ticks; by default those at round numbers."""
    from matplotlib.ticker import NullFormatter, NullLocator

    if axis == "x":
        ax.set_xscale(scale.kind)
        ax.set_xlim(scale.low, scale.high)
    else:
        if scale.kind == "symlog":
            ax.set_yscale("symlog", linthresh=scale.threshold, linscale=0.6)
        else:
            ax.set_yscale(scale.kind)
        ax.set_ylim(scale.low, scale.high)
    found = ax.xaxis if axis == "x" else ax.yaxis
    found.set_minor_locator(NullLocator())
    found.set_minor_formatter(NullFormatter())
    ticks = _ticks(scale) if ticks is None else ticks
    set_ticks(found, ticks, [shown(t) for t in ticks])


def _ticks(scale: Scale) -> list[float]:
    if scale.kind == "linear":
        from matplotlib.ticker import MaxNLocator

        values = MaxNLocator(_MOST_TICKS - 1, steps=[1, 2, 2.5, 5, 10]).tick_values(scale.low, scale.high)
        return [
            0.0 if abs(v) < 1e-12 * scale.high else float(v) for v in values if scale.low <= v <= scale.high
        ]
    if scale.kind == "log":
        return _log_ticks(scale.low, scale.high, _MOST_TICKS)
    above = _log_ticks(scale.threshold, scale.high, 6)
    below = [-t for t in _log_ticks(scale.threshold, -scale.low, 3)] if -scale.low > scale.threshold else []
    return [*reversed(below), 0.0, *above]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two others: as many as there may be, or else powers of ten, some left out."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    # Divided where the power is negative: 2 / 10 is the float 0.2, and 2 * 0.1 may be another.
    ticks: list[float] = []
    for mantissas in _MANTISSAS:
        all_ = [m * 10**p if p >= 0 else m / 10**-p for p in powers for m in mantissas]
        ticks = [t for t in all_ if low <= t <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]
