"""Ties and turned rankings: by paired differences where scores were kept, by divergence where it is known."""

from dataclasses import replace

import numpy as np
import pytest

from ggplan.measure import (
    Base,
    Contender,
    Measurement,
    Metric,
    Quantization,
    TokenScores,
    difference,
    disagreements,
    lead,
    metrics_of,
    ties,
)
from ggplan.measure.record import FileFacts, Text
from ggplan.measure.scores import TokenComparison

N_CHUNKS, N_SCORED = 30, 100
BASE = Base("bf16", "base")


def scores(kld: float, loss: float, seed: int, nan: int = 0) -> TokenScores:
    """A model whose divergence and loss follow how hard each token is, and a little of its own."""
    text, own = np.random.default_rng(7), np.random.default_rng(seed)
    hard = text.gamma(0.5, 2.0, (N_CHUNKS, N_SCORED)) * np.exp(text.standard_normal((N_CHUNKS, 1)))
    base = text.gamma(1.5, 1.5, hard.shape)
    nll = (base + loss * hard + 0.002 * own.standard_normal(hard.shape)).astype(np.float32)
    nll[0, :nan] = np.nan
    divergence = kld * hard * np.exp(0.02 * own.standard_normal(hard.shape))
    delta = (np.exp(-nll) - np.exp(-base)).astype(np.float32)
    comparison = TokenComparison(base.astype(np.float32), divergence.astype(np.float32), delta, nll < 2)
    return TokenScores(nll, comparison)


def measured(found: TokenScores, use: str = "") -> Measurement:
    text = Text(f"{use}.txt", use)
    metrics = metrics_of(found)
    return Measurement(text, 202, N_CHUNKS, found.nll.size, "e", metrics, BASE, use=use)


def contender(found: TokenScores, *, kept: bool = True) -> Contender:
    return Contender("x", measured(found), found if kept else None)


def test_kept_scores_settle_what_independent_errors_call_a_tie() -> None:
    a, b = scores(0.100, 0.05, 1), scores(0.104, 0.05, 2)
    paired = lead(contender(b), contender(a))
    assert paired is not None
    assert (paired.metric, paired.method, paired.is_tie) == ("kld", "paired", False)
    assert paired.value == pytest.approx(0.004 * metrics_of(a)["kld"].value / 0.100, rel=0.2)
    apart = lead(contender(b, kept=False), contender(a, kept=False))
    assert apart is not None
    assert (apart.metric, apart.method, apart.is_tie) == ("kld", "independent", True)
    assert apart.error > 10 * paired.error
    one_kept = lead(contender(b), contender(a, kept=False))
    assert one_kept is not None
    assert one_kept.method == "independent"


def test_divergence_decides_where_it_is_known() -> None:
    a, b = scores(0.1, 0.050, 1), scores(0.2, 0.050, 2)
    found = lead(contender(b), contender(a))
    assert found is not None
    assert found.metric == "kld"
    assert not found.is_tie
    change = difference(b, a)
    assert change is not None
    assert abs(change.value) < 2 * change.error, "by perplexity they would hardly differ"
    blind = (TokenScores(b.nll), TokenScores(a.nll))
    found = lead(*(contender(s) for s in blind))
    assert found is not None
    assert (found.metric, found.method) == ("delta_ln_ppl", "paired")


def test_scores_of_other_conditions_are_not_paired() -> None:
    a, b = scores(0.100, 0.05, 1), scores(0.104, 0.05, 2)
    other = Contender("y", replace(measured(b), base=Base("q8_0", "other")), b)
    found = lead(other, contender(a))
    assert found is not None
    assert found.method == "independent"
    other_base = replace(b, comparison=replace(b.comparison, nll_base=b.comparison.nll_base + 1))
    found = lead(contender(other_base), contender(a))
    assert found is not None
    assert found.method == "independent"


def test_tokens_without_a_number_are_in_no_difference() -> None:
    a, b = scores(0.100, 0.05, 1), scores(0.104, 0.05, 2, nan=5)
    found = difference(b, a, "kld")
    assert found is not None
    rest = np.ones(a.nll.shape, bool)
    rest[0, :5] = False
    change = (b.comparison.kld.astype(np.float64) - a.comparison.kld)[rest]
    assert found.value == pytest.approx(change.mean())
    nothing = TokenScores(np.full_like(a.nll, np.nan), a.comparison)
    assert difference(a, nothing) is None
    broken = lead(contender(a), Contender("x", measured(nothing), nothing))
    assert broken is None, "what has no figures leads nobody"


def test_unpaired_errors_make_no_tie() -> None:
    m = Measurement(Text("a"), 512, 10, 2550, "e", {"ppl": Metric(5.0, 0.5, "unpaired tokens")})
    found = lead(
        Contender("a", m), Contender("b", replace(m, metrics={"ppl": Metric(5.1, 0.5, "unpaired tokens")}))
    )
    assert found is not None
    assert (found.metric, found.method, found.is_tie) == ("ppl", "unpaired", False)
    assert lead(Contender("a", m), Contender("b", replace(m, metrics={}))) is None


def quantization(name: str, *texts: tuple[str, TokenScores]) -> Quantization:
    measurements = tuple(measured(s, use) for use, s in texts)
    return Quantization(name, FileFacts(sha256=name), measurements=measurements)


def test_ties_are_of_neighbours_and_not_of_the_base() -> None:
    by_name = {
        "best": scores(0.05, 0.02, 1),
        "one": scores(0.1, 0.05, 2),
        "two": scores(0.1, 0.05, 3),
        "base": TokenScores(scores(0, 0, 4).nll),
    }
    found = [quantization(name, ("", s)) for name, s in by_name.items()]
    tied = ties(found, lambda q, _: by_name[q.name])
    assert {frozenset((t.first, t.second)) for t in tied} <= {frozenset(("one", "two"))}
    same = {name: by_name["one"] if name == "two" else s for name, s in by_name.items()}
    found = [quantization(name, ("", s)) for name, s in same.items()]
    (tie,) = ties(found, lambda q, _: same[q.name])
    assert {tie.first, tie.second} == {"one", "two"}
    assert (tie.lead.metric, tie.lead.value) == ("kld", 0)


def test_a_turned_ranking_is_seen_by_paired_differences() -> None:
    a = {"choose": scores(0.100, 0.05, 1), "held out": scores(0.104, 0.05, 2)}
    b = {"choose": scores(0.104, 0.05, 3), "held out": scores(0.100, 0.05, 4)}
    both = [quantization("A", *a.items()), quantization("B", *b.items())]
    base = quantization("base", *((use, TokenScores(scores(0, 0, 5).nll)) for use in a))

    def kept(q: Quantization, m: Measurement) -> TokenScores | None:
        return {"A": a, "B": b}[q.name][m.use]

    (found,) = disagreements([base, *both], kept)
    assert (found.better_chosen, found.better_held_out, found.metric) == ("A", "B", "kld")
    assert found.certain
    assert disagreements(both, lambda q, m: None) == []
    again = replace(both[1], measurements=tuple(replace(m, build="b2") for m in both[1].measurements))
    assert disagreements([both[0], again], kept) == [], "other conditions are not compared"
