"""The shipped recipes against the models they are for, and the examples of the documentation."""

import math
import re
from pathlib import Path

import pytest
from family_tensors import MODELS

from ggplan.ggml_types import F32, GgmlType
from ggplan.rules import Recipe, dead_rules, load_recipe, match, parse_recipe, shadowed_rules, shipped_recipes

FAMILIES = {
    "glm4moe/hq4_k": ("GLM-4.5-Air", "GLM-4.6"),
    "deepseek2/hq4_k": ("DeepSeek-V3.1",),
    "qwen3moe/hq4_k": ("Qwen3-235B-A22B", "Qwen3-30B-A3B"),
    "moe-offload": tuple(MODELS),
}
CASES = [(recipe, model) for recipe, models in FAMILIES.items() for model in models]
SMALL = re.compile(r"norm\.weight$|\.bias$|ffn_gate_inp")
DOCS = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def chosen(recipe: Recipe, model: str) -> dict[str, GgmlType]:
    """The type each tensor gets: first match, first type of the chain that fits."""
    tensors = MODELS[model]
    types = {}
    for name, hits in zip(tensors, match(recipe, list(tensors)), strict=True):
        choice = recipe.rules[hits[0]].choice if hits else recipe.default
        assert choice is not None, f"{name} has no rule"
        fitting = next(t for t in choice.types if t.fits(tensors[name][-1]))
        types[name] = F32 if not hits and SMALL.search(name) else fitting
    return types


def test_every_shipped_recipe_is_tested() -> None:
    assert set(FAMILIES) == set(shipped_recipes())


@pytest.mark.parametrize(("name", "model"), CASES)
def test_every_rule_works_and_every_tensor_is_covered(name: str, model: str) -> None:
    recipe = load_recipe(name)
    matches = match(recipe, list(MODELS[model]))
    assert dead_rules(recipe, matches) == ()
    assert shadowed_rules(recipe, matches, [hits[0] if hits else None for hits in matches]) == ()
    # Rules are disjoint: no tensor depends on their order.
    assert max(len(hits) for hits in matches) == 1
    chosen(recipe, model)


@pytest.mark.parametrize(("name", "model"), CASES)
def test_small_tensors_stay_in_f32_and_large_ones_do_not(name: str, model: str) -> None:
    for tensor, type_ in chosen(load_recipe(name), model).items():
        assert (type_ is F32) == bool(SMALL.search(tensor)), tensor


@pytest.mark.parametrize(
    ("name", "model", "tensor", "expected"),
    [
        ("glm4moe/hq4_k", "GLM-4.5-Air", "blk.7.ffn_down_exps.weight", "q8_0"),
        ("glm4moe/hq4_k", "GLM-4.6", "blk.7.ffn_down_exps.weight", "q6_K"),
        ("glm4moe/hq4_k", "GLM-4.5-Air", "blk.46.ffn_up_exps.weight", "q4_K"),
        ("glm4moe/hq4_k", "GLM-4.5-Air", "blk.46.attn_output.weight", "q8_0"),
        ("glm4moe/hq4_k", "GLM-4.5-Air", "blk.46.nextn.embed_tokens.weight", "bf16"),
        ("glm4moe/hq4_k", "GLM-4.5-Air", "blk.0.ffn_down.weight", "q8_0"),
        ("glm4moe/hq4_k", "GLM-4.5-Air", "blk.1.ffn_down_shexp.weight", "bf16"),
        ("deepseek2/hq4_k", "DeepSeek-V3.1", "blk.0.attn_k_b.weight", "q8_0"),
        ("deepseek2/hq4_k", "DeepSeek-V3.1", "blk.9.ffn_down_exps.weight", "q6_K"),
        ("deepseek2/hq4_k", "DeepSeek-V3.1", "output.weight", "bf16"),
        ("qwen3moe/hq4_k", "Qwen3-30B-A3B", "blk.9.ffn_down_exps.weight", "q6_K"),
        ("moe-offload", "GLM-4.5-Air", "blk.9.ffn_down_exps.weight", "q8_0"),
        ("moe-offload", "GLM-4.5-Air", "blk.9.ffn_down_shexp.weight", "q8_0"),
        ("moe-offload", "Qwen3-30B-A3B", "output.weight", "q8_0"),
    ],
)
def test_types_of_single_tensors(name: str, model: str, tensor: str, expected: str) -> None:
    assert chosen(load_recipe(name), model)[tensor].name == expected


def test_the_sizes_in_the_comments_are_true() -> None:
    checked = 0
    for name in shipped_recipes():
        recipe = load_recipe(name)
        for model, size, bpw in re.findall(
            r"^#   (\S+) +([\d.]+) GiB, ([\d.]+) bpw", recipe.text, re.MULTILINE
        ):
            types = chosen(recipe, model)
            n_bytes = sum(types[t].tensor_bytes(shape) for t, shape in MODELS[model].items())
            n_weights = sum(math.prod(shape) for shape in MODELS[model].values())
            assert (f"{n_bytes / 2**30:.2f}", f"{8 * n_bytes / n_weights:.3f}") == (size, bpw)
            checked += 1
    assert checked == 8


def test_the_models_have_as_many_tensors_as_the_published_files() -> None:
    assert len(MODELS["GLM-4.5-Air"]) == 803
    assert len(MODELS["DeepSeek-V3.1"]) == 1086


def test_the_recipes_in_the_documentation_parse() -> None:
    blocks = re.findall(r"```recipe\n(.*?)```", DOCS, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        recipe = parse_recipe(block)
        assert recipe.rules or recipe.tests


def test_the_program_in_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    last = program.strip().splitlines()[-1]
    scope: dict[str, object] = {}
    exec(program, scope)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line in program
    call, _, result = last.partition("#")
    assert repr(eval(call, scope)) == result.partition(":")[0].strip()
