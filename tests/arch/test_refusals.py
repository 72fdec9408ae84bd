"""What cannot be converted is refused in one sentence that names the culprit, before a weight is read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoints import DATA, read_case, write_case

from ggplan.arch import to_gguf
from ggplan.errors import CheckpointError, TokenizerError
from ggplan.model import Model
from ggplan.sources.huggingface import open_checkpoint

Change = Callable[[dict], object]


def convertible(folder: Path, pre: str | None = "glm4") -> Model:
    """The model of a folder, as `convert` would take it."""
    model = to_gguf(open_checkpoint(folder), pre=pre)
    if model.obstacle is not None:
        raise model.obstacle
    return model


def refusal(folder: Path, case: str, change: Change, pre: str | None = "glm4") -> CheckpointError:
    """The error for a case that was changed."""
    spec = read_case(case)
    change(spec)
    with pytest.raises(CheckpointError) as caught:
        convertible(write_case(folder, spec), pre)
    error = caught.value
    assert "\n" not in error.message + error.hint
    assert len(error.message) < 500
    return error


def only_shard(spec: dict) -> dict:
    (tensors,) = spec["shards"].values()
    return tensors


def without(name: str) -> Change:
    return lambda spec: only_shard(spec).pop(name)


def config(**values: object) -> Change:
    return lambda spec: spec["config"].update(values)


def unset(key: str) -> Change:
    return lambda spec: spec["config"].pop(key)


LAYER = "model.layers.1."


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("glm4moe_mtp", "model.embed_tokens.weight"),
        ("glm4moe_mtp", LAYER + "self_attn.o_proj.weight"),
        ("glm4moe_mtp", LAYER + "mlp.experts.3.up_proj.weight"),
        ("glm4moe_mtp", LAYER + "mlp.gate.e_score_correction_bias"),
        ("glm4moe_mtp", "model.layers.3.enorm.weight"),
        ("glm4moe_mtp", "model.layers.0.mlp.gate_proj.weight"),
        ("qwen3moe_fused", LAYER + "mlp.experts.down_proj"),
        ("deepseek_v2_lite", LAYER + "self_attn.kv_b_proj.weight"),
        ("llama_tied", LAYER + "post_attention_layernorm.weight"),
    ],
)
def test_a_missing_tensor(tmp_path: Path, case: str, name: str) -> None:
    assert refusal(tmp_path, case, without(name)).message.endswith(f"lacks the tensor '{name}'")


def test_an_optional_tensor_missing_from_one_layer(tmp_path: Path) -> None:
    name = LAYER + "self_attn.q_proj.bias"
    error = refusal(tmp_path, "glm4moe_mtp", without(name))
    assert error.message.endswith(f"lacks the tensor '{name}', though other layers have it")


def test_a_whole_layer_missing(tmp_path: Path) -> None:
    def change(spec: dict) -> None:
        for name in [n for n in only_shard(spec) if n.startswith(LAYER)]:
            del only_shard(spec)[name]

    assert (
        "lacks the tensor 'model.layers.1.input_layernorm.weight'"
        in refusal(tmp_path, "qwen3", change).message
    )


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("qwen3", "model.layers.7.input_layernorm.weight"),
        ("qwen3", "model.layers.01.input_layernorm.weight"),
        ("qwen3", "model.layers.99999999999999999999.input_layernorm.weight"),
        ("qwen3", "model.layers.{}.input_layernorm.weight"),
        ("qwen3", "model.layers.0.self_attn.sinks"),
        ("qwen3", "visual.blocks.0.weight"),
        ("qwen3", "evil\x1b[2J\nname"),
        ("llama_tied", "rope_freqs.weight"),
        ("glm4moe_mtp", "model.layers.1.mlp.experts.4.up_proj.weight"),
        ("glm4moe_mtp", "model.layers.1.mlp.experts.{}.up_proj.weight"),
        ("glm4moe_mtp", "model.layers.0.mlp.experts.0.up_proj.weight"),
        ("glm4moe_mtp", "model.layers.1.mlp.gate_proj.weight"),
        ("glm4moe_mtp", "model.layers.2.enorm.weight"),
        ("qwen3moe_fused", "model.layers.0.mlp.experts.0.up_proj.weight"),
    ],
)
def test_an_unknown_tensor(tmp_path: Path, case: str, name: str) -> None:
    error = refusal(tmp_path, case, lambda spec: only_shard(spec).update({name: ["BF16", [64]]}))
    assert "which config.json has no place for" in error.message
    assert "\x1b" not in error.message


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        ("model.norm.weight", ["BF16", [63]], "has the shape 63, but config.json makes it 64"),
        (
            LAYER + "self_attn.q_proj.weight",
            ["BF16", [64, 128]],
            "64 x 128, but config.json makes it 128 x 64",
        ),
        (LAYER + "self_attn.q_proj.weight", ["BF16", [128, 64, 1]], "128 x 64 x 1"),
        (LAYER + "self_attn.q_proj.weight", ["BF16", []], "has the shape of a scalar"),
        ("model.norm.weight", ["I16", [64]], "is stored as I16"),
    ],
)
def test_a_wrong_shape_or_type(tmp_path: Path, name: str, stored: list, message: str) -> None:
    error = refusal(tmp_path, "qwen3", lambda spec: only_shard(spec).update({name: stored}))
    assert f"'{name}'" in error.message
    assert message in error.message


@pytest.mark.parametrize(
    ("case", "change", "key"),
    [
        ("glm4moe_mtp", config(num_hidden_layers=10**9), "num_hidden_layers"),
        ("glm4moe_mtp", config(num_hidden_layers=-1), "num_hidden_layers"),
        ("glm4moe_mtp", config(num_hidden_layers="3"), "num_hidden_layers"),
        ("glm4moe_mtp", config(num_hidden_layers=3.0), "num_hidden_layers"),
        ("glm4moe_mtp", config(num_hidden_layers=True), "num_hidden_layers"),
        ("glm4moe_mtp", config(num_hidden_layers=10**4000), "num_hidden_layers"),
        ("glm4moe_mtp", config(num_nextn_predict_layers=10**9), "num_nextn_predict_layers"),
        ("glm4moe_mtp", config(n_routed_experts=0), "n_routed_experts"),
        ("glm4moe_mtp", config(n_routed_experts=1 << 32), "n_routed_experts"),
        ("glm4moe_mtp", config(hidden_size=None), "hidden_size"),
        ("glm4moe_mtp", unset("moe_intermediate_size"), "moe_intermediate_size"),
        ("glm4moe_mtp", config(partial_rotary_factor=7.5), "partial_rotary_factor"),
        ("glm4moe_mtp", config(norm_topk_prob="yes"), "norm_topk_prob"),
        ("glm4moe_mtp", config(rms_norm_eps="1e-5"), "rms_norm_eps"),
        ("glm4moe_mtp", config(rope_theta=1e300), "rope_theta"),
        ("glm4moe_mtp", config(routed_scaling_factor=10**400), "routed_scaling_factor"),
        ("glm4moe_mtp", config(rope_scaling=[1]), "rope_scaling"),
        ("deepseek_v2_lite", config(scoring_func="coin"), "scoring_func"),
        ("deepseek_v2_lite", config(kv_lora_rank={}), "kv_lora_rank"),
        ("llama_tied", config(num_attention_heads=0), "num_attention_heads"),
        ("llama_tied", config(head_dim=7), "heads of 7 columns"),
        ("llama_tied", config(rope_scaling={"rope_type": "llama3", "factor": 0}), "factor"),
        ("llama_tied", config(rope_scaling={"rope_type": "llama3", "low_freq_factor": 9}), "low_freq_factor"),
        ("llama_tied", config(rope_scaling={"rope_type": "llama3"}, head_dim=1 << 30), "heads of 1073741824"),
        ("qwen3moe_fused", config(mlp_only_layers=[0]), "layers with and without experts"),
    ],
)
def test_an_impossible_config(tmp_path: Path, case: str, change: Change, key: str) -> None:
    error = refusal(tmp_path, case, change)
    assert key in error.message
    assert "config.json" in error.message


def test_more_experts_than_there_are(tmp_path: Path) -> None:
    error = refusal(tmp_path, "glm4moe_mtp", config(n_routed_experts=4_000_000_000))
    assert "config.json makes it 4000000000" in error.message  # the router's shape says so first


@pytest.mark.parametrize("stated", [None, [], "LlamaForCausalLM", [7], ["GPT2LMHeadModel"], ["x\x1b[0m"]])
def test_an_architecture_that_is_not_supported(tmp_path: Path, stated: object) -> None:
    error = refusal(tmp_path, "qwen3", config(architectures=stated))
    if isinstance(stated, list) and stated and isinstance(stated[0], str):
        assert "which ggplan does not read" in error.message
        assert "`--converter DIR`" in error.hint
    else:
        assert "has no list `architectures`" in error.message


def test_an_architecture_that_is_nearly_one_that_is_supported(tmp_path: Path) -> None:
    error = refusal(tmp_path, "qwen3", config(architectures=["Qwen3MoEForCausalLM"]))
    assert "'Qwen3MoEForCausalLM'" in error.message
    assert "Qwen3MoeForCausalLM, " in error.message


def test_a_model_of_embeddings(tmp_path: Path) -> None:
    error = refusal(tmp_path, "qwen3", lambda spec: spec["files"].update({"modules.json": "[]"}))
    assert "embeddings" in error.message


def tokenizer_refusal(
    folder: Path, change: Callable[[dict], object], pre: str | None = "glm4"
) -> CheckpointError:
    """The error for a tokenizer.json that was changed."""
    write_case(folder, read_case("mistral"))
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as caught:
        convertible(folder, pre)
    return caught.value


def test_a_tokenizer_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    error = tokenizer_refusal(tmp_path, lambda document: None, pre=None)
    assert "does not know this tokenizer" in error.message
    assert isinstance(error, TokenizerError)
    assert "--pre NAME" in error.hint
    assert "pre=NAME" in str(error)
    assert "--" not in str(error)


@pytest.mark.parametrize("pre", ["", "two words", "x" * 99, "glm4\n"])
def test_a_pre_tokenizer_without_a_sound_name(tmp_path: Path, pre: str) -> None:
    assert (
        "not the name of a pre-tokenizer" in tokenizer_refusal(tmp_path, lambda document: None, pre).message
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"].update(type="Unigram"), "'Unigram'"),
        (lambda d: d["model"].update(byte_fallback=True), "sentencepiece"),
        (lambda d: d.pop("model"), "'None'"),
        (lambda d: d["model"].update(merges=[["a", "b", "c"]]), "cannot be used"),
        (lambda d: d["model"]["vocab"].update(zzz=320), "id 320"),
        (lambda d: d["model"]["vocab"].update(zzz=-1), "cannot be used"),
        (lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "((("}), "cannot be used"),
        (
            lambda d: d.update(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
            "normalizer 'Replace'",
        ),
        (
            lambda d: d.update(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "gone", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {},
                }
            ),
            "'gone' without an id",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_used(tmp_path: Path, change: Callable, message: str) -> None:
    error = tokenizer_refusal(tmp_path, change)
    assert "tokenizer.json" in error.message
    assert message in error.message


def test_a_panic_in_rust_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ggplan.arch.pretokenizers._SECONDS", 60.0)  # it fails by itself, but late

    def change(document: dict) -> None:
        document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"^(\s+)+$|(.+)+Z"}

    error = tokenizer_refusal(tmp_path, change, pre=None)
    assert "cannot be used: Onig: Regex search error" in error.message
    os.write(2, b"stderr is back")
    assert capfd.readouterr().err == "stderr is back"


def test_an_expression_that_never_ends(tmp_path: Path) -> None:
    def change(document: dict) -> None:
        slow = dict(document["pre_tokenizer"]["pretokenizers"][0])
        slow["pattern"] = {"Regex": r"(?:(?:\S|\s){1,2}){19}(?!)"}
        document["pre_tokenizer"]["pretokenizers"].insert(0, slow)

    error = tokenizer_refusal(tmp_path, change, pre=None)
    assert error.message.endswith("encoding a line of text takes more than 3 seconds")


@pytest.mark.parametrize(
    ("case", "name"),
    [("glm4moe", "tokenizer.model"), ("mistral", "tiktoken.model"), ("mistral", "tekken.json")],
)
def test_other_kinds_of_tokenizers(tmp_path: Path, case: str, name: str) -> None:
    write_case(tmp_path, read_case(case))
    (tmp_path / "tokenizer.json").rename(tmp_path / name)
    with pytest.raises(TokenizerError, match=f"{name}.*does not read for this architecture"):
        convertible(tmp_path, None)


def test_sentencepiece_wins_where_the_converter_lets_it(tmp_path: Path) -> None:
    write_case(tmp_path, read_case("mistral"))
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(CheckpointError, match="is no sentencepiece model"):
        to_gguf(open_checkpoint(tmp_path))


@pytest.mark.parametrize("kind", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ([1], "is not an object"),
        ("x", "is not an object"),
        ({"9" * 5000: {"content": "<x>"}}, "which is no id"),
        ({"-1": {"content": "<x>"}}, "which is no id"),
        ({"\u0663": {"content": "<x>"}}, "which is no id"),
        ({"310": "<x>"}, "gives the token 310 no text"),
    ],
)
def test_added_tokens_that_are_none(tmp_path: Path, kind: str, decoder: object, message: str) -> None:
    write_case(tmp_path, read_case("mistral"))
    if kind == "tokenizer.model":
        (tmp_path / "tokenizer.json").unlink()
        shutil.copy(DATA / "hf" / "small.model", tmp_path / kind)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": decoder}))
    with pytest.raises(CheckpointError, match=message) as caught:
        convertible(tmp_path)
    assert "tokenizer_config.json" in caught.value.message
    assert len(caught.value.message) < 1000


def test_no_tokenizer(tmp_path: Path) -> None:
    write_case(tmp_path, read_case("mistral"))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json"):
        convertible(tmp_path, None)


def test_glm_without_its_special_tokens(tmp_path: Path) -> None:
    write_case(tmp_path, read_case("glm4moe_mtp"))
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<|observation|>", "<|other|>"))
    with pytest.raises(CheckpointError, match="lacks the token '<|observation|>'".replace("|", r"\|")):
        to_gguf(open_checkpoint(tmp_path), pre="glm4")
