"""What a family's class in llama.cpp's converter does with a tokenizer that the class beside it does not."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_checkpoints import DATA, read_case, write_case

from ggplan.arch import to_gguf
from ggplan.model import Model
from ggplan.sources.huggingface import open_checkpoint

CASES = [("mistral3", True), ("ministral3", True), ("mistral4", False)]


def opened(folder: Path, case: str, **settings: object) -> Model:
    """A tiny model whose tokenizer_config.json says these too."""
    path = write_case(folder, read_case(case)) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return to_gguf(open_checkpoint(folder), pre="glm4")


@pytest.mark.parametrize(
    ("case", "is_there"), [("mistral3", True), ("ministral3", True), ("mistral4", False)]
)
def test_mistral_small_4_has_the_tokenizer_of_deepseek(tmp_path: Path, case: str, is_there: bool) -> None:
    """Its class there is not Llama's, which writes this key and prefers tokenizer.model."""
    keys = opened(tmp_path / "model", case, add_prefix_space=True).metadata
    assert ("tokenizer.ggml.add_space_prefix" in keys) == is_there


@pytest.mark.parametrize(("case", "kind"), [("mistral3", "llama"), ("mistral4", "gpt2")])
def test_which_file_has_the_tokenizer(tmp_path: Path, case: str, kind: str) -> None:
    folder = write_case(tmp_path / "model", read_case(case))
    shutil.copy(DATA / "hf" / "small.model", folder / "tokenizer.model")
    keys = to_gguf(open_checkpoint(folder), pre="glm4").metadata
    assert keys["tokenizer.ggml.model"].decode() == kind


@pytest.mark.parametrize(("begins", "is_told"), [(True, False), (False, True), (None, True)])
def test_deepseek_v3_2_begins_texts_with_bos(tmp_path: Path, begins: bool | None, is_told: bool) -> None:
    """The converter refuses a folder that does not say so."""
    settings = {} if begins is None else {"add_bos_token": begins}
    model = opened(tmp_path / "model", "deepseek_v32_mtp", bos_token="<sop>", **settings)
    notes = [note for note in model.notes if "BOS" in note]
    assert bool(notes) == is_told
    if is_told:
        assert "tokenizer_config.json: add_bos_token is not true" in notes[0]
