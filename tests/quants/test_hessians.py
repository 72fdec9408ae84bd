"""quantize with a Hessian for each expert: each is encoded as by itself, and what does not fit is told."""

from __future__ import annotations

import numpy as np
import pytest

from ggplan import quantize
from ggplan.errors import QuantizationError

N = 64
RNG = np.random.default_rng(8)
WEIGHTS = RNG.standard_normal((3, 5, N)).astype(np.float32)
X = RNG.standard_normal((3, 200, N)) * np.exp(RNG.standard_normal(N))
HESSIANS = np.einsum("eti,etj->eij", X, X) / 200


def test_each_expert_is_encoded_as_by_itself() -> None:
    tokens = [40, 200, 9000]
    each = np.stack(
        [quantize(w, "q4_0", hessian=h, tokens=n) for w, h, n in zip(WEIGHTS, HESSIANS, tokens, strict=True)]
    )
    assert len({blocks.tobytes() for blocks in each}) == 3
    for hessians in (HESSIANS, list(HESSIANS), tuple(HESSIANS.astype(np.float32))):
        np.testing.assert_array_equal(quantize(WEIGHTS, "q4_0", hessian=hessians, tokens=tokens), each)
    layers = quantize(WEIGHTS[None], "q4_0", hessian=HESSIANS[None], tokens=np.array([tokens]))
    np.testing.assert_array_equal(layers[0], each)
    fortran = np.asfortranarray(WEIGHTS)[:, ::-1][:, ::-1].astype(np.float64)
    np.testing.assert_array_equal(quantize(fortran, "q4_0", hessian=HESSIANS, tokens=tokens), each)
    one = quantize(WEIGHTS, "q4_0", hessian=HESSIANS[1], tokens=200)
    np.testing.assert_array_equal(one[1], each[1])


def test_no_number_of_tokens_is_too_large() -> None:
    many, more = (quantize(WEIGHTS, "q4_0", hessian=HESSIANS, tokens=n) for n in (10**16, 10**400))
    np.testing.assert_array_equal(many, more)


@pytest.mark.parametrize("shape", [(0, 5, N), (3, 0, N), (0, 0, N)])
def test_no_experts_or_rows_give_no_blocks(shape: tuple[int, ...]) -> None:
    blocks = quantize(np.zeros(shape), "q4_0", hessian=np.zeros((shape[0], N, N)) + np.eye(N))
    assert blocks.shape == (*shape[:2], N // 32 * 18)


def test_an_expert_without_tokens_has_best_effort() -> None:
    blocks = quantize(WEIGHTS, "q4_0", hessian=[HESSIANS[0], None, HESSIANS[2]])
    np.testing.assert_array_equal(blocks[1], quantize(WEIGHTS[1], "q4_0", effort="best"))
    with pytest.raises(QuantizationError, match="matrix 1: iq2_xs cannot be encoded") as told:
        quantize(np.ones((2, 1, 256)), "iq2_xs", hessian=[np.eye(256), None])
    assert "that of all tokens" in told.value.hint


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hessian": HESSIANS[:2]}, r"there are 2 Hessians for weights of shape \(3, 5, 64\)"),
        ({"hessian": [HESSIANS[0]] * 4}, "there are 4 Hessians"),
        ({"hessian": HESSIANS[:1], "rows": WEIGHTS[0]}, r"1 Hessians for weights of shape \(5, 64\)"),
        ({"hessian": [HESSIANS[0], HESSIANS[1], HESSIANS[2][:9]]}, "matrix 2: the Hessian has shape"),
        ({"hessian": [HESSIANS[0], -HESSIANS[1], HESSIANS[2]]}, "matrix 1: .* negative"),
        ({"hessian": [[1.0, 2.0], [3.0]]}, "no array of numbers"),
        ({"hessian": "H"}, "shape"),
        ({"tokens": [1, 2]}, "2 numbers of tokens for 3 matrices"),
        ({"tokens": [5, 0, 5]}, "matrix 1: a Hessian of 0 tokens"),
        ({"tokens": 1.5}, "whole number"),
        ({"tokens": "many"}, "whole number"),
        ({"tokens": [[1, 2], [3]]}, "tokens is no whole number, nor an array of them"),
        ({"tokens": [9, 9], "hessian": HESSIANS[0]}, "whole number"),
        ({"lam": "small"}, "a number above 0, not 'small'"),
        ({"lam": -1.0, "hessian": [None, None, None]}, "a number above 0, not -1.0"),
        ({"lam": 10**400}, "a number above 0, not 1000"),
        ({"lam": 1e39}, r"a number above 0, not 1e\+39"),
        ({"method": "act-order", "hessian": [None, None, None]}, "no method 'act-order'"),
        ({"hessian": None, "lam": 0.3}, "lam= is for second moments, and there are none"),
        ({"hessian": None, "method": "gptq"}, "method= is for second moments"),
        ({"hessian": None, "tokens": 7}, "tokens= is for second moments"),
    ],
)
def test_what_does_not_fit_is_told(change: dict[str, object], told: str) -> None:
    given: dict[str, object] = {"rows": WEIGHTS, "type": "q4_0", "hessian": HESSIANS, **change}
    with pytest.raises(QuantizationError, match=told):
        quantize(**given)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("type", ["q4_0", "q4_K", "q6_K", "iq4_nl", "iq3_s"])
def test_huge_weights_are_encoded_without_a_warning(type: str) -> None:
    rows = RNG.standard_normal((2, 256)).astype(np.float32) * np.float32(1e30)
    best = quantize(rows, type, np.ones(256), effort="best")
    np.testing.assert_array_equal(quantize(rows, type, hessian=np.eye(256)), best)
