"""iq2 and iq3 under a Hessian: less error, never more, and the same bytes however rows are parted."""

import numpy as np
import pytest

from ggplan.ggml_types import parse_type
from ggplan.quants import dequantize, quantize
from ggplan.quants.formats.grid_descent import GRID_TYPES, descend
from ggplan.quants.linear_algebra import Moments, regularized, second_moments
from ggplan.quants.prepared import Prepared, prepare

N = 512


@pytest.fixture(scope="module")
def moments() -> Moments:
    """Of inputs whose columns go together, as those of trained models do."""
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((1500, 24)) @ rng.standard_normal((24, N)) + rng.standard_normal((1500, N))
    x = (mixed * np.exp(rng.standard_normal(N) / 2)).astype(np.float32)
    return Moments(second_moments(x), len(x))


@pytest.fixture(scope="module")
def hessian(moments: Moments) -> np.ndarray:
    return regularized(moments)


@pytest.fixture(scope="module")
def prepared(moments: Moments) -> Prepared:
    return prepare(moments)


def weights(m: int) -> np.ndarray:
    return (np.random.default_rng(2).standard_t(5, (m, N)) * 0.02).astype(np.float32)


def errors(rows: np.ndarray, blocks: np.ndarray, name: str, h: np.ndarray) -> np.ndarray:
    residues = rows.astype(np.float64) - dequantize(blocks, name)
    return ((residues @ h) * residues).sum(axis=1)


def improved(
    rows: np.ndarray, name: str, prepared: Prepared, method: str = "feedback"
) -> tuple[np.ndarray, np.ndarray]:
    best = quantize(rows, name, prepared.mean_squares, effort="best")
    found = best.copy()
    descend(name, rows, found, prepared, method)
    return best, found


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "feedback") for name in GRID_TYPES), ("iq2_s", "descent"), ("iq3_s", "gptq")],
)
def test_no_row_has_more_error_than_best_and_most_have_far_less(
    name: str, method: str, hessian: np.ndarray, prepared: Prepared
) -> None:
    rows = weights(20)
    best, found = improved(rows, name, prepared, method)
    before, after = (errors(rows, blocks, name, hessian) for blocks in (best, found))
    assert (after <= before).all()
    assert after.sum() < 0.75 * before.sum()
    assert parse_type(name).row_bytes(N) == found.shape[1]


def test_rows_do_not_depend_on_the_rows_beside_them(prepared: Prepared) -> None:
    rows = weights(20)
    _, whole = improved(rows, "iq2_xs", prepared)
    for start, end in ((0, 1), (1, 18), (18, 20)):
        _, part = improved(rows[start:end], "iq2_xs", prepared)
        assert np.array_equal(part, whole[start:end])


@pytest.mark.parametrize("name", GRID_TYPES)
def test_no_row_is_made_better_than_best(name: str, prepared: Prepared) -> None:
    rows = np.zeros((3, N), np.float32)
    best, found = improved(rows, name, prepared)
    assert np.array_equal(found, best)


@pytest.mark.parametrize("name", ["iq2_s", "iq3_xxs"])
def test_rows_that_no_search_can_judge_stay(name: str, hessian: np.ndarray, prepared: Prepared) -> None:
    rows = weights(4)
    rows[0] = 0
    rows[1, :256] = 0
    rows[2] *= np.float32(1e-30)
    rows[3, 7] = 3e38
    best, found = improved(rows, name, prepared)
    assert np.array_equal(found[[0, 2, 3]], best[[0, 2, 3]])
    assert errors(rows[1:2], found[1:2], name, hessian) < errors(rows[1:2], best[1:2], name, hessian)
