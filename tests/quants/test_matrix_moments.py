"""What several matrices read: each counts in parts of what it gives, however many rows it has."""

from __future__ import annotations

import numpy as np

from ggplan.quants.linear_algebra import Moments
from ggplan.quants.matrix_moments import Reading, moments_of

N = 64
RNG = np.random.default_rng(3)
X = RNG.standard_normal((300, N)).astype(np.float32)
MOMENTS = Moments((X.T @ X / 300).astype(np.float32), 300)


def reading(runs: list[np.ndarray], input_: str = "x") -> Reading:
    rows = [lambda run=run: run for run in runs]
    return Reading("w", rows, sum(map(len, runs)), None, input_, lambda: MOMENTS)


def test_a_matrix_of_many_runs_counts_as_one_of_few() -> None:
    """What it gives is reckoned from some of its runs, and is that of all."""
    run, other = (RNG.standard_normal((8, N)).astype(np.float32) for _ in range(2))
    few = moments_of([reading([run]), reading([other], "y")], N)
    many = moments_of([reading([run] * 9), reading([other], "y")], N)
    np.testing.assert_allclose(many.matrix, few.matrix, rtol=1e-4, atol=1e-5)


def test_a_matrix_counts_in_parts_of_what_it_gives() -> None:
    run, other = (RNG.standard_normal((8, N)).astype(np.float32) for _ in range(2))
    plain = moments_of([reading([run]), reading([other])], N)
    loud = moments_of([reading([run * 100]), reading([other])], N)
    np.testing.assert_allclose(loud.matrix, plain.matrix, rtol=1e-4, atol=1e-5)
    alone = moments_of([reading([run]), reading([other * 0])], N)
    expected = run.T @ run
    np.testing.assert_allclose(
        alone.matrix, expected * N / np.trace(expected), rtol=1e-4, atol=1e-5, err_msg="zeros count"
    )
