"""Pre-tokenizers are recognised as llama.cpp does it: by the hash of a fixed text's token ids."""

import hashlib
import json
from pathlib import Path

import pytest
from tiny_checkpoints import read_case, write_case
from tokenizer_variants import begins

from ggplan.arch import pretokenizers, to_gguf
from ggplan.arch.pretokenizers import PRETOKENIZERS
from ggplan.sources.huggingface import open_checkpoint

# The ids the small tokenizer gives to the text, with and without BOS (304), hashed as llama.cpp does.
SMALL = "5abdda90d3099031cfd74919964830d80f78e78bd675f503176efb2699fbd8fe"
SMALL_WITH_BOS = "bac3bad63df4679bf73ba6121ab66cd101cd522229ec25c8c17862b7921c940b"


def test_the_table_and_the_text_are_llama_cpps() -> None:
    assert len(PRETOKENIZERS) == 95
    assert all(len(hash) == 64 for hash in PRETOKENIZERS)
    text = pretokenizers._TEXT
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()[:16]) == (350, "a36179c1e2b1cfcf")


def recognised(folder: Path, monkeypatch: pytest.MonkeyPatch, hash: str) -> str:
    """The name that is written when the table knows the hash."""
    monkeypatch.setitem(PRETOKENIZERS, hash, "small")
    return to_gguf(open_checkpoint(folder)).metadata["tokenizer.ggml.pre"].decode()


def test_a_known_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_case(tmp_path, read_case("mistral"))
    assert recognised(folder, monkeypatch, SMALL) == "small"


def test_the_template_of_tokenizer_json_puts_bos_before_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_case(tmp_path, read_case("mistral"))
    begins(folder)
    assert recognised(folder, monkeypatch, SMALL_WITH_BOS) == "small"


@pytest.mark.parametrize("bos", ["<sop>", {"__type": "AddedToken", "content": "<sop>"}])
def test_llama_classes_put_bos_before_the_text_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bos: object
) -> None:
    """DeepSeek V3: without its BOS the hash would be that of another model."""
    folder = write_case(tmp_path, read_case("mistral"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizerFast", "bos_token": bos}
    path.write_text(json.dumps(settings))
    monkeypatch.setitem(PRETOKENIZERS, SMALL, "other")
    assert recognised(folder, monkeypatch, SMALL_WITH_BOS) == "small"
    path.write_text(json.dumps(settings | {"add_bos_token": False}))
    assert recognised(folder, monkeypatch, SMALL_WITH_BOS) == "other"


def test_a_named_pre_tokenizer_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRETOKENIZERS, SMALL, "small")
    model = to_gguf(open_checkpoint(write_case(tmp_path, read_case("mistral"))), pre="llama-bpe")
    assert model.metadata["tokenizer.ggml.pre"].decode() == "llama-bpe"


def test_a_vocabulary_of_49152_tokens_begins_without_bos(tmp_path: Path) -> None:
    """SmolLM and Granite, whatever their tokenizer says."""
    spec = read_case("mistral")
    spec["config"]["vocab_size"] = 49152
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        spec["shards"]["model.safetensors"][name] = ["BF16", [49152, 64]]
    folder = write_case(tmp_path, spec)
    begins(folder)
    metadata = to_gguf(open_checkpoint(folder), pre="smollm").metadata
    assert metadata["tokenizer.ggml.add_bos_token"].decode() is False
    assert metadata["tokenizer.ggml.tokens"].decode()[-1] == "[PAD49151]"
