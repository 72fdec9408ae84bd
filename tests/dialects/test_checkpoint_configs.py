"""The quantization_config of checkpoints: whose it is, what it gives each module, what it says besides."""

import contextlib
import json
import time
from pathlib import Path

import pytest

from ggplan.dialects import export_recipe, import_recipe
from ggplan.errors import RecipeError
from ggplan.inventories import inventory
from ggplan.planning import decide, fit
from ggplan.rules import parse_recipe

CASES = Path(__file__).parents[1] / "data" / "cases"
MOE, DENSE = "Qwen3-30B-A3B", "Qwen3-8B"


def types(config: object, name: str = MOE, **options: str) -> dict[str, str]:
    text = config if isinstance(config, str) else json.dumps(config)
    model = inventory(name)
    recipe = parse_recipe(import_recipe(text, "config.json", model=model, **options).text)
    return {f.tensor.name: f.type.name for f in fit(model, decide(model, recipe))}


def imported(config: object, name: str = MOE) -> tuple[str, str]:
    text = config if isinstance(config, str) else json.dumps(config)
    found = import_recipe(text, "config.json", model=inventory(name) if name else None)
    assert all(note.replace("#", "") in found.text for note in found.notes)
    return found.dialect, "\n".join(found.notes)


def message(config: object, **options: str) -> str:
    text = config if isinstance(config, str) else json.dumps(config)
    with pytest.raises(RecipeError) as caught:
        import_recipe(text, "config.json", model=inventory(MOE), **options)
    return f"{caught.value.message} | {caught.value.hint}"


def quantized(method: str, **values: object) -> dict[str, object]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "quantization_config": {"quant_method": method, **values},
    }


def test_dynamic_of_gptq() -> None:
    text = (CASES / "gptq-dynamic-config.json").read_text()
    dialect, notes = imported(text)
    assert dialect == "gptq"
    assert "desc_act = true" in notes
    found = types(text)
    assert found["blk.3.ffn_down_exps.weight"] == "q8_0"
    assert found["blk.3.ffn_gate_exps.weight"] == "q4_0"
    assert found["blk.3.ffn_gate_inp.weight"] == "f32"
    assert found["output.weight"] == "bf16"
    ordered = {
        "-:.*layers\\.[0-3]\\..*": {},
        "+:.*down_proj": {"bits": 8},
        ".*self_attn.*": {"sym": False, "secret": 1},
    }
    config = quantized("gptq", bits=4, group_size=32, sym=True, lm_head=True, dynamic=ordered, rotation="qr")
    found = types(config)
    assert found["blk.3.ffn_down_exps.weight"] == "bf16"  # the first that matches decides
    assert found["blk.4.ffn_down_exps.weight"] == "q8_0"
    assert found["blk.4.attn_q.weight"] == "q4_K"
    assert found["blk.4.ffn_up_exps.weight"] == "q4_0"
    assert found["output.weight"] == "q4_0"
    notes = imported(config)[1]
    assert "dynamic..*self_attn.*.secret = 1" in notes
    assert 'left out, as ggplan does not know it: dynamic..*self_attn.*.secret = 1, rotation = "qr"' in notes
    some = quantized("gptq", bits=4, group_size=128, modules_in_block_to_quantize=[["self_attn.q_proj"]])
    assert types(some)["blk.0.attn_q.weight"] == "q4_0"
    assert types(some)["blk.0.attn_k.weight"] == "bf16"


def test_modules_that_awq_does_not_convert() -> None:
    config = quantized(
        "awq", bits=4, group_size=128, zero_point=True, version="gemm",
        modules_to_not_convert=["mlp.gate", "self_attn", "layers.1."],
    )  # fmt: skip
    dialect, notes = imported(config)
    assert dialect == "awq"
    assert 'version = "gemm"' in notes
    found = types(config)
    assert found["blk.0.ffn_up_exps.weight"] == "q4_K"
    assert found["blk.0.attn_q.weight"] == "bf16"
    assert found["blk.1.ffn_up_exps.weight"] == "bf16"
    assert found["blk.10.ffn_up_exps.weight"] == "q4_K"
    assert types({"w_bit": 4, "q_group_size": 32, "zero_point": False})["blk.0.attn_q.weight"] == "q4_0"
    assert "is to stay" not in notes
    odd = quantized("awq", bits=4, group_size=128, modules_to_not_convert=["talker.7"])
    assert "`talker.7` is to stay as it is, and matches no module" in imported(odd)[1]


INT8 = {"_type": "Int8WeightOnlyConfig", "_data": {}}
OLD = {"quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 32}}
GROUPS = {"g": {"targets": ["Linear"], "weights": {"num_bits": 8}}}


@pytest.mark.parametrize(("config", "dialect", "type_"), [
    (quantized("bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"), "bitsandbytes", "iq4_nl"),
    (quantized("bitsandbytes", load_in_8bit=True), "bitsandbytes", "q8_0"),
    (quantized("fp8", weight_block_size=[128, 128], activation_scheme="dynamic"), "fp8", "q8_0"),
    (quantized("fbgemm_fp8", activation_scale_ub=1200.0), "fbgemm_fp8", "q8_0"),
    (quantized("modelopt", quant_algo="NVFP4", ignore=["lm_head"]), "modelopt", "nvfp4"),
    ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": []}},
     "modelopt", "q8_0"),
    (quantized("hqq", quant_config={"weight_quant_params": {"nbits": 4, "group_size": 64}}), "hqq", "q4_K"),
    (quantized("quanto", weights="int8", activations=None), "quanto", "q8_0"),
    (quantized("eetq", weights="int8"), "eetq", "q8_0"),
    (quantized("torchao", quant_type={"default": INT8}), "torchao", "q8_0"),
    (quantized("torchao", **OLD), "torchao", "q4_K"),
    (quantized("auto-round", bits=4, group_size=32, sym=True), "autoround", "q4_0"),
    (quantized("compressed-tensors", config_groups=GROUPS), "compressed-tensors", "q8_0"),
    ({"text_config": quantized("gptq", bits=8, group_size=-1)}, "gptq", "q8_0"),
    ({"bits": 4, "group_size": 32, "desc_act": False, "sym": True}, "gptq", "q4_0"),
    ({"quantization": {"bits": 4, "group_size": 32}}, "mlx", "q4_K"),
])  # fmt: skip
def test_a_config_is_known_by_what_it_is(config: object, dialect: str, type_: str) -> None:
    assert imported(config)[0] == dialect
    assert types(config)["blk.5.attn_q.weight"] == type_
    assert types(config)["blk.5.ffn_gate_inp.weight"] == "f32"
    other = "autoround" if dialect != "autoround" else "gptq"
    assert f"read it with --dialect {dialect}" in message(config, dialect=other)


@pytest.mark.parametrize("method", ["exl3", "aqlm", "vptq", "quark", "bitnet", "higgs"])
def test_methods_that_are_not_read_are_refused_by_name(method: str) -> None:
    told = message(quantized(method, bits=4, group_size=128))
    assert f"does not read the quant_method {method}" in told
    assert "it reads autoround, awq, bitsandbytes" in told


def test_a_model_without_quantization() -> None:
    assert "states no quantization" in message({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 8})
    assert "no dialect that ggplan knows" in message({"x": 1})
    with pytest.raises(RecipeError, match="reads the configs of GPTQ, and writes none"):
        export_recipe(parse_recipe("@default q8_0"), inventory(DENSE), "gptq")


KEYS = {
    "gptq": {"bits": 4, "group_size": 128},
    "awq": {"bits": 4, "group_size": 128},
    "bitsandbytes": {"load_in_4bit": True},
    "auto-round": {"bits": 4, "group_size": 128, "sym": True},
    "compressed-tensors": {"config_groups": GROUPS},
    "torchao": {"quant_type": {"default": INT8}},
    "modelopt": {"quant_algo": "FP8"},
    "fp8": {"weight_block_size": [128, 128]},
    "mxfp4": {},
    "hqq": {"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
    "quanto": {"weights": "int8"},
    "eetq": {"weights": "int8"},
}


@pytest.mark.parametrize("method", KEYS)
def test_no_key_is_dropped_without_a_word(method: str) -> None:
    config = quantized(method, **KEYS[method], zzz_new={"deep": [1, 2]}, yyy=False)
    notes = imported(config)[1]
    assert 'zzz_new = {"deep": [1, 2]}' in notes
    assert "yyy = false" in notes


def test_names_that_are_not_converted() -> None:
    left = ["lm_head", "model.layers.1.mlp", "self_attn.q_proj", "model.layers.[2-3].self_attn"]
    found = types(quantized("fp8", modules_to_not_convert=left))
    assert found["blk.1.ffn_up_exps.weight"] == "bf16"
    assert found["blk.10.ffn_up_exps.weight"] == "q8_0"
    assert found["blk.7.attn_q.weight"] == "bf16"
    assert found["blk.2.attn_k.weight"] == "bf16"
    assert found["blk.4.attn_k.weight"] == "q8_0"
    wild = types(quantized("modelopt", quant_algo="FP8", ignore=["model.layers.1.*", "*.self_attn.k_proj"]))
    assert wild["blk.1.attn_q.weight"] == wild["blk.5.attn_k.weight"] == "bf16"
    assert wild["blk.10.attn_q.weight"] == "q8_0"
    layers = {"model.layers.0.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16}}
    mixed = types(quantized("modelopt", quant_algo="MIXED_PRECISION", quantized_layers=layers))
    assert mixed["blk.0.ffn_up_exps.weight"] == "nvfp4"
    assert mixed["blk.1.ffn_up_exps.weight"] == "bf16"


def test_mlx_by_module() -> None:
    text = (CASES / "mlx-config-by-module.json").read_text()
    dialect, notes = imported(text)
    assert dialect == "mlx"
    assert "`model.layers.0.mlp.gate` (q8_0) matches no module" in notes  # the router stays a float
    found = types(text)
    assert found["output.weight"] == "q6_K"
    assert found["blk.1.attn_v.weight"] == "q6_K"
    assert found["blk.2.attn_v.weight"] == found["token_embd.weight"] == "q4_K"
    said = {"bits": 4, "group_size": 32, "mode": "mxfp4", "model.layers.0.mlp.switch_mlp.down_proj": False,
            "language_model.model.layers.1.self_attn.q_proj": {"bits": 8, "group_size": 64, "mode": "affine"},
            "model.embed_tokens": True}  # fmt: skip
    found = types({"quantization": said, "quantization_config": said})
    assert found["blk.0.ffn_down_exps.weight"] == "bf16"
    assert found["blk.1.ffn_down_exps.weight"] == "mxfp4"
    assert found["blk.1.attn_q.weight"] == "q8_0"
    assert found["token_embd.weight"] == "mxfp4"
    fewer = imported({"quantization": said, "quantization_config": {"bits": 4}})[1]
    assert "quantization_config" not in fewer
    other = imported({"quantization": said, "quantization_config": {"bits": 8, "foo": [1]}})[1]
    assert "quantization_config.bits = 8 (quantization.bits = 4 is read)" in other
    assert "quantization_config.foo = [1]" in other


def test_what_mlx_does_not_know_is_noted_whatever_its_kind() -> None:
    said = {
        "group_size": 64,
        "bits": 5,
        "bar": 9,
        "kind": "x",
        "layers": [1],
        "model.layers.0.zzz": {"bits": 4},
    }
    notes = imported({"quantization": said})[1]
    assert "bar = 9" in notes
    assert 'kind = "x"' in notes
    assert "layers" in notes.replace("model.layers", "")
    assert "`model.layers.0.zzz` (q4_K) matches no module" in notes


def test_one_module_of_mlx_under_two_names() -> None:
    name = "model.layers.3.self_attn.q_proj"
    said = {"group_size": 64, "bits": 4, f"language_model.{name}": {"bits": 8}, name: False}
    notes = imported({"quantization": said})[1]
    assert f"`language_model.{name}` never decides: `{name}` is the same module" in notes
    assert "matches no module" not in notes


@pytest.mark.parametrize(("said", "type_"), [
    ({"group_size": 64, "bits": 8}, "q8_0"),  # affine: nothing is taken from the general settings
    ({"bits": 4}, "q4_K"),
    ({"group_size": 32}, "q4_K"),
    ({"mode": "mxfp8"}, "q8_0"),
    ({"mode": "nvfp4"}, "nvfp4"),
    ({"mode": "mxfp4"}, "mxfp4"),
])  # fmt: skip
@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
def test_a_module_of_mlx_takes_nothing_from_the_general_mode(said: object, type_: str, mode: str) -> None:
    general = {"bits": 4 if mode == "mxfp4" else 8, "group_size": 32, "mode": mode}
    config = {"quantization": {**general, "model.layers.0.self_attn.q_proj": said}}
    found = types(config, DENSE)
    assert found["blk.0.attn_q.weight"] == type_
    assert found["blk.1.attn_q.weight"] == ("mxfp4" if mode == "mxfp4" else "q8_0")


def test_bits_that_a_mode_of_mlx_does_not_have() -> None:
    said = {"bits": 4, "group_size": 64, "model.layers.0.self_attn.q_proj": {"mode": "mxfp4", "bits": 8}}
    assert "mode mxfp4 has 4 bits in groups of 32 whatever" in imported({"quantization": said}, DENSE)[1]


def test_dynamic_of_gptq_only_refines() -> None:
    dynamic = {"+:.*": {"bits": 8}, "lm_head": {"bits": 8}}
    config = quantized("gptq", bits=4, group_size=32, sym=True, dynamic=dynamic,
                       modules_in_block_to_quantize=[["self_attn.q_proj"]])  # fmt: skip
    found = types(config, DENSE)
    assert found["blk.0.attn_q.weight"] == "q8_0"
    left = ("token_embd", "output", "blk.0.attn_k", "blk.0.ffn_up", "blk.9.ffn_down")
    assert {found[f"{name}.weight"] for name in left} == {"bf16"}
    assert "`+:.*` changes nothing for" in imported(config, DENSE)[1]
    config["quantization_config"] |= {"lm_head": True}
    assert types(config, DENSE)["output.weight"] == "q8_0"
    assert types(config, DENSE)["token_embd.weight"] == "bf16"


@pytest.mark.parametrize(("method", "key", "type_"), [
    ("bitsandbytes", "llm_int8_skip_modules", "iq4_nl"),
    ("fp8", "modules_to_not_convert", "q8_0"),
    ("fbgemm_fp8", "modules_to_not_convert", "q8_0"),
    ("eetq", "modules_to_not_convert", "q8_0"),
    ("quanto", "modules_to_not_convert", "q8_0"),
    ("hqq", "skip_modules", "q4_K"),
    ("torchao", "modules_to_not_convert", "q8_0"),
])  # fmt: skip
def test_a_list_that_does_not_name_the_output(method: str, key: str, type_: str) -> None:
    """transformers leaves the output out by itself only where there is no list."""
    own = {} if method == "fbgemm_fp8" else KEYS[method]
    for left, output in ((["self_attn.k_proj"], type_), ([], type_), (None, "bf16"), (["lm_head"], "bf16")):
        config = quantized(method, **own, **{key: left})
        assert types(config, DENSE)["output.weight"] == output
        assert types(config, DENSE)["token_embd.weight"] == "bf16"
        assert ("does not name lm_head" in imported(config, DENSE)[1]) == (output != "bf16")
    # AWQ's own skips are always added.
    awq = quantized("awq", bits=4, group_size=128, modules_to_not_convert=["self_attn.k_proj"])
    assert types(awq, DENSE)["output.weight"] == "bf16"


def test_blocks_of_fp8() -> None:
    notes = imported(quantized("fp8", weight_block_size=[128, 64]))[1]
    assert "a scale for each 128 rows by 64 columns" in notes
    assert "one scale a row" not in notes
    assert "one scale a row" in imported(quantized("fbgemm_fp8"))[1]
    assert "weight_block_size is two whole numbers" in message(quantized("fp8", weight_block_size=128))


def test_mxfp4_of_a_model_without_experts() -> None:
    assert "Qwen3-8B has no experts" in imported(quantized("mxfp4"), DENSE)[1]
    assert "has no experts" not in imported(quantized("mxfp4"))[1]
    assert "has no experts" not in imported(quantized("mxfp4"), "")[1]


@pytest.mark.parametrize("bits", [10**30, 0, -4, 65])
def test_bits_that_are_none(bits: int) -> None:
    assert "bits is 1 to 8" in message(quantized("gptq", bits=bits, group_size=128))


def test_a_key_that_occurs_twice() -> None:
    text = '{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "bits": 8}}'
    assert "`bits` occurs twice in one object" in message(text)


def test_blocks_of_autoround_and_another_model() -> None:
    config = quantized(
        "auto-round", bits=4, group_size=32, block_name_to_quantize="model.layers.0,model.layers.1"
    )
    assert types(config)["blk.1.attn_q.weight"] == "q4_0"
    assert types(config)["blk.10.attn_q.weight"] == "bf16"
    assert "is for Qwen3MoeForCausalLM (qwen3moe), Qwen3-8B is qwen3" in imported(config, DENSE)[1]


def test_experts_of_gpt_oss() -> None:
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config = {"architectures": ["GptOssForCausalLM"], **quantized("mxfp4", modules_to_not_convert=left)}
    config["architectures"] = ["GptOssForCausalLM"]
    found = types(config, "gpt-oss-20b")
    assert found["blk.0.ffn_up_exps.weight"] == "mxfp4"
    assert found["blk.0.attn_q.weight"] == "bf16"
    assert parse_recipe(import_recipe(json.dumps(config), "x").text).architecture == "gpt-oss"


def test_scales_that_bitsandbytes_quantizes_twice_are_noted() -> None:
    double = quantized("bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=True)
    assert "bnb_4bit_use_double_quant: scales of 8 bits there" in imported(double)[1]
    once = quantized("bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=False)
    assert "double_quant" not in imported(once)[1]


def test_a_config_of_gpt_oss_for_another_model_is_noted() -> None:
    config = quantized("mxfp4") | {"architectures": ["GptOssForCausalLM"]}
    notes = import_recipe(json.dumps(config), "config.json", model=inventory("Qwen3-8B")).notes
    assert "the config is for GptOssForCausalLM (gpt-oss), Qwen3-8B is qwen3" in notes


def experts_left(*names: str, model: str = MOE) -> tuple[set[str], str]:
    """The types that are left of MXFP4's experts where `names` are not converted, by layer; and the notes."""
    config = quantized("mxfp4", modules_to_not_convert=list(names))
    found = types(config, model)
    left = {name.split(".")[1] for name, type_ in found.items() if "_exps." in name and type_ != "mxfp4"}
    assert all(found[f"blk.{i}.attn_q.weight"] == "bf16" for i in range(9))
    return left, imported(config, model)[1]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("model.layers.3", {"3"}),
        ("model.layers.3.mlp", {"3"}),
        ("model.layers.3.", {"3", *(str(n) for n in range(30, 40))}),  # the dot stands for a digit, too
        (r"model\.layers\.3\.", {"3"}),
        ("layers.3.mlp.experts", {"3"}),  # the end of the name
        ("model.layers.(3|7).mlp.experts", {"3", "7"}),
        ("model.layers.3.mlp.experts.down_proj", set()),  # asked for the experts of a layer together
        ("model.layers.3.mlp.exp", set()),
        ("self_attn", set()),
    ],
)
def test_mxfp4_leaves_the_experts_that_transformers_leaves(name: str, left: set[str]) -> None:
    """The values are those of transformers 5.24, `should_convert_module('model.layers.N.mlp.experts')`."""
    found, notes = experts_left(name, "lm_head")
    assert found == left
    assert ("matches no module" in notes) == (name.endswith((".exp", "down_proj", "self_attn")))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("model.layers.3.", {3, *range(30, 40)}),
        ("model.layers.3..*|lm_head", {3, *range(30, 40)}),
        (r"model.layers.3\.|model.layers.4", {3, 4}),
        ("model.layers.1", {1}),
        ("q_proj", set(range(48))),
    ],
)
def test_names_end_at_a_boundary_as_in_transformers(name: str, left: set[int]) -> None:
    found = types(quantized("fp8", modules_to_not_convert=[name]))
    assert {i for i in range(48) if found[f"blk.{i}.attn_q.weight"] != "q8_0"} == left


def test_expressions_that_re2_has_not_are_refused_by_name() -> None:
    for method in ("fp8", "mxfp4", "torchao", "hqq", "bitsandbytes"):
        told = message(quantized(method, **KEYS.get(method, {}),
                                 modules_to_not_convert=["model.layers.0.mlp.(?!up)gate.*"]))  # fmt: skip
        assert "GP004" in told
        assert "(?!up)" in told
    # What is no expression of Python's either is the end of a name.
    odd = quantized("fp8", modules_to_not_convert=["*.q_proj"])
    assert "`*.q_proj` is to stay as it is, and matches no module" in imported(odd)[1]


@pytest.mark.parametrize("name", ["talker.gate_proj9", "model.layers.99.mlp.gate_up", "foo.outputs"])
def test_a_part_of_a_word_does_not_hide_what_is_unmet(name: str) -> None:
    config = quantized("fp8", modules_to_not_convert=[name, "model.visual", r"re:.*lm_head", "mlp.gate"])
    assert f"`{name}` is to stay as it is" in imported(config)[1]


@pytest.mark.parametrize(("method", "values", "told"), [
    ("bitsandbytes", {"load_in_4bit": "false"}, "load_in_4bit is true or false"),
    ("bitsandbytes", {"load_in_8bit": 1}, "load_in_8bit is true or false"),
    ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf3"}, "is nf4 or fp4"),
    ("gptq", {"bits": 4, "lm_head": "true"}, "lm_head is true or false"),
    ("gptq", {"bits": 4, "sym": "false"}, "sym is true or false"),
    ("gptq", {"bits": 4, "group_size": -5}, "group_size is a whole number, -1 for"),
    ("gptq", {"bits": 4, "dynamic": {"+:.*q_proj": False}}, "not false | write `-:` before"),
    ("gptq", {"bits": 4, "dynamic": {".*q_proj": 8}}, "is an object with bits, ..., not 8"),
    ("gptq", {"bits": 4, "dynamic": {".*q_proj": {"bits": 9}}}, "dynamic..*q_proj.bits is 1 to 8"),
    ("awq", {"bits": 100}, "bits is 1 to 8"),
    ("awq", {"bits": 4, "zero_point": "no"}, "zero_point is true or false"),
    ("awq", {"w_bit": 4, "q_group_size": -2}, "q_group_size is a whole number"),
    ("awq", {"bits": 4, "lm_head": 0}, "lm_head is true or false"),
    ("hqq", {"quant_config": {"weight_quant_params": {"nbits": 12}}}, "nbits is 1 to 8"),
    ("modelopt", {"quant_algo": "FP8FOO"}, "quant_algo FP8FOO is unknown"),
    ("modelopt", {"quant_algo": "NVFP4X"}, "quant_algo NVFP4X is unknown"),
    ("modelopt", {"quant_algo": "W4A8_AWQ", "group_size": "128"}, "group_size is a whole number"),
    ("modelopt", {"quant_algo": "W4A16_AWQ", "has_zero_point": "yes"}, "has_zero_point is true or false"),
    ("auto-round", {"bits": 4, "sym": "false"}, "sym is true or false"),
    ("auto-round", {"bits": 4, "quant_lm_head": "true"}, "quant_lm_head is true or false"),
    ("auto-round", {"bits": 4, "group_size": -7}, "group_size"),
    ("auto-round", {"bits": 12}, "bits"),
    ("auto-round", {"scheme": "FP8FOO"}, "FP8FOO"),
    ("compressed-tensors", {"config_groups": {"g": {"weights": {"num_bits": 4, "symmetric": "no"}}}},
     "symmetric is true or false"),
    ("compressed-tensors", {"config_groups": {"g": {"weights": {"num_bits": 40}}}}, "num_bits"),
    ("compressed-tensors", {"config_groups": {"g": {"weights": {"num_bits": 4, "group_size": -7}}}},
     "group_size"),
    ("compressed-tensors", {"config_groups": {"g": {"weights": {"num_bits": 4, "type": "flaot"}}}}, "type"),
])  # fmt: skip
def test_values_of_the_wrong_kind_are_refused_by_name(
    method: str, values: dict[str, object], told: str
) -> None:
    assert told in message(quantized(method, **values))


@pytest.mark.parametrize(
    ("name", "type_"),
    [("FP8_PB_WO", "q8_0"), ("NVFP4_AWQ", "nvfp4"), ("W4A16_AWQ", "q4_0"), ("W4A8_NVFP4_FP8", "nvfp4"),
     ("W8A8_SQ_PER_CHANNEL", "q8_0"), ("W4A8_MXFP4_FP8", "mxfp4"), ("fp8", "q8_0"), ("int4_awq", "q4_0")],
)  # fmt: skip
def test_algorithms_of_modelopt(name: str, type_: str) -> None:
    assert types(quantized("modelopt", quant_algo=name))["blk.5.attn_q.weight"] == type_


def test_an_exception_that_never_decides_is_told() -> None:
    dynamic = {"+:.*self_attn.*": {"bits": 8}, "+:.*q_proj": {"bits": 3}, "-:.*k_proj": {}}
    _, notes = imported(quantized("gptq", bits=4, group_size=32, dynamic=dynamic))
    assert "`+:.*q_proj` never decides: `+:.*self_attn.*` stands before it" in notes
    assert "`-:.*k_proj` never decides: `+:.*self_attn.*` stands before it" in notes
    layers = {"model.layers.3.self_attn.q_proj": {"quant_algo": "FP8"}}
    mixed = quantized("modelopt", quant_algo="MIXED_PRECISION", quantized_layers=layers,
                      exclude_modules=["model.layers.3*"])  # fmt: skip
    assert "`model.layers.3.self_attn.q_proj` never decides" in imported(mixed)[1]
    later = {".*q_proj": {"bits": 3}, ".*self_attn.*": {"bits": 8}}
    rounded = quantized("auto-round", bits=4, group_size=32, sym=True, extra_config=later)
    assert "`.*q_proj` never decides: `.*self_attn.*` stands behind it" in imported(rounded)[1]
    # Nothing is lost where both say the same.
    same = quantized("fp8", modules_to_not_convert=["model.layers.3", "model.layers.3.mlp"])
    assert "never decides" not in imported(same)[1]


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "auto-round"])
def test_embeddings_of_the_prediction_layers_stay(method: str) -> None:
    found = types(quantized(method, **KEYS[method]), "GLM-4.5-Air")
    assert found["blk.46.nextn.embed_tokens.weight"] == "bf16"
    assert found["blk.46.attn_q.weight"] != "bf16"


@pytest.mark.parametrize("name", ["(" * 5_000, "a.*" * 1_000 + "b", "gate|" * 60_000, "." * 100_000,
                                  "x" * 300_000, "\\." * 50_000])  # fmt: skip
def test_long_names_take_the_time_of_their_length(name: str) -> None:
    start = time.process_time()
    for method in ("fp8", "awq", "gptq", "compressed-tensors"):
        key = {"compressed-tensors": "ignore"}.get(method, "modules_to_not_convert")
        values = KEYS[method] | {key: [name]}
        with contextlib.suppress(RecipeError):
            imported(quantized(method, **values))
    assert time.process_time() - start < 20
