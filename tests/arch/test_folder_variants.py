"""Folders as people have them become what llama.cpp's converter makes of them, and what is odd is noted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folder_variants import VARIANTS
from program import run
from tiny_checkpoints import DATA, golden_keys, golden_summary, read_case, write_case

import ggplan
from ggplan.arch import to_gguf
from ggplan.errors import CheckpointError, TokenizerError, TruncatedError
from ggplan.sources.huggingface import open_checkpoint

GOLDENS = json.loads((DATA / "goldens" / "variants.json").read_text())
NOTED = {
    "index_and_stray": ["not read: model.safetensors; model.safetensors.index.json does not name it"],
    "index_and_strays": ["not read: consolidated.safetensors, model-00003-of-00003.safetensors; model.safe"],
    "index_misplaces": ["2 tensors are in another shard than it says, the first 'model."],
    "no_index_and_strays": [
        "not read: adapter.safetensors, consolidated.safetensors; the weights are in model*"
    ],
    "no_head_though_untied": ["says tie_word_embeddings false, but there is no lm_head.weight"],
    "longrope": ["llama.cpp uses no longrope factors"],
    "su": ["llama.cpp uses no longrope factors", "says norm_topk_prob false, but llama.cpp computes"],
    "modelopt": ["no weights depend on 21 tensors"],
    "modelopt_by_rows": ["no weights depend on 42 tensors"],
    "biases_that_are_not_there": ["says attention_bias, but", "says mlp_bias, but"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_is_what_llama_cpp_makes_of_it(tmp_path: Path, name: str) -> None:
    model = to_gguf(open_checkpoint(VARIANTS[name].write(tmp_path / name)), pre="glm4")
    golden = GOLDENS[name]
    assert golden_keys(model) == golden["keys"]
    assert list(golden_keys(model)) == list(golden["keys"])
    assert golden_summary(model)["tensors"] == golden["tensors"]
    assert model.obstacle is None
    notes = [note for note in model.notes if "tie_word_embeddings" not in note or name in NOTED]
    expected = NOTED.get(name, [])
    assert len(notes) == len(expected)
    assert all(said in note for said, note in zip(expected, notes, strict=True))


def test_experts_without_the_prefix_are_read_too(tmp_path: Path) -> None:
    """The converter fails on these; the result is that of the same model with the prefix."""
    for case in ("glm4moe_mtp", "mixtral", "qwen3moe_fused", "deepseek_v3"):
        spec = read_case(case)
        whole = to_gguf(open_checkpoint(write_case(tmp_path / "a" / case, spec)), pre="glm4")
        for shard, tensors in spec["shards"].items():
            spec["shards"][shard] = {name.removeprefix("model."): t for name, t in tensors.items()}
        bare = to_gguf(open_checkpoint(write_case(tmp_path / "b" / case, spec)), pre="glm4")
        assert sorted((t.name, t.shape) for t in bare.tensors) == sorted(
            (t.name, t.shape) for t in whole.tensors
        )
        assert golden_keys(bare) == golden_keys(whole)


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    spec = read_case("mistral")
    (tensors,) = spec["shards"].values()
    tensors["norm.weight"] = tensors["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"under two names, 'model\.norm\.weight' and 'norm\.weight'"):
        to_gguf(open_checkpoint(write_case(tmp_path, spec)), pre="glm4")


def changed(folder: Path, **config: object) -> Path:
    spec = read_case("mistral")
    spec["config"].update(config)
    return write_case(folder, spec)


def test_a_special_token_that_no_token_is(tmp_path: Path) -> None:
    model = to_gguf(open_checkpoint(changed(tmp_path, pad_token_id=-1)), pre="glm4")
    assert isinstance(model.obstacle, TokenizerError)
    assert f"{tmp_path / 'config.json'}: the id of the pad token is -1" in model.obstacle.message
    with pytest.raises(TokenizerError, match="the id of the pad token is -1"):
        ggplan.convert(ggplan.make_plan(model), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_an_unknown_tokenizer_keeps_from_converting_alone(tmp_path: Path) -> None:
    model = ggplan.open_model(changed(tmp_path))
    assert isinstance(model.obstacle, TokenizerError)
    assert "tokenizer.ggml.pre" not in model.metadata
    assert model.metadata["tokenizer.ggml.tokens"].length == 320
    plan = ggplan.make_plan(model, "Q4_K_M")
    with pytest.raises(TokenizerError, match="does not know this tokenizer") as caught:
        ggplan.convert(plan, tmp_path / "out.gguf")
    assert "(help: name it with pre=NAME, e.g. glm4" in str(caught.value)
    named = ggplan.open_model(tmp_path, pre="glm4")
    assert named.obstacle is None
    assert {**model.metadata, "tokenizer.ggml.pre": named.metadata["tokenizer.ggml.pre"]} == named.metadata


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n"


def test_a_pointer_in_place_of_the_tokenizer_keeps_from_converting_alone(tmp_path: Path) -> None:
    (changed(tmp_path) / "tokenizer.json").write_text(POINTER)
    model = ggplan.open_model(tmp_path, pre="glm4")
    assert isinstance(model.obstacle, TokenizerError)
    assert model.obstacle.hint == f"run `git lfs pull` in {tmp_path}"


@pytest.mark.parametrize("name", ["generation_config.json", "README.md"])
def test_a_file_of_suggestions_that_cannot_be_read_is_noted(tmp_path: Path, name: str) -> None:
    (changed(tmp_path) / name).write_text(POINTER)
    (note,) = ggplan.open_model(tmp_path, pre="glm4").notes
    assert f"{name} is a Git LFS pointer" in note
    assert "is left out" in note


@pytest.mark.parametrize(("pre", "near"), [("glm-4", "glm4"), ("Qwen2", "qwen2"), ("bert-bge-large", "such")])
def test_a_name_that_llama_cpp_does_not_know(tmp_path: Path, pre: str, near: str) -> None:
    with pytest.raises(CheckpointError, match=r"not the name of a pre-tokenizer in llama\.cpp") as caught:
        ggplan.open_model(changed(tmp_path), pre=pre)
    assert near in caught.value.hint


@pytest.mark.parametrize("algorithm", ["NVFP4", "W4A16_AWQ", "MIXED_PRECISION"])
def test_other_ways_of_modelopt_are_refused_by_name(tmp_path: Path, algorithm: str) -> None:
    layers = {"quantized_layers": {"model.layers.0.mlp.up_proj": {"quant_algo": "NVFP4"}}}
    config = {"quant_method": "modelopt", "quant_algo": algorithm, **layers}
    with pytest.raises(CheckpointError, match=rf"is quantized by modelopt \({algorithm}\)"):
        open_checkpoint(changed(tmp_path, quantization_config=config))


@pytest.mark.parametrize("has_index", [True, False])
def test_a_folder_without_some_of_its_shards(tmp_path: Path, has_index: bool) -> None:
    spec = read_case("qwen3")
    whole = ggplan.open_model(write_case(tmp_path / "whole", spec), pre="glm4")
    tensors = {name: tensor for shard in spec["shards"].values() for name, tensor in shard.items()}
    names = sorted(tensors)
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    spec["shards"] = {
        first: {n: tensors[n] for n in names[::2]},
        second: {n: tensors[n] for n in names[1::2]},
    }
    folder = write_case(tmp_path / "part", spec)
    (folder / second).unlink()
    if not has_index:
        for path in folder.glob("*.index.json"):
            path.unlink()
    with pytest.raises(TruncatedError, match=f"1 of 2 shards are missing: {second}"):
        ggplan.open_model(folder, pre="glm4")
    model = ggplan.open_model(folder, pre="glm4", header_only=True)
    assert isinstance(model.obstacle, TruncatedError)
    assert {t.name for t in model.tensors} < {t.name for t in whole.tensors}
    assert model.tensors
    done = run("inspect", folder, "--header-only")
    assert done.returncode == 0
    assert f"1 of 2 shards are missing: {second}" in done.stdout + done.stderr
    (folder / first).unlink()
    with pytest.raises(CheckpointError):
        ggplan.open_model(folder, pre="glm4", header_only=True)
