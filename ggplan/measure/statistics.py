"""From scores of tokens to figures with their standard errors.

Two quantizations of a model are measured on the same tokens, so most of the scatter of their perplexities
comes from the text and cancels in the difference: errors of differences are *paired*. Tokens of one chunk
share a context and are not independent, so the scatter is taken between chunks (a cluster-robust standard
error: for a mean over C chunks of equal size, the standard deviation of the chunks' means over the root of
C). A metric that is not a mean is linearised (delta method): with m the mean of -ln p,

    ppl            exp(m)                          d ppl       = ppl dm
    delta_ppl      exp(m) - exp(m_base)            d delta     = ppl dm - ppl_base dm_base
    delta_ln_ppl   m - m_base
    delta_p_rms    sqrt(mean(dp^2))                d rms       = d mean(dp^2) / (2 rms)

and the error of a percentile is that of a bootstrap over whole chunks, with a fixed seed.

llama-perplexity takes tokens as independent instead; `token_errors` gives its ± for comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ggplan.errors import MeasureError
from ggplan.measure.record import ErrorMethod, Metric
from ggplan.measure.scores import TokenScores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Mask = NDArray[np.bool_]

DifferenceMetric = Literal["delta_ln_ppl", "kld"]

PERCENTILES = {"kld_median": 0.5, "kld90": 0.9, "kld99": 0.99, "kld999": 0.999}
_BOOTSTRAPS = 300


@np.errstate(invalid="ignore", over="ignore")  # of tokens that are left out, and of exp of a huge loss
def metrics_of(scores: TokenScores) -> dict[str, Metric]:
    """All metrics that the scores allow, each with its standard error over chunks.

    Tokens without finite scores are left out. With fewer than two chunks there is no error; without tokens
    there is no metric.
    """
    paired: ErrorMethod = "paired chunks"
    use = scores.finite
    if not use.any():
        return {}
    nll = scores.nll.astype(np.float64)
    ppl = float(np.exp(nll[use].mean()))
    metrics = {"ppl": _metric(ppl, ppl * nll, use, "unpaired chunks")}
    compared = scores.comparison
    if compared is None:
        return metrics
    base = compared.nll_base.astype(np.float64)
    ppl_base = float(np.exp(base[use].mean()))
    delta_p, kld = compared.delta_p.astype(np.float64), compared.kld.astype(np.float64)
    rms = float(np.sqrt((delta_p[use] ** 2).mean()))
    metrics |= {
        "delta_ppl": _metric(ppl - ppl_base, ppl * nll - ppl_base * base, use, paired),
        "delta_ln_ppl": _mean(nll - base, use),
        "kld": _mean(kld, use),
    }
    errors = _percentile_errors(kld, use)
    for name, fraction in PERCENTILES.items():
        value = _percentile(compared.kld[use], fraction)
        metrics[name] = Metric(value, errors[name], paired) if errors else Metric(value)
    metrics |= {
        "kld_max": Metric(float(kld[use].max())),
        "delta_p_mean": _mean(delta_p, use),
        "delta_p_rms": _metric(rms, delta_p**2 / (2 * rms) if rms else delta_p, use, paired),
        "same_top": _mean(compared.same_top.astype(np.float64), use),
    }
    return {name: metric for name, metric in metrics.items() if np.isfinite(metric.value)}


def same_tokens(a: TokenScores, b: TokenScores) -> bool:
    """Whether two files were measured on the same tokens, as far as scores show: beside the same base."""
    bases = [s.comparison.nll_base for s in (a, b) if s.comparison is not None]
    return a.nll.shape == b.nll.shape and all(
        np.array_equal(base, bases[0], equal_nan=True) for base in bases
    )


@np.errstate(invalid="ignore")
def difference(a: TokenScores, b: TokenScores, metric: DifferenceMetric = "delta_ln_ppl") -> Metric | None:
    """By how much `a` loses more than `b`, with the paired error of the difference.

    Parameters
    ----------
    metric
        "delta_ln_ppl" for ln(perplexity of `a` / perplexity of `b`), "kld" for the difference of their
        KL divergences from the base.

    Returns
    -------
    None if no token has a finite score in both, or if one has no KL divergence.

    Raises
    ------
    MeasureError
        If they were not measured on the same tokens.
    """
    if not same_tokens(a, b):
        raise MeasureError("the two were not measured on the same tokens")
    if metric == "delta_ln_ppl":
        first, second = a.nll, b.nll
    elif a.comparison is None or b.comparison is None:
        return None
    else:
        first, second = a.comparison.kld, b.comparison.kld
    use = a.finite & b.finite
    return _mean(first.astype(np.float64) - second.astype(np.float64), use) if use.any() else None


def token_errors(scores: TokenScores) -> dict[str, float]:
    """The ± of llama-perplexity: as if every token were independent of all others."""
    use = scores.finite
    nll = scores.nll[use].astype(np.float64)
    ppl = np.exp(nll.mean())
    errors = {"ppl": float(ppl * _token_error(nll))}
    compared = scores.comparison
    if compared is None:
        return errors
    base = compared.nll_base[use].astype(np.float64)
    delta_p = compared.delta_p[use].astype(np.float64)
    rms = float(np.sqrt((delta_p**2).mean()))
    top = float(compared.same_top[use].mean())
    return errors | {
        "delta_ppl": _token_error(ppl * nll - np.exp(base.mean()) * base),
        "delta_ln_ppl": _token_error(nll - base),
        "kld": _token_error(compared.kld[use].astype(np.float64)),
        "delta_p_mean": _token_error(delta_p),
        "delta_p_rms": 0.5 / rms * _token_error(delta_p**2) if rms else 0.0,
        "same_top": float(np.sqrt(top * (1 - top) / (nll.size - 1))),
    }


def _mean(values: Values, use: Mask) -> Metric:
    return _metric(float(values[use].mean()), values, use, "paired chunks")


def _metric(value: float, influence: Values, use: Mask, method: ErrorMethod) -> Metric:
    """A metric whose error is the scatter, over chunks, of each token's influence on it.

    `use` says which tokens count. Chunks may have different numbers of them, so a chunk enters with the sum
    of its tokens' differences from the mean.
    """
    n_chunks = int(use.any(axis=1).sum())
    if n_chunks < 2:
        return Metric(value)
    above = np.where(use, influence - influence[use].mean(), 0.0).sum(axis=1)
    variance = n_chunks / (n_chunks - 1) * float((above**2).sum())
    return Metric(value, float(np.sqrt(variance)) / int(use.sum()), method)


def _token_error(values: Values) -> float:
    return float(values.std() / np.sqrt(values.size - 1))


def _percentile(values: NDArray[np.float32], fraction: float) -> float:
    """The percentile with llama-perplexity's interpolation, computed in float32."""
    ordered = np.sort(values, axis=None)
    if fraction == 0.5:
        middle = ordered.size // 2
        return float(np.float32(0.5) * (ordered[middle] + ordered[middle - (ordered.size % 2 == 0)]))
    place = np.float32(fraction) * np.float32(ordered.size - 1)
    below = int(place)
    rest = place - np.float32(below)
    return float((1 - rest) * ordered[below] + rest * ordered[min(below + 1, ordered.size - 1)])


def _percentile_errors(values: Values, use: Mask) -> dict[str, float]:
    """Standard errors of PERCENTILES by drawing whole chunks again and again."""
    n_chunks = len(values)
    if int(use.any(axis=1).sum()) < 2:
        return {}
    chunk_of = np.nonzero(use)[0]
    order = np.argsort(values[use], kind="stable")
    ordered, chunk_of = values[use][order], chunk_of[order]
    random = np.random.default_rng(0)
    fractions = np.array(list(PERCENTILES.values()))
    drawn = []
    for _ in range(_BOOTSTRAPS):
        times = np.bincount(random.integers(0, n_chunks, n_chunks), minlength=n_chunks)
        ranks = np.cumsum(times[chunk_of])
        if ranks[-1]:
            drawn.append(ordered[np.searchsorted(ranks, fractions * (ranks[-1] - 1) + 1)])
    errors = np.array(drawn).std(axis=0, ddof=1)
    return dict(zip(PERCENTILES, errors.tolist(), strict=True))
