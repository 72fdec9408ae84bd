"""What docs/models.md says of models that llama.cpp's converter makes a wrong file of, or none."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import read_case, write_case
from tokenizer_variants import byte_fallback

from ggplan.arch import to_gguf
from ggplan.errors import TokenizerError
from ggplan.model import Model
from ggplan.sources.huggingface import open_checkpoint

Spec = dict[str, dict]


def opened(folder: Path, case: str, change: Callable[[Spec], None] = lambda spec: None) -> Model:
    spec = read_case(case)
    change(spec)
    return to_gguf(open_checkpoint(write_case(folder, spec)), pre="glm4")


def contents(model: Model) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {
        t.name: (t.shape, t.rows.read_float32(0, t.n_rows).tobytes()) for t in model if t.rows is not None
    }


def in_config(**values: object) -> Callable[[Spec], None]:
    return lambda spec: spec["config"].update(values)


def with_rows(n: int) -> Callable[[Spec], None]:
    """As many rows of the embedding and of the output."""

    def change(spec: Spec) -> None:
        old = spec["config"]["vocab_size"]
        for tensors in spec["shards"].values():
            for name, (dtype, shape) in tensors.items():
                if shape[0] == old and ("embed" in name or "lm_head" in name):
                    tensors[name] = [dtype, [n, *shape[1:]]]
        spec["config"]["vocab_size"] = n

    return change


def renamed(spec: Spec) -> None:
    """Without `model.`."""
    for shard, tensors in spec["shards"].items():
        spec["shards"][shard] = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def test_gemma_3_keeps_all_rows_of_the_embedding(tmp_path: Path) -> None:
    """More than tokenizer.json has tokens."""
    model = opened(tmp_path / "model", "gemma3", with_rows(352))
    n_tokens = model.metadata["tokenizer.ggml.tokens"].length
    assert n_tokens == 352
    assert model["token_embd.weight"].shape[0] == n_tokens


def test_granite_4_finds_attention_under_the_name_that_transformers_5_gives(tmp_path: Path) -> None:
    old = opened(tmp_path / "old", "granitehybrid")
    types = [
        "full_attention" if kind == "attention" else "linear_attention"
        for kind in read_case("granitehybrid")["config"]["layer_types"]
    ]
    new = opened(tmp_path / "new", "granitehybrid", in_config(layer_types=types))
    assert "full_attention" in types
    assert any(new.metadata["granitehybrid.attention.head_count_kv"].decode())
    assert new.metadata == old.metadata | {"general.name": new.metadata["general.name"]}
    assert contents(new) == contents(old)


@pytest.mark.parametrize("case", ["granitehybrid", "nemotron_h_moe_mtp", "nemotron_h"])
def test_a_vocabulary_need_not_be_a_multiple_of_8(tmp_path: Path, case: str) -> None:
    model = opened(tmp_path / "model", case, with_rows(333))
    assert model.metadata["tokenizer.ggml.tokens"].length == 333
    assert model["token_embd.weight"].shape[0] == 333


def test_nemotron_h_is_dense_where_no_layer_has_experts(tmp_path: Path) -> None:
    """transformers 5 fills in `num_experts_per_tok`, by which the converter goes."""
    model = opened(tmp_path / "model", "nemotron_h", in_config(num_experts_per_tok=2))
    assert model.architecture == "nemotron_h"
    assert not any("exps" in tensor.name for tensor in model)


@pytest.mark.parametrize("case", ["exaone4", "gpt_oss", "granitehybrid", "nemotron_h"])
def test_a_tokenizer_of_sentencepiece_is_not_taken_for_byte_level(tmp_path: Path, case: str) -> None:
    folder = write_case(tmp_path / "model", read_case(case))
    byte_fallback(folder)
    model = to_gguf(open_checkpoint(folder), pre="glm4")
    assert isinstance(model.obstacle, TokenizerError)
    assert "tokenizer.json is sentencepiece BPE; ggplan reads byte-level BPE" in str(model.obstacle)
    assert not any(key.startswith("tokenizer.") for key in model.metadata)


@pytest.mark.parametrize("case", ["dots1", "gpt_oss", "glm4", "lfm2", "minimax_m2", "qwen3_next_mtp"])
def test_names_may_lack_their_prefix_in_every_family(tmp_path: Path, case: str) -> None:
    full, bare = opened(tmp_path / "model", case), opened(tmp_path / "bare", case, renamed)
    assert {name: shape for name, (shape, _) in contents(bare).items()} == {
        name: shape for name, (shape, _) in contents(full).items()
    }
    keys = bare.metadata.keys() | full.metadata.keys()
    differing = {key for key in keys if bare.metadata.get(key) != full.metadata.get(key)}
    assert differing <= {"general.name", "general.basename", "general.size_label"}
