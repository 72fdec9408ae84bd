"""A trained model of int4: what is kept are its weights, to the last bit; what is encoded anew is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from program import run
from quantizing import quantized_folder

import ggplan
from ggplan.quants import dequantize, quantize

DEMO = Path(ggplan.__file__).parent / "demo_model"


@pytest.mark.parametrize(("form", "type_"), [("w4a16", "q4_0"), ("gptq", "q4_0"), ("awq", "q5_0")])
def test_kept_codes_are_the_weights_of_the_checkpoint(form: str, type_: str, tmp_path: Path) -> None:
    decoded = quantized_folder(DEMO, tmp_path / form, form)
    done = run("convert", tmp_path / form, tmp_path / "kept.gguf", "--pre", "glm4", "--json")
    assert done.returncode == 0, done.stderr
    (codes,) = json.loads(done.stdout)["codes"]
    assert (codes["type"], codes["tensors"]) == (type_, 27)
    kept = ggplan.open_model(tmp_path / "kept.gguf")
    source = ggplan.open_model(tmp_path / form, pre="glm4")
    n_same = n_blocks = 0
    error = size = 0.0
    for tensor in kept.tensors:
        if tensor.type.name != type_:
            continue
        assert tensor.stored is not None
        weights = dequantize(tensor.stored.read(0, tensor.n_rows), tensor.type)
        exact = source[tensor.name].rows
        assert exact is not None
        assert np.array_equal(weights, exact.read_float32(0, tensor.n_rows))
        q4_0 = ggplan.parse_type("q4_0")
        again = dequantize(quantize(weights, q4_0), q4_0)
        n_same += int((again == weights).reshape(-1, 32).all(axis=1).sum())
        n_blocks += weights.size // 32
        error += float(((again - weights) ** 2).sum())
        size += float((weights**2).sum())
    assert 32 * n_blocks == sum(weights.size for weights in decoded.values())
    assert 0.2 < n_same / n_blocks < 0.6  # the blocks that encoding the weights anew leaves as they were
    assert 0.05 < (error / size) ** 0.5 < 0.08
    down = decoded["model.layers.2.mlp.experts.5.down_proj.weight"]
    stack = source["blk.2.ffn_down_exps.weight"].rows
    assert stack is not None
    assert np.array_equal(stack.read_float32(5 * len(down), 6 * len(down)), down)
