"""From scores of tokens to figures with honest error bars.

Two quantizations of a model are measured on the same tokens, so most of the scatter of their perplexities is
the text's and cancels in the difference: errors of differences are *paired*. Tokens of one chunk share a
context and are not independent, so the scatter is taken between chunks (a cluster-robust standard error: for
a mean over C chunks of equal size, the standard deviation of the chunks' means over the root of C). What is
not a mean is linearised (delta method): with m the mean of -ln p,

    ppl            exp(m)                          d ppl       = ppl dm
    delta_ppl      exp(m) - exp(m_base)            d delta     = ppl dm - ppl_base dm_base
    delta_ln_ppl   m - m_base
    delta_p_rms    sqrt(mean(dp^2))                d rms       = d mean(dp^2) / (2 rms)

and the error of a percentile is that of a bootstrap over whole chunks, with a fixed seed.

llama-perplexity takes tokens as independent instead; `token_errors` gives its ± for comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ggplan.errors import MeasureError
from ggplan.measure.record import ErrorMethod, Metric
from ggplan.measure.scores import TokenScores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

PERCENTILES = {"kld_median": 0.5, "kld_90": 0.9, "kld_99": 0.99, "kld_999": 0.999}
_BOOTSTRAPS = 300


def metrics_of(scores: TokenScores) -> dict[str, Metric]:
    """All metrics the scores allow, each with its standard error over chunks.

    With fewer than two chunks there is no error to give.
    """
    paired: ErrorMethod = "paired chunks"
    nll = scores.nll.astype(np.float64)
    ppl = float(np.exp(nll.mean()))
    metrics = {"ppl": _metric(ppl, ppl * nll, "unpaired chunks")}
    compared = scores.comparison
    if compared is None:
        return metrics
    base = compared.nll_base.astype(np.float64)
    ppl_base = float(np.exp(base.mean()))
    delta_p, kld = compared.delta_p.astype(np.float64), compared.kld.astype(np.float64)
    rms = float(np.sqrt((delta_p**2).mean()))
    metrics |= {
        "delta_ppl": _metric(ppl - ppl_base, ppl * nll - ppl_base * base, paired),
        "delta_ln_ppl": _metric(float((nll - base).mean()), nll - base, paired),
        "kld_mean": _metric(float(kld.mean()), kld, paired),
    }
    errors = _percentile_errors(kld)
    for name, fraction in PERCENTILES.items():
        value = _percentile(compared.kld, fraction)
        metrics[name] = Metric(value, errors[name], paired) if errors else Metric(value)
    metrics |= {
        "kld_max": Metric(float(kld.max())),
        "delta_p_mean": _metric(float(delta_p.mean()), delta_p, paired),
        "delta_p_rms": _metric(rms, delta_p**2 / (2 * rms) if rms else delta_p, paired),
        "same_top": _metric(float(compared.same_top.mean()), compared.same_top.astype(np.float64), paired),
    }
    return metrics


def difference(a: TokenScores, b: TokenScores) -> Metric:
    """ln(perplexity of `a` / perplexity of `b`) with its paired error: whether two mixes differ at all.

    Raises
    ------
    MeasureError
        If they were not measured on the same chunks.
    """
    bases = [s.comparison.nll_base for s in (a, b) if s.comparison is not None]
    if a.nll.shape != b.nll.shape or any(not np.array_equal(base, bases[0]) for base in bases):
        raise MeasureError("the two were not measured on the same tokens")
    change = a.nll.astype(np.float64) - b.nll.astype(np.float64)
    return _metric(float(change.mean()), change, "paired chunks")


def token_errors(scores: TokenScores) -> dict[str, float]:
    """The ± of llama-perplexity: as if every token were independent of all others."""
    nll = scores.nll.astype(np.float64).ravel()
    ppl = np.exp(nll.mean())
    errors = {"ppl": float(ppl * _token_error(nll))}
    compared = scores.comparison
    if compared is None:
        return errors
    base = compared.nll_base.astype(np.float64).ravel()
    delta_p = compared.delta_p.astype(np.float64).ravel()
    rms = float(np.sqrt((delta_p**2).mean()))
    top = float(compared.same_top.mean())
    return errors | {
        "delta_ppl": _token_error(ppl * nll - np.exp(base.mean()) * base),
        "delta_ln_ppl": _token_error(nll - base),
        "kld_mean": _token_error(compared.kld.astype(np.float64).ravel()),
        "delta_p_mean": _token_error(delta_p),
        "delta_p_rms": 0.5 / rms * _token_error(delta_p**2) if rms else 0.0,
        "same_top": float(np.sqrt(top * (1 - top) / (nll.size - 1))),
    }


def _metric(value: float, influence: Values, method: ErrorMethod) -> Metric:
    """A metric whose error is the scatter, over chunks, of each token's influence on it."""
    n_chunks = len(influence)
    if n_chunks < 2:
        return Metric(value)
    means = influence.mean(axis=1)
    return Metric(value, float(means.std(ddof=1) / np.sqrt(n_chunks)), method)


def _token_error(values: Values) -> float:
    return float(values.std() / np.sqrt(values.size - 1))


def _percentile(values: NDArray[np.float32], fraction: float) -> float:
    """llama-perplexity's interpolation, place and all in float32."""
    ordered = np.sort(values, axis=None)
    if fraction == 0.5:
        middle = ordered.size // 2
        return float(np.float32(0.5) * (ordered[middle] + ordered[middle - (ordered.size % 2 == 0)]))
    place = np.float32(fraction) * np.float32(ordered.size - 1)
    below = int(place)
    rest = place - np.float32(below)
    return float((1 - rest) * ordered[below] + rest * ordered[min(below + 1, ordered.size - 1)])


def _percentile_errors(values: Values) -> dict[str, float]:
    """Standard errors of PERCENTILES by drawing whole chunks again and again."""
    n_chunks, n_scored = values.shape
    if n_chunks < 2:
        return {}
    order = np.argsort(values, axis=None, kind="stable")
    ordered, chunk_of = values.ravel()[order], order // n_scored
    random = np.random.default_rng(0)
    targets = np.array(list(PERCENTILES.values())) * (values.size - 1)
    drawn = np.empty((_BOOTSTRAPS, len(PERCENTILES)))
    for i in range(_BOOTSTRAPS):
        times = np.bincount(random.integers(0, n_chunks, n_chunks), minlength=n_chunks)
        ranks = np.cumsum(times[chunk_of])
        drawn[i] = ordered[np.searchsorted(ranks, targets + 1)]
    errors = drawn.std(axis=0, ddof=1)
    return dict(zip(PERCENTILES, errors.tolist(), strict=True))
