"""Error bars: what they are of, and that the truth lies within them as often as they promise."""

import numpy as np
import pytest

from ggplan.errors import MeasureError
from ggplan.measure.scores import TokenComparison, TokenScores, join_scores
from ggplan.measure.statistics import difference, metrics_of, token_errors


def scores(
    n_chunks: int, seed: int, shift: float = 0.02, correlation: float = 1.0, n_tokens: int = 255
) -> TokenScores:
    """A model that is `shift` nats worse than its base, both driven by how hard each token is."""
    random = np.random.default_rng(seed)
    shape = (n_chunks, n_tokens)
    hard = random.gamma(1.5, 1.5, shape)
    of_chunk = correlation * 0.03 * random.standard_normal((n_chunks, 1))
    change = shift + of_chunk + 0.1 * random.standard_normal(shape)
    base, nll = hard, np.maximum(hard + change, 1e-3)
    kld = random.gamma(0.5, 0.02, shape) * np.exp(of_chunk)
    return TokenScores(
        nll.astype(np.float32),
        TokenComparison(
            base.astype(np.float32),
            kld.astype(np.float32),
            (np.exp(-nll) - np.exp(-base)).astype(np.float32),
            random.random(shape) < 0.9,
        ),
    )


def test_figures_are_those_of_their_definitions() -> None:
    s = scores(12, seed=1)
    assert s.comparison is not None
    metrics = metrics_of(s)
    nll, base = s.nll.astype(np.float64), s.comparison.nll_base.astype(np.float64)
    assert metrics["ppl"].value == pytest.approx(np.exp(nll.mean()))
    assert metrics["delta_ppl"].value == pytest.approx(np.exp(nll.mean()) - np.exp(base.mean()))
    assert metrics["delta_ln_ppl"].value == pytest.approx((nll - base).mean())
    assert metrics["kld999"].value == pytest.approx(np.quantile(s.comparison.kld, 0.999), rel=1e-4)
    assert metrics["kld_median"].value == pytest.approx(np.median(s.comparison.kld), rel=1e-6)
    assert metrics["same_top"].value == s.comparison.same_top.mean()
    assert metrics["delta_p_rms"].value == pytest.approx(np.sqrt((s.comparison.delta_p**2).mean()), rel=1e-5)


def test_paired_errors_are_several_times_smaller() -> None:
    metrics = metrics_of(scores(40, seed=2))
    unpaired, paired = metrics["ppl"], metrics["delta_ppl"]
    assert unpaired.error is not None
    assert paired.error is not None
    assert unpaired.method == "unpaired chunks"
    assert paired.method == "paired chunks"
    assert unpaired.error > 4 * paired.error


def test_the_truth_lies_within_two_errors_95_times_of_100() -> None:
    names = ("delta_ln_ppl", "kld", "kld99", "same_top", "delta_p_rms")
    truth = metrics_of(join_scores([scores(40, seed=1000 + i) for i in range(60)]))
    hits = dict.fromkeys(names, 0)
    for seed in range(100):
        metrics = metrics_of(scores(40, seed))
        for name in names:
            error = metrics[name].error
            assert error is not None
            hits[name] += abs(metrics[name].value - truth[name].value) <= 2 * error
    assert min(hits.values()) >= 88, hits


def test_errors_stand_correlation_within_a_chunk() -> None:
    """Taking tokens as independent promises too much as soon as chunks differ."""
    truth = 0.02
    promised = dict.fromkeys(("chunks", "tokens"), 0)
    for seed in range(100):
        s = scores(40, seed, shift=truth, correlation=3, n_tokens=64)
        metric = metrics_of(s)["delta_ln_ppl"]
        assert metric.error is not None
        away = abs(metric.value - truth)
        promised["chunks"] += away <= 2 * metric.error
        promised["tokens"] += away <= 2 * token_errors(s)["delta_ln_ppl"]
    assert promised["chunks"] >= 88
    assert promised["tokens"] < 70


def test_one_chunk_has_no_error() -> None:
    assert {m.error for m in metrics_of(scores(1, seed=3)).values()} == {None}


def test_without_a_base_there_is_the_perplexity_alone() -> None:
    assert list(metrics_of(TokenScores(scores(4, seed=4).nll))) == ["ppl"]


def test_the_base_beside_itself_differs_in_nothing() -> None:
    s = scores(6, seed=5)
    assert s.comparison is not None
    nothing = np.zeros_like(s.nll)
    same = TokenScores(s.nll, TokenComparison(s.nll, nothing, nothing, np.ones(s.nll.shape, np.bool_)))
    metrics = metrics_of(same)
    assert metrics["delta_ppl"].value == 0
    assert metrics["delta_p_rms"].value == 0
    assert metrics["delta_p_rms"].error == 0
    assert metrics["same_top"].value == 1


def test_two_models_are_compared_token_by_token() -> None:
    a, b = scores(30, seed=6), scores(30, seed=6, shift=0.05)
    found = difference(b, a)
    assert found.value == pytest.approx(0.03, abs=0.002)
    with pytest.raises(MeasureError, match="same tokens"):
        difference(a, scores(30, seed=7))
    with pytest.raises(MeasureError, match="same tokens"):
        difference(a, scores(29, seed=6))


def test_scores_survive_being_kept(tmp_path) -> None:
    s = scores(3, seed=8)
    s.save(tmp_path / "s.npz")
    kept = TokenScores.load(tmp_path / "s.npz")
    assert metrics_of(kept) == metrics_of(s)
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 no such thing")
    with pytest.raises(MeasureError, match="holds no scores"):
        TokenScores.load(tmp_path / "bad.npz")
