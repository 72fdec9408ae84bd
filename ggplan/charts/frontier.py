"""Which mixes are worth choosing: no smaller mix is as good, and no better mix is as small.

A mix is *dominated* if another is no larger and better; if that lead is within one standard error of the
difference, the two are a *tie*. `ggplan.measure.guard` computes the lead and its error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from ggplan.measure.guard import Lead

Leads = Callable[[int, int], Lead | None]
"""By how much the point of the first number loses more than that of the second; None if it is not known."""


class Standing(Enum):
    """How a point stands among the others."""

    FRONTIER = "frontier"
    TIE = "tie"
    DOMINATED = "dominated"


def standings(
    xs: Sequence[float], ys: Sequence[float], leads: Leads, *, more_is_better: bool = False
) -> list[Standing]:
    """The standing of each point; small y is good, and so is small x unless `more_is_better`.

    A difference without a known error, or with an unpaired one, counts as certain.
    """
    costs = [-x for x in xs] if more_is_better else list(xs)
    found = []
    for i, (x, y) in enumerate(zip(costs, ys, strict=True)):
        better = [
            j
            for j in range(len(costs))
            if costs[j] <= x and ys[j] <= y and (costs[j] < x or ys[j] < y or j < i)
        ]
        certain = [j for j in better if _is_certain(leads(i, j), y - ys[j], x - costs[j])]
        found.append(Standing.DOMINATED if certain else Standing.TIE if better else Standing.FRONTIER)
    return found


def _is_certain(lead: Lead | None, drawn: float, saved: float) -> bool:
    """Whether a lead in quality is more than chance; without an error, equal quality at a lower cost counts.

    If KL divergences are known they decide, whatever metric is drawn.
    """
    if lead is None or lead.method == "unpaired":
        value, error = drawn, 0.0
    else:
        value, error = lead.value, lead.error or 0.0
    return value > error or (value == error == 0 and saved > 0)


def staircase(
    xs: Sequence[float], ys: Sequence[float], standing: Sequence[Standing], *, more_is_better: bool = False
) -> list[tuple[float, float]]:
    """The corners of the line below which nothing lies, in the order of x."""
    on = sorted((x, y) for x, y, s in zip(xs, ys, standing, strict=True) if s is Standing.FRONTIER)
    if more_is_better:
        on.reverse()
    corners: list[tuple[float, float]] = []
    for x, y in on:
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return corners
