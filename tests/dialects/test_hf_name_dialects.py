"""Configs on Hugging Face names and on layers: compressed-tensors, AutoRound, torchao and others."""

import ast
import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.dialects import DIALECTS, detect, export_recipe, import_recipe
from ggplan.dialects.hf_names import modules_of
from ggplan.dialects.source import Source
from ggplan.errors import Error, RecipeError
from ggplan.inventories import inventories, inventory
from ggplan.planning import Chosen, assign, fit
from ggplan.rules import parse_recipe
from ggplan.stock import find_mix

# The smallest of each family (the others differ in the numbers of their blocks), and two with other dense
# blocks or numbers of experts.
FAMILIES = sorted(
    {
        inventory(name).architecture: name
        for name in sorted(inventories(), key=lambda name: -len(inventory(name).tensors))
    }.values()
)
MAPPED = [*FAMILIES, "GLM-4.5", "Kimi-K2"]
SMALL = ("GLM-4.5-Air", "Llama-3.1-8B", "Qwen3-30B-A3B")
HF = ("compressed-tensors", "autoround", "torchao")

LAYERED = parse_recipe(
    r"""
^blk\.{first 2, 5, 7..9, last 1}\.ffn_.*$ = q8_0
^blk\.{3..40}\.(attn_(k|v)|ffn_down.*)\.weight$ = q6_K | q8_0
attn_q = q5_K | q5_0
^output\.weight$ = bf16
attn_[kv]_b = q8_0
@default q4_K | q5_0
""",
    "layered.recipe",
)
BIG = parse_recipe(
    "@role experts = q4_K | q8_0\n@role attention, dense, shared = q8_0\n@default bf16", "big.recipe"
)


def types(recipe: Chosen, name: str) -> dict[str, str]:
    model = inventory(name)
    return {f.tensor.name: f.type.name for f in fit(model, assign(model, recipe), "llama.cpp")}


@cache
def wanted_types(is_big: bool, name: str) -> dict[str, str]:
    return types(BIG if is_big else LAYERED, name)


def imported(text: str, name: str, **options: str) -> dict[str, str]:
    return types(parse_recipe(import_recipe(text, "theirs", model=inventory(name), **options).text), name)


def experts_and_modules(name: str) -> Iterator[tuple[str, str]]:
    """Some Hugging Face names of a model, each with a GGUF name."""
    for module in modules_of(inventory(name)):
        for n, full in enumerate(module.names()):
            if n in (0, 7, module.n_experts - 1):
                yield full, module.tensors[0].name


def claims(text: str, dialect: str) -> list[tuple[str, object]]:
    """The regular expressions of an export, and what they say, read with the tool's own libraries."""
    if dialect == "autoround":
        return list(json.loads(text)["layer_config"].items())
    if dialect == "torchao":
        call = ast.parse(text).body[-1].value
        pairs = call.args[0].args[0].elts
        return [(p.elts[0].value.removeprefix("re:"), ast.unparse(p.elts[1])) for p in pairs]
    modifier = yaml.safe_load(text)["quant_stage"]["quant_modifiers"]["QuantizationModifier"]
    found = [(t.removeprefix("re:"), group["weights"]["num_bits"])
             for group in modifier["config_groups"].values() for t in group["targets"]]  # fmt: skip
    return found + [(t.removeprefix("re:"), None) for t in modifier["ignore"]]


@pytest.mark.parametrize("dialect", HF)
@pytest.mark.parametrize("name", MAPPED)
def test_round_trips_keep_the_meaning(name: str, dialect: str) -> None:
    for recipe in (LAYERED, BIG) if name in ("GLM-4.5-Air", "Llama-3.1-8B") else (LAYERED,):
        exported = export_recipe(recipe, inventory(name), dialect)
        wanted = wanted_types(recipe is BIG, name)
        assert detect(Source(exported.text, "x")) == dialect
        if name in SMALL:  # `export_recipe` reads every list back; this shows that it does
            back = import_recipe(exported.text, "x", model=inventory(name))
            assert back.dialect == dialect
            assert types(parse_recipe(back.text), name) == wanted
        # every module is met by one expression alone, however it is searched
        found = claims(exported.text, dialect)
        for module, tensor in experts_and_modules(name):
            hits = [said for pattern, said in found if re.search(pattern, module)]
            assert len(hits) == 1, (module, hits)
            if dialect == "torchao":
                wrote = "None" if wanted[tensor] == "bf16" else wanted[tensor]
                unfit = tensor.endswith("attn_k_b.weight")
                assert hits[0] == wrote or unfit


def test_architectures_without_a_name_map_say_so() -> None:
    model = replace(inventory("Qwen3-8B"), architecture="bloom")
    for dialect in HF:
        with pytest.raises(RecipeError, match="no Hugging Face names for the architecture bloom"):
            export_recipe(BIG, model, dialect)


def test_a_type_without_a_scheme_is_an_error() -> None:
    model = inventory("Qwen3-8B")
    for dialect in HF:
        with pytest.raises(RecipeError, match=r"token_embd\.weight: .* has nothing like iq4_xs"):
            export_recipe(parse_recipe("@default iq4_xs"), model, dialect)
        with pytest.raises(RecipeError, match="has nothing like f16"):
            export_recipe(parse_recipe("@default f16"), model, dialect)
        with pytest.raises(RecipeError, match="leaves it alone"):
            export_recipe(parse_recipe("ffn_gate_inp = q8_0!"), inventory("Qwen3-30B-A3B"), dialect)


AWQ = r"""
quant_stage:
  quant_modifiers:
    AWQModifier:
      ignore: ["lm_head", "re:.*mlp.gate$", "re:.*layers\\.0\\."]
      config_groups:
        group_0:
          targets: ["Linear"]
          weights: {num_bits: 4, type: int, symmetric: false, strategy: group, group_size: 128}
        group_1:
          targets: ["re:.*down_proj$", "model.layers.5.self_attn.q_proj"]
          weights: {num_bits: 8, type: int, symmetric: true, strategy: channel}
        group_2:
          targets: ["model.layers.6.mlp.down_proj"]
          weights: {num_bits: 6, type: int, symmetric: true, strategy: group, group_size: 16}
"""


def test_llm_compressor_recipes() -> None:
    found = imported(AWQ, "Qwen3-8B")
    assert found["token_embd.weight"] == "bf16"  # an embedding is no Linear
    assert found["output.weight"] == "bf16"
    assert found["blk.0.ffn_down.weight"] == "bf16"  # ignore beats all
    assert found["blk.1.attn_q.weight"] == "q4_K"
    assert found["blk.1.ffn_down.weight"] == "q8_0"  # an expression beats a class
    assert found["blk.5.attn_q.weight"] == "q8_0"
    assert found["blk.6.ffn_down.weight"] == "q6_K"  # a name beats an expression
    assert found["blk.10.attn_q.weight"] == "q4_K"  # the dots behind `layers` are dots
    notes = import_recipe(AWQ, "awq.yaml", model=inventory("Qwen3-8B")).notes
    assert any("groups of 128" in note and "q4_K" in note for note in notes)


def test_expressions_of_compressed_tensors_match_from_the_left() -> None:
    text = "QuantizationModifier:\n  scheme: W8A16\n  targets: ['re:self_attn', 're:model.*mlp']\n"
    found = imported(text, "Qwen3-8B", dialect="compressed-tensors")
    assert found["blk.0.attn_q.weight"] == "bf16"
    assert found["blk.0.ffn_up.weight"] == "q8_0"
    notes = import_recipe(text, "a.yaml", model=inventory("Qwen3-8B")).notes
    assert any("`re:self_attn` matches no module" in note for note in notes)


def groups_of(*groups: tuple[list[str], int], **more: object) -> str:
    """A quantization_config of compressed-tensors with these targets and bits."""
    stated = {
        f"group_{n}": {"targets": targets, "weights": {"num_bits": bits, "group_size": 32}}
        for n, (targets, bits) in enumerate(groups)
    }
    return json.dumps({"quant_method": "compressed-tensors", "config_groups": stated, **more})


@pytest.mark.parametrize(
    ("groups", "note"),
    [
        (
            [(["re:.*self_attn"], 4), (["re:.*q_proj"], 8)],
            "36 modules are matched by `re:.*self_attn` and `re:.*q_proj`: the former decides;"
            " `re:.*q_proj` decides none",
        ),
        (
            [(["re:.*q_proj"], 8), (["re:.*self_attn"], 4)],
            "36 modules are matched by `re:.*q_proj` and `re:.*self_attn`: the former decides",
        ),
        (
            [(["Linear"], 4), (["re:.*proj"], 8)],
            "252 modules are matched by `re:.*proj` and `Linear`: the former decides; `Linear` decides none",
        ),
        (
            [(["model.layers.0.mlp.up_proj"], 8), (["model.layers.0.mlp.up_proj"], 4)],
            "1 module is matched by `model.layers.0.mlp.up_proj` and `model.layers.0.mlp.up_proj`:"
            " the former decides; `model.layers.0.mlp.up_proj` decides none",
        ),
        ([(["Linear"], 4), (["re:.*q_proj"], 8)], ""),  # an exception
        ([(["re:.*self_attn"], 4), (["re:.*q_proj"], 4)], ""),  # the same
    ],
)
def test_groups_that_hide_each_other_are_told(groups: list[tuple[list[str], int]], note: str) -> None:
    text = groups_of(*groups, ignore=["lm_head"])
    found = import_recipe(text, "a.json", model=inventory("Qwen3-8B"), dialect="compressed-tensors")
    assert [n for n in found.notes if "decides" in n] == ([note] if note else [])


def test_modifiers_that_replace_each_other_are_told() -> None:
    text = "A:\n  scheme: W4A16\n  targets: Linear\nB:\n  scheme: W8A16\n  targets: ['re:.*q_proj']\n"
    found = import_recipe(text, "a.yaml", model=inventory("Qwen3-8B"), dialect="compressed-tensors")
    assert "36 modules are matched by several modifiers; the last decides" in found.notes


def test_presets_and_checkpoints_configs() -> None:
    text = "GPTQModifier:\n  targets: Linear\n  scheme: W4A16\n  ignore: [lm_head]\n"
    found = imported(text, "Qwen3-30B-A3B")
    assert found["blk.3.ffn_down_exps.weight"] == "q4_0"
    assert found["blk.3.ffn_gate_inp.weight"] == "f32"
    fp8 = {"quantization_config": {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 8, "type": "float", "strategy": "block"}}}, "ignore": ["lm_head"]}}  # fmt: skip
    assert imported(json.dumps(fp8), "Qwen3-8B")["blk.3.attn_v.weight"] == "q8_0"


def message(text: str, name: str = "Qwen3-30B-A3B", **options: str) -> str:
    with pytest.raises(RecipeError) as caught:
        import_recipe(text, "theirs.yaml", model=inventory(name) if name else None, **options)
    return caught.value.message


def test_what_no_recipe_can_say() -> None:
    single = "A:\n  scheme: W8A8\n  targets: ['re:.*experts\\.3\\.down_proj']\n"
    assert "the experts of a layer are one tensor" in message(single)
    look = "A:\n  scheme: W8A8\n  targets:\n    - 're:(?!.*gate).*_proj'\n"
    assert "look-around is not portable" in message(look)
    assert "theirs.yaml:4:11" in message(look)
    doubled = 'A:\n  scheme: W8A8\n  targets:\n    - "re:(?!.*gate\\\\.).*_proj"\n'
    assert "theirs.yaml:4:11" in message(doubled)
    assert "only a model turns into GGUF's" in message(look, "")
    assert "the scheme `W4A16_SPQR` is unknown" in message("A:\n  scheme: W4A16_SPQR\n  targets: [Linear]\n")
    assert "aliases are not read" in message(
        "a: &a [1]\nb: *a\nscheme: W4A16\n", dialect="compressed-tensors"
    )
    assert "not YAML" in message("scheme: [\n", dialect="compressed-tensors")


AUTOROUND = """
layer_config = {
    "lm_head": {"bits": 6, "group_size": 16, "data_type": "int_sym_dq"},
    "down_proj": {"bits": 8, "group_size": 32, "sym": True},
    "model.layers.[0-1]\\\\..*q_proj": {"bits": 16},
    "k_proj": "gguf:q5_k",
}
ar = AutoRound(model, tokenizer, bits=4, group_size=32, sym=False, layer_config=layer_config)
"""


def test_autoround_configs() -> None:
    found = imported(AUTOROUND, "Qwen3-8B")
    assert found["output.weight"] == "q6_K"
    assert found["token_embd.weight"] == "bf16"
    assert found["blk.3.ffn_down.weight"] == "q8_0"
    assert found["blk.1.attn_q.weight"] == "bf16"
    assert found["blk.2.attn_q.weight"] == "q4_1"
    assert found["blk.2.attn_k.weight"] == "q5_K"
    saved = {"bits": 4, "group_size": 128, "sym": True, "data_type": "int", "quant_method": "auto-round",
             "extra_config": {"model.layers.1.mlp.up_proj": {"bits": 16, "data_type": "float"}}}  # fmt: skip
    found = imported(json.dumps(saved), "Qwen3-8B")
    assert found["blk.1.ffn_up.weight"] == "bf16"
    assert found["blk.2.ffn_up.weight"] == "q4_0"
    assert found["output.weight"] == "bf16"


TORCHAO = r"""
from torchao.quantization import FqnToConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig
linear = Int4WeightOnlyConfig(group_size=32)
config = FqnToConfig({
    "re:model\\.layers\\.\\d+\\.mlp\\.down_proj": Int8WeightOnlyConfig(),
    "re:.*_proj": IntxWeightOnlyConfig(weight_dtype=torch.int5, granularity=PerGroup(32)),
    "model.layers.1.self_attn.q_proj": None,
    "model.layers.2.mlp.down_proj.weight": linear,
    "_default": linear,
})
print(__import__("os").system("touch /tmp/never"))
"""


def test_torchao_configs() -> None:
    found = imported(TORCHAO, "Qwen3-8B")
    assert found["blk.0.ffn_down.weight"] == "q8_0"
    assert found["blk.2.ffn_down.weight"] == "q4_K"
    assert found["blk.1.attn_q.weight"] == "bf16"
    assert found["blk.0.attn_q.weight"] == "q5_0"
    saved = {"quant_type": {"default": {"_type": "ModuleFqnToConfig", "_version": 1, "_data": {
        "module_fqn_to_config": {
            "_default": {"_type": "Int8DynamicActivationIntxWeightConfig", "_version": 2, "_data": {
                "weight_dtype": {"_type": "torch.dtype", "_data": "int4"},
                "weight_granularity": {"_type": "PerGroup", "_data": {"group_size": 32}},
                "weight_mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"}}},
            "lm_head": None}}}}}  # fmt: skip
    text = json.dumps(saved)
    assert import_recipe(text, "config.json", model=inventory("Qwen3-8B")).dialect == "torchao"
    found = imported(text, "Qwen3-8B")
    assert found["blk.0.attn_q.weight"] == "q4_0"
    assert found["output.weight"] == "bf16"


@pytest.mark.parametrize("name", [*FAMILIES, "GLM-4.5"])
def test_mlx_round_trips(name: str) -> None:
    for predicate in ("mixed_2_6", "mixed_4_6"):
        recipe = parse_recipe(import_recipe(predicate, predicate, model=inventory(name)).text)
        exported = export_recipe(recipe, inventory(name), "mlx")
        assert types(recipe, name) == imported(exported.text, name)
    with pytest.raises(RecipeError, match="no mixed predicate") as caught:
        export_recipe(parse_recipe("@default bf16"), inventory(name), "mlx")
    assert "the nearest is mixed_" in caught.value.hint


def test_mixed_4_6_as_mlx_lm_states_it() -> None:
    found = imported("mlx_lm.convert --hf-path Qwen/Qwen3-8B -q --quant-predicate mixed_4_6", "Qwen3-8B")
    n = 36
    for layer in range(n):
        more = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
        assert found[f"blk.{layer}.attn_v.weight"] == ("q6_K" if more else "q4_K")
        assert found[f"blk.{layer}.ffn_down.weight"] == ("q6_K" if more else "q4_K")
        assert found[f"blk.{layer}.ffn_up.weight"] == "q4_K"
    assert found["output.weight"] == found["token_embd.weight"] == "q6_K"
    assert "there are mixed_2_6" in _hint("mixed_9_9")


def _hint(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        import_recipe(text, "x", model=inventory("Qwen3-8B"))
    return caught.value.hint


def steampunque(n: int) -> str:
    cycle = ["Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q6_K"]
    pairs = ",".join(f'[{i} ,"{cycle[i % 5]}"]' for i in range(n))
    flags = "--token-embedding-type Q4_K --output-tensor-type Q6_K"
    return f"LAYER_TYPES='[\n   {pairs}\n   ]'\nFLAGS=\"{flags}\"\n"


@pytest.mark.parametrize("name", ["Qwen3-14B", "Llama-3.1-8B", "GLM-4.5-Air", "DeepSeek-V3", "gpt-oss-20b"])
def test_layer_types(name: str) -> None:
    model = inventory(name)
    n = 1 + max(int(t.name.split(".")[1]) for t in model.tensors if t.name.startswith("blk."))
    recipe = parse_recipe(import_recipe("# Card\n" + steampunque(n), "README.md", model=model).text)
    found = types(recipe, name)
    for layer, mix in ((0, "Q3_K_M"), (1, "Q3_K_L"), (3, "Q4_K_M")):
        alone = types(find_mix(mix), name)
        for tensor in found:
            if tensor.startswith(f"blk.{layer}."):
                assert found[tensor] == alone[tensor]
    assert found["token_embd.weight"] == ("q5_0" if name == "gpt-oss-20b" else "q4_K")  # rows of 2880
    exported = export_recipe(recipe, model, "layer-types")
    assert imported(exported.text, name) == found


def test_layer_types_in_the_wrong_place() -> None:
    assert "has a layer 35, which has no mix here" in message(steampunque(35), "Qwen3-8B")
    assert "none of llama-quantize's mixes" in message("LAYER_TYPES='[ [0,\"Q9_K\"] ]'\n", "Qwen3-8B")
    with pytest.raises(RecipeError, match="no mix of llama-quantize gives the types of layer 0"):
        export_recipe(LAYERED, inventory("Qwen3-8B"), "layer-types")


PIECES = (
    *"{}[]():,=\"'\n #*", "  ", "targets", "scheme", "ignore", "W4A16", "re:", ".*", "bits", "FqnToConfig(",
    "layer_config", "config_groups", "lm_head", "LAYER_TYPES='[", '[0,"Q4_K_M"]', "]'", "mixed_3_6", "\x00",
    "é", "&a", "*a", "8", "1e999", "None", "true",
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.sampled_from(["", *HF, "layer-types", "mlx"]),
)
def test_any_text_is_a_recipe_or_an_error(text: str, dialect: str) -> None:
    with contextlib.suppress(Error):
        imported(text, "Qwen3-8B", dialect=dialect)


@pytest.mark.parametrize("text", [
    "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"b{i}: &b{i} [*a,*a,*a,*a,*a,*a,*a]\n" for i in range(30)),
    "[" * 100_000,
    "{'a':" * 50_000,
    "(" * 5_000 + "FqnToConfig",
    "scheme: " + "- " * 50_000,
    "scheme:\n" + "".join(" " * i + "-\n" for i in range(600)),
    "x = [" * 90 + "FqnToConfig",
    "a=1\n" + "".join(f"a{i + 1}=[a{i},a{i}]\n" for i in range(60)) + "FqnToConfig(a60)",
    "LAYER_TYPES='[" + '[0,"Q4_K_M"],' * 20_000,
    "A:\n  scheme: W8A8\n  targets: ['re:" + "(.*)*" * 150 + "X']\n",
    "9" * 100_000,
    "A:\n  scheme: W8A8\n  targets:\n" + "    - 're:.*a.*b.*c.*d.*e.*f'\n" * 3_000,
])  # fmt: skip
def test_nothing_hangs(text: str) -> None:
    model = inventory("Kimi-K2")
    start = time.thread_time()
    for dialect in ("", *HF, "layer-types", "mlx"):
        with contextlib.suppress(Error):
            import_recipe(text, "x", dialect=dialect, model=model)
    assert time.thread_time() - start < 15


def test_the_commands_know_every_dialect() -> None:
    from ggplan.cli.rules_import import NAMES

    assert tuple(DIALECTS) == NAMES


def test_an_unknown_dialect_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no dialect llama_quantise") as caught:
        export_recipe(LAYERED, inventory("Qwen3-8B"), "llama_quantise")
    assert caught.value.hint == "the nearest is llama-quantize"
    with pytest.raises(RecipeError, match="no dialect auto-round"):
        import_recipe("{}", "theirs", dialect="auto-round")


@pytest.mark.parametrize("prefix", ["model.language_model.layers", "language_model.model.layers"])
@pytest.mark.parametrize("method", ["awq", "fp8"])
def test_names_in_a_model_that_also_sees(method: str, prefix: str) -> None:
    def recipe(layers: str) -> str:
        out = [f"{layers}.0.self_attn.q_proj", f"{layers}.1.mlp.gate", "lm_head"]
        config = {"quantization_config": {"quant_method": method, "modules_to_not_convert": out}}
        return import_recipe(json.dumps(config), "x", model=inventory("Qwen3-30B-A3B")).text

    text = recipe("model.layers")
    assert recipe(prefix).splitlines()[1:] == text.splitlines()[1:]
    assert types(parse_recipe(text, "x"), "Qwen3-30B-A3B")["blk.0.attn_q.weight"] == "bf16"
