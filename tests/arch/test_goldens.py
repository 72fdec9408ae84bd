"""Every architecture, without torch: tiny checkpoints become what llama.cpp's converter made of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import CASES, DATA, golden_keys, golden_tensors, read_case, write_case
from tokenizer_variants import BASE, VARIANTS

from ggplan.arch import to_gguf
from ggplan.ggml_types import BF16, F32
from ggplan.planning import make_plan
from ggplan.planning.layout import written_shape
from ggplan.quants.floats import widened
from ggplan.sources.gguf import open_gguf
from ggplan.sources.huggingface import open_checkpoint


def read_golden(name: str) -> dict:
    return json.loads((DATA / "goldens" / f"{name}.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_models_are_what_llama_cpp_makes_of_them(tmp_path: Path, case: str) -> None:
    model = to_gguf(open_checkpoint(write_case(tmp_path / case, read_case(case))), pre="glm4")
    golden = read_golden(case)
    assert golden_keys(model) == golden["keys"]
    assert list(golden_keys(model)) == list(golden["keys"])
    assert golden_tensors(model) == golden["tensors"]
    # Written without a recipe, with its dimensions of 1; with one, as llama-quantize writes it.
    for recipe, is_whole in ((None, True), ("Q8_0", False)):
        (header := tmp_path / "header.gguf").write_bytes(make_plan(model, recipe).header)
        shapes = {t.name: t.shape for t in open_gguf(header, header_only=True)}
        assert shapes == {
            name: tuple(shape) if is_whole else written_shape(tuple(shape))
            for name, _, shape, _ in golden["tensors"]
        }


@pytest.mark.parametrize("case", CASES)
def test_bf16_is_read_with_and_without_widening(tmp_path: Path, case: str) -> None:
    model = to_gguf(open_checkpoint(write_case(tmp_path / case, read_case(case))), pre="glm4")
    for tensor in model.tensors:
        source = tensor.rows
        assert source is not None
        assert source.shape == tensor.shape
        # What is computed, such as a norm stored less one, is float32 and stays so.
        assert (source.dtype == BF16) == (tensor.stored_as == "BF16") or tensor.type == source.dtype == F32
        whole = source.read_float32(0, source.n_rows)
        for start, stop in ((0, tensor.n_rows), (tensor.n_rows // 3, tensor.n_rows - tensor.n_rows // 4)):
            rows = source.read(start, stop)
            assert rows.flags.c_contiguous
            np.testing.assert_array_equal(source.read_float32(start, stop), whole[start:stop])
            if source.dtype == BF16:
                np.testing.assert_array_equal(widened(rows), whole[start:stop])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_tokenizers_are_what_llama_cpp_makes_of_them(tmp_path: Path, variant) -> None:
    folder = write_case(tmp_path / variant.__name__, read_case(BASE))
    variant(folder)
    model = to_gguf(open_checkpoint(folder), pre="glm4")
    assert golden_keys(model) == read_golden("tokenizers")[variant.__name__]
