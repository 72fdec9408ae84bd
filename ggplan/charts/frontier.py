"""Which mixes are worth choosing: nothing smaller is as good, nothing better is as small.

A mix is *dominated* if another is no larger and better; if that one is better by less than one standard error
of the difference, the two are a *tie*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum


class Standing(Enum):
    """How a point stands among the others."""

    FRONTIER = "frontier"
    TIE = "tie"
    DOMINATED = "dominated"


def standings(
    xs: Sequence[float], ys: Sequence[float], errors: Sequence[float | None], *, more_is_better: bool = False
) -> list[Standing]:
    """The standing of each point; small y is good, and so is small x unless `more_is_better`.

    `errors` are of paired differences from the base; where one is None or unpaired (given as None), a
    difference counts as it is.
    """
    costs = [-x for x in xs] if more_is_better else list(xs)
    found = []
    for i, (x, y, error) in enumerate(zip(costs, ys, errors, strict=True)):
        better = [
            j
            for j in range(len(costs))
            if costs[j] <= x and ys[j] <= y and (costs[j] < x or ys[j] < y or j < i)
        ]
        certain = [j for j in better if _is_certain(y - ys[j], x - costs[j], (error, errors[j]))]
        found.append(Standing.DOMINATED if certain else Standing.TIE if better else Standing.FRONTIER)
    return found


def _is_certain(lead: float, saved: float, errors: Sequence[float | None]) -> bool:
    """Whether a lead in quality, or where no error is known an equal quality for less, is no chance."""
    error = math.hypot(*(e or 0.0 for e in errors))
    return lead > error or (error == 0 and saved > 0)


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
