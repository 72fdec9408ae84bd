"""ggplan.quantize of what torch users have at hand: parameters, bf16, views, a list of Hessians."""

import numpy as np
import pytest

from ggplan import quantize

pytestmark = pytest.mark.oracle


def test_tensors_and_parameters_are_taken() -> None:
    import torch

    torch.manual_seed(1)
    layer = torch.nn.Linear(64, 6, bias=False)
    x = torch.randn(300, 64)
    hessian = x.T @ x / 300
    plain = layer.weight.detach().numpy()
    expected = quantize(plain, "q4_0", hessian=hessian.numpy(), tokens=300)
    for weights in (layer.weight, layer.weight.detach().T.contiguous().T, layer.weight.double()):
        for given in (hessian, hessian.double(), torch.nn.Parameter(hessian)):
            np.testing.assert_array_equal(quantize(weights, "q4_0", hessian=given, tokens=300), expected)
    halves = layer.weight.bfloat16()
    np.testing.assert_array_equal(
        quantize(halves, "q4_0", hessian=hessian), quantize(halves.float(), "q4_0", hessian=hessian)
    )
    importance = hessian.diagonal()
    np.testing.assert_array_equal(
        quantize(plain, "q4_0", importance.bfloat16()),
        quantize(plain, "q4_0", importance.bfloat16().float().numpy()),
    )
    experts = torch.stack([layer.weight, 2 * layer.weight])
    both = quantize(experts, "q4_0", hessian=[hessian, None], tokens=[300, 0])
    np.testing.assert_array_equal(both[0], expected)
    np.testing.assert_array_equal(both[1], quantize(2 * plain, "q4_0", effort="best"))
