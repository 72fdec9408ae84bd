"""Second moments, products and factors: right, and with the same bits however the work is parted."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ggplan.errors import QuantizationError
from ggplan.quants.linear_algebra import (
    Moments,
    MomentSums,
    add_product,
    cross_moments,
    divide_into,
    regularized,
    second_moments,
    times,
    unit_upper,
)

SHAPES = [(1, 1), (7, 5), (40, 16), (256, 33), (300, 70), (700, 290)]


def inputs(tokens: int, n: int, seed: int = 0) -> np.ndarray:
    """Inputs with columns of different sizes that go together."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, n)) @ (np.eye(n) + rng.standard_normal((n, n)) / n**0.5)
    return (mixed * np.exp(rng.standard_normal(n) / 2)).astype(np.float32)


def divide(b: np.ndarray, h: np.ndarray, threads: int = 1) -> np.ndarray:
    """The same of copies."""
    found = b.copy()
    divide_into(found, h.copy(), threads)
    return found


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(("tokens", "n"), SHAPES)
def test_second_moments_are_the_mean_of_products(tokens: int, n: int) -> None:
    x = inputs(tokens, n)
    exact = x.astype(np.float64).T @ x / tokens
    found = second_moments(x)
    assert np.array_equal(found, found.T)
    assert np.allclose(found, exact, rtol=0, atol=1e-5 * exact.diagonal().max())
    y = inputs(tokens, 19, 1)
    assert np.allclose(cross_moments(x, y), x.astype(np.float64).T @ y / tokens, atol=1e-4)


@pytest.mark.parametrize("pieces", [[700], [1, 699], [256, 444], [255, 2, 300, 0, 143], [100] * 7])
def test_second_moments_do_not_depend_on_pieces_threads_or_reading_midway(pieces: list[int]) -> None:
    x = inputs(700, 290)
    sums = MomentSums(290, threads=2)
    at = 0
    for count in pieces:
        sums.add(x[at : at + count])
        at += count
        sums.moments()
    assert sums.moments().tokens == 700
    assert bits(sums.moments().matrix) == bits(second_moments(x))


def test_rows_may_be_the_bits_of_bfloat16() -> None:
    x = inputs(300, 40).view(np.uint32) & 0xFFFF0000
    short = (x >> 16).astype(np.uint16)
    assert bits(second_moments(short)) == bits(second_moments(x.view(np.float32)))
    sums = MomentSums(40)
    sums.add(short)
    with pytest.raises(TypeError, match="after inputs of uint16"):
        sums.add(x.view(np.float32))


def test_no_tokens_have_no_moments() -> None:
    assert not second_moments(np.zeros((0, 40), np.float32)).any()
    assert np.array_equal(regularized(Moments(np.zeros((4, 4), np.float32), 0)), np.eye(4, dtype=np.float32))


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 300, 17), (70, 33, 40), (150, 600, 50)])
def test_a_row_of_a_product_depends_on_that_row_alone(m: int, k: int, n: int) -> None:
    a, b = inputs(m, k), inputs(k, n, 1)
    found = times(a, b)
    assert np.allclose(found, a.astype(np.float64) @ b, rtol=1e-4, atol=1e-3)
    assert bits(times(a, b, threads=3)) == bits(found)
    for first in range(0, m, 29):
        assert bits(times(a[first : first + 29], b)) == bits(found[first : first + 29])
    assert bits(times(a, b[:, n // 2 :])) == bits(found[:, n // 2 :])


def test_products_are_added_to_columns_in_place() -> None:
    whole = inputs(20, 90)
    before = whole.copy()
    a, b = before[:, :30], inputs(30, 41, 2)
    add_product(whole[:, 40:81], a, b, minus=True)
    assert np.allclose(whole[:, 40:81], before[:, 40:81] - a @ b, rtol=1e-4, atol=1e-3)
    whole[:, 40:81] = before[:, 40:81]
    assert bits(whole) == bits(before)


@pytest.mark.parametrize("n", [1, 5, 32, 57, 256, 600])
def test_factors_are_those_of_float64(n: int) -> None:
    h = regularized(Moments(second_moments(x := inputs(2 * n, n)), len(x)))
    lower = np.linalg.cholesky(h.astype(np.float64)[::-1, ::-1])[::-1, ::-1]
    upper = unit_upper(h)
    assert np.array_equal(upper, np.triu(upper))
    assert (upper.diagonal() == 1).all()
    assert np.abs(upper - lower / lower.diagonal()).max() < 1e-5
    assert bits(unit_upper(h, threads=2)) == bits(upper)
    b = inputs(40, n, 3)
    found = divide(b, h)
    assert np.allclose(found @ h, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())
    assert bits(divide(b[7:9], h, threads=2)) == bits(found[7:9])


@pytest.mark.parametrize("value", [-1.0, 0.0, np.nan, np.inf])
def test_a_matrix_that_is_not_positive_has_no_factor(value: float) -> None:
    h = np.eye(300, dtype=np.float32)
    h[40, 40] = value
    with pytest.raises(QuantizationError, match="not positive"):
        unit_upper(h)


def test_regularizing_leaves_out_what_few_tokens_do_not_tell() -> None:
    h = second_moments(inputs(600, 8))
    mean = h.diagonal().mean()
    off = ~np.eye(8, dtype=bool)
    few, many = (regularized(Moments(h, tokens), 0.2) for tokens in (12, 10**6))
    assert np.allclose(few[off], 0.45 * h[off], rtol=1e-5)
    assert np.allclose(many[off], 0.9 * h[off], rtol=1e-4)
    assert np.allclose(few.diagonal(), h.diagonal() + 0.2 * mean, rtol=1e-5)


def digest_of_products() -> str:
    x = inputs(300, 70)
    return hashlib.sha256(bits(second_moments(x)) + bits(times(x[:100], x[200:270].copy()))).hexdigest()


def test_a_machine_without_fused_instructions_gives_the_same_bits() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", "from test_linear_algebra import digest_of_products as d; print(d())"],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": "",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.strip() == digest_of_products(), finished.stderr
