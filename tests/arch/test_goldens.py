"""Every architecture, without torch: tiny checkpoints become what llama.cpp's converter made of them."""

import json
from pathlib import Path

import pytest
from tiny_checkpoints import CASES, DATA, golden_keys, golden_tensors, read_case, write_case
from tokenizer_variants import BASE, VARIANTS

from ggplan.arch import to_gguf
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


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_tokenizers_are_what_llama_cpp_makes_of_them(tmp_path: Path, variant) -> None:
    folder = write_case(tmp_path / variant.__name__, read_case(BASE))
    variant(folder)
    model = to_gguf(open_checkpoint(folder), pre="glm4")
    assert golden_keys(model) == read_golden("tokenizers")[variant.__name__]
