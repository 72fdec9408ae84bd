"""Two questions before a mix is called the better one: is the difference larger than its error, and does it
hold on a text that had no say in the choice?

Who tries thirty recipes on one text and keeps the best has tuned to that text: the winner is partly the one
that suits its tokens. A second, held-out text shows how much of the lead is real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from ggplan.measure.record import Measurement, Quantization
from ggplan.measure.scores import TokenScores
from ggplan.measure.statistics import difference

RANKING_METRICS = ("kld_mean", "delta_ln_ppl", "ppl")
"""What mixes are ranked by: the first of these that all of them have."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Two mixes that the text of choice and the held-out text put in opposite order.

    Attributes
    ----------
    certain
        Whether both differences are larger than two standard errors, so that chance is no excuse.
    """

    better_chosen: str
    better_held_out: str
    metric: str
    certain: bool


def disagreements(quantizations: Sequence[Quantization]) -> list[Disagreement]:
    """Pairs whose order differs between the texts. A difference within one standard error is no order."""
    both = [(q.name, c, h) for q in quantizations for c, h in _pairs_of_texts(q)]
    metric = next(
        (m for m in RANKING_METRICS if all(m in c.metrics and m in h.metrics for _, c, h in both)), ""
    )
    found = []
    for (name_a, chosen_a, held_a), (name_b, chosen_b, held_b) in combinations(both, 2) if metric else ():
        chosen, chosen_error = _lead(chosen_a, chosen_b, metric)
        held, held_error = _lead(held_a, held_b, metric)
        if chosen * held < 0 and abs(chosen) > chosen_error and abs(held) > held_error:
            first, second = (name_a, name_b) if chosen < 0 else (name_b, name_a)
            certain = abs(chosen) > 2 * chosen_error and abs(held) > 2 * held_error
            found.append(Disagreement(first, second, metric, certain))
    return found


def ties(scores: Mapping[str, TokenScores], ranked: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours in a ranking whose perplexities differ by less than one paired standard error."""
    tied = []
    for a, b in pairwise(ranked):
        change = difference(scores[a], scores[b])
        if change.error is not None and abs(change.value) < change.error:
            tied.append((a, b))
    return tied


def _pairs_of_texts(quantization: Quantization) -> list[tuple[Measurement, Measurement]]:
    chosen = [m for m in quantization.measurements if m.use == "choose"]
    held = [m for m in quantization.measurements if m.use == "held out"]
    return [(chosen[-1], held[-1])] if chosen and held else []


def _lead(a: Measurement, b: Measurement, metric: str) -> tuple[float, float]:
    """The difference a - b, and its error as if the two were independent: an upper bound for paired ones."""
    x, y = a.metrics[metric], b.metrics[metric]
    return x.value - y.value, ((x.error or 0.0) ** 2 + (y.error or 0.0) ** 2) ** 0.5
