"""The forecast: which KL divergence a file of some damage is to be expected to have.

    KLD = A + c sqrt(A)

A is the sum of the damages; c is what many small errors do together, by tokens that are routed to other
experts, which no single one of them shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ggplan.allocation.prior import Level

_LEAST_SPREAD = 0.2  # another text moves the level by so much


@dataclass(frozen=True, slots=True)
class Forecast:
    """The mean KL divergence (nats) that a file is predicted to have, and between what it probably is."""

    kld: float
    low: float
    high: float


def forecast_of(damage: float, level: Level) -> Forecast:
    """The forecast, and the same of a level one standard deviation off either way."""

    def kld(a: float) -> float:
        return a + level.flips * math.sqrt(a)

    factor = math.exp(max(level.spread, _LEAST_SPREAD))
    return Forecast(kld(damage), kld(damage / factor), kld(damage * factor))


def damage_of(kld: float, level: Level) -> float:
    """The damage whose forecast is a KL divergence."""
    # x = sqrt(A) solves x^2 + c x - KLD = 0; in this form nothing is subtracted.
    root = 2 * kld / (level.flips + math.sqrt(level.flips**2 + 4 * kld)) if kld > 0 else 0.0
    return root * root
