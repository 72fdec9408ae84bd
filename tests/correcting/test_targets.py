"""Corrected targets: what quantized inputs lack is made good."""

import numpy as np
import pytest

from ggplan.correcting.targets import Correction, correction
from ggplan.quants.linear_algebra import times

N, COLUMNS, ROWS = 900, 24, 7


@pytest.fixture(scope="module")
def streams() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of the original, those of the quantized model, turned a little and noisy, and weights."""
    rng = np.random.default_rng(5)
    original = rng.normal(size=(N, COLUMNS)) @ rng.normal(size=(COLUMNS, COLUMNS))
    turned = np.eye(COLUMNS) + 0.1 * rng.normal(size=(COLUMNS, COLUMNS))
    quantized = original @ turned + 0.05 * rng.normal(size=(N, COLUMNS))
    weights = rng.normal(size=(ROWS, COLUMNS))
    return tuple(np.ascontiguousarray(a, np.float32) for a in (original, quantized, weights))  # type: ignore[return-value]


def loss(weights: np.ndarray, wanted: np.ndarray, original: np.ndarray, quantized: np.ndarray) -> float:
    return float(((quantized @ weights.T - original @ wanted.T) ** 2).sum())


def test_the_target_is_the_damped_least_squares_solution(
    streams: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    original, quantized, weights = streams
    found = correction(quantized, original)
    h = quantized.T.astype(np.float64) @ quantized / N
    c = original.T.astype(np.float64) @ quantized / N
    damped = h + (0.05 + 0.2 * COLUMNS / N) * np.trace(h) / COLUMNS * np.eye(COLUMNS)
    wanted = weights + np.linalg.solve(damped, (weights @ (c - h)).T).T
    np.testing.assert_allclose(found.target(weights), wanted, rtol=2e-3, atol=2e-3)
    assert found.moments.tokens == N
    np.testing.assert_allclose(found.moments.matrix, h, rtol=1e-4, atol=1e-4)


def test_it_makes_good_most_of_what_the_inputs_lack(
    streams: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    original, quantized, weights = streams
    target = correction(quantized, original).target(weights)
    before = loss(weights, weights, original, quantized)
    assert loss(target, weights, original, quantized) < 0.2 * before


def test_equal_streams_leave_the_weights(streams: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    original, _, weights = streams
    np.testing.assert_allclose(correction(original, original).target(weights), weights, atol=1e-4)


def test_one_map_gives_the_targets_of_all_matrices(
    streams: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    original, quantized, weights = streams
    found = correction(quantized, original)
    by_map = weights + times(weights, found.as_map())
    np.testing.assert_allclose(by_map, found.target(weights), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(streams: tuple[np.ndarray, np.ndarray, np.ndarray], threads: int) -> None:
    original, quantized, weights = streams
    one: Correction = correction(quantized, original, 1)
    many = correction(quantized, original, threads)
    np.testing.assert_array_equal(one.target(weights), many.target(weights, threads))


def test_columns_that_are_always_zero_are_left(streams: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    original, quantized, weights = (a.copy() for a in streams)
    original[:, 3] = quantized[:, 3] = 0
    target = correction(quantized, original).target(weights)
    np.testing.assert_allclose(target[:, 3], weights[:, 3], atol=1e-6)
    zeros = np.zeros_like(original)
    np.testing.assert_array_equal(correction(zeros, zeros).target(weights), weights)
