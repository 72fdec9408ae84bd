"""Three questions before a mix is called better: by how much, is that more than chance, and is it also better
on a text that was not used to choose it?

Two files read the same tokens. If the scores of every token were kept, the error of the difference is that of
the paired difference, in which the scatter of the text itself cancels. If not, the errors of both are
combined as if they were independent, which is an upper bound and calls too many pairs a tie.

If thirty recipes are tried on one text and the best is kept, it is tuned to that text: part of its lead comes
from these tokens. A second, held-out text shows how much of the lead is real.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

from ggplan.measure.record import Conditions, Measurement, Quantization, Use
from ggplan.measure.record_file import Scores
from ggplan.measure.scores import TokenScores
from ggplan.measure.statistics import DifferenceMetric, difference, same_tokens

RANKING: tuple[DifferenceMetric, ...] = ("kld", "delta_ln_ppl")
"""The metrics files are ranked by: the first that is known of both; perplexity if neither is."""

Method = Literal["paired", "independent", "unpaired", "none"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A file on one text, and the scores of every token if they were kept."""

    name: str
    measurement: Measurement
    scores: TokenScores | None = None


@dataclass(frozen=True, slots=True)
class Lead:
    """By how much one file loses more than another.

    Attributes
    ----------
    metric
        The metric that is compared.
    value, error
        The difference and its standard error, None if no error is known.
    method
        How the error was found: from the *paired* differences of tokens; from two errors taken as
        *independent*; from two *unpaired* errors, which measure the text far more than the files.
    """

    metric: str
    value: float
    error: float | None
    method: Method

    @property
    def is_tie(self) -> bool:
        """Whether the two differ by no more than one standard error of their difference."""
        known = self.error is not None and self.method != "unpaired"
        return known and abs(self.value) <= (self.error or 0.0)


@dataclass(frozen=True, slots=True)
class Tie:
    """Two files next to each other in the ranking that do not differ."""

    first: str
    second: str
    measurement: Measurement
    lead: Lead


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Two mixes that the text of choice and the held-out text put in opposite order.

    Attributes
    ----------
    certain
        Whether both differences are larger than two standard errors, so that it is hardly chance.
    """

    better_chosen: str
    better_held_out: str
    metric: str
    certain: bool


def lead(a: Contender, b: Contender) -> Lead | None:
    """By how much `a` loses more than `b`: of KL divergence where it is known of both, else of ln(perplexity
    ratio to the base), else of perplexity. None where they share none of these.
    """
    both = a.measurement.metrics.keys() & b.measurement.metrics.keys()
    one_place = a.measurement.conditions == b.measurement.conditions
    if one_place and a.scores is not None and b.scores is not None and same_tokens(a.scores, b.scores):
        for name in RANKING:
            found = difference(a.scores, b.scores, name)
            if found is not None:
                method: Method = "none" if found.error is None else "paired"
                return Lead(name, found.value, found.error, method)
    metric = next((name for name in (*RANKING, "ppl") if name in both), None)
    if metric is None:
        return None
    x, y = a.measurement.metrics[metric], b.measurement.metrics[metric]
    errors = [m.error for m in (x, y) if m.error is not None]
    if not errors:
        return Lead(metric, x.value - y.value, None, "none")
    paired = all(m.method.startswith("paired") for m in (x, y))
    return Lead(metric, x.value - y.value, math.hypot(*errors), "independent" if paired else "unpaired")


def ties(quantizations: Sequence[Quantization], scores: Scores) -> list[Tie]:
    """Neighbours in the ranking, under each set of conditions, that do not differ; the base is not ranked."""
    groups: dict[Conditions, list[Contender]] = {}
    for q in quantizations:
        for m in q.measurements:
            if not q.is_base_of(m):
                groups.setdefault(m.conditions, []).append(Contender(q.name, m, scores(q, m)))
    found = []
    for group in groups.values():
        for a, b in pairwise(_ranked(group)):
            difference = lead(a, b)
            if difference is not None and difference.is_tie:
                found.append(Tie(a.name, b.name, a.measurement, difference))
    return found


def _ranked(group: Sequence[Contender]) -> list[Contender]:
    """Best first, by the metric that all have; files without any metric are left out."""
    known = [c for c in group if "ppl" in c.measurement.metrics]
    metric = next((m for m in RANKING if all(m in c.measurement.metrics for c in known)), "ppl")
    return sorted(known, key=lambda c: c.measurement.metrics[metric].value)


def disagreements(quantizations: Sequence[Quantization], scores: Scores) -> list[Disagreement]:
    """Pairs whose order differs between the texts. A difference within one standard error does not count."""
    found = []
    for a, b in combinations(quantizations, 2):
        pairs = [_last_pair(a, b, use, scores) for use in ("choose", "held out")]
        leads = [lead(*pair) for pair in pairs if pair is not None]
        chosen, held = leads if len(leads) == 2 else (None, None)
        if chosen is None or held is None or chosen.metric != held.metric:
            continue
        opposite = chosen.value * held.value < 0
        if opposite and all(abs(each.value) > (each.error or 0.0) for each in (chosen, held)):
            first, second = (a.name, b.name) if chosen.value < 0 else (b.name, a.name)
            certain = all(abs(each.value) > 2 * (each.error or 0.0) for each in (chosen, held))
            found.append(Disagreement(first, second, chosen.metric, certain))
    return found


def _last_pair(
    a: Quantization, b: Quantization, use: Use, scores: Scores
) -> tuple[Contender, Contender] | None:
    """Both files on the text with this use, under the last conditions that they share."""
    of_a, of_b = (
        {m.conditions: m for m in q.measurements if m.use == use and not q.is_base_of(m)} for q in (a, b)
    )
    shared = [conditions for conditions in of_a if conditions in of_b]
    if not shared:
        return None
    x, y = of_a[shared[-1]], of_b[shared[-1]]
    return Contender(a.name, x, scores(a, x)), Contender(b.name, y, scores(b, y))
