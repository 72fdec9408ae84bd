import subprocess
import sys

import numpy as np
import pytest

import ggplan
from ggplan.errors import QuantizationError

RNG = np.random.default_rng(3)
WEIGHTS = RNG.standard_normal((16, 512)).astype(np.float32)


def test_the_error_is_that_of_the_decoded_weights() -> None:
    decoded = ggplan.dequantize(ggplan.quantize(WEIGHTS, "q4_0"), "q4_0").astype(np.float64)
    found = ggplan.quantize_error(WEIGHTS, "q4_0")
    error = decoded - WEIGHTS
    assert found.rmse == pytest.approx(np.sqrt((error**2).mean()))
    assert found.relative == pytest.approx(np.linalg.norm(error) / np.linalg.norm(WEIGHTS))
    assert found.largest == np.abs(error).max()
    by_row = np.linalg.norm(error, axis=1) / np.linalg.norm(WEIGHTS, axis=1)
    assert found.worst_row == by_row.argmax()
    assert found.worst_row_relative == pytest.approx(by_row.max())
    assert found.weighted is None


def test_more_bits_err_less() -> None:
    errors = [
        ggplan.quantize_error(WEIGHTS, t).relative for t in ("q2_K", "q4_K", "q6_K", "q8_0", "f16", "f32")
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_an_imatrix_lowers_the_weighted_error() -> None:
    importance = RNG.gamma(0.3, 1.0, 512).astype(np.float32)
    blocks = ggplan.quantize(WEIGHTS, "q4_K")
    plain = ggplan.dequantize(blocks, "q4_K")
    without = np.sqrt(
        (importance * (plain.astype(np.float64) - WEIGHTS) ** 2).sum() / (importance.sum() * 16)
    )
    found = ggplan.quantize_error(WEIGHTS, "q4_K", imatrix=importance)
    assert found.weighted is not None
    assert found.weighted < without


def test_zeros_have_no_error_and_nothing_is_refused() -> None:
    assert ggplan.quantize_error(np.zeros((2, 32), np.float32), "q8_0").relative == 0
    with pytest.raises(QuantizationError, match="no weights"):
        ggplan.quantize_error(np.zeros((0, 32), np.float32), "q8_0")


@pytest.mark.oracle
def test_torch_tensors_are_taken_as_they_are() -> None:
    import torch

    weights = torch.from_numpy(WEIGHTS)
    assert (ggplan.quantize(weights, "q4_K") == ggplan.quantize(WEIGHTS, "q4_K")).all()
    rounded = weights.bfloat16().requires_grad_()
    expected = ggplan.quantize(rounded.detach().float().numpy(), "q4_K")
    assert (ggplan.quantize(rounded, "q4_K") == expected).all()
    with pytest.raises(QuantizationError, match="meta"):
        ggplan.quantize(torch.empty(2, 32, device="meta"), "q8_0")


def test_quantize_imports_no_torch() -> None:
    program = (
        "import sys, numpy, ggplan; ggplan.quantize(numpy.ones(32), 'f16'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
