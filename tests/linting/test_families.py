"""A recipe against a model of another family, and what a model is by the names of its tensors alone."""

from dataclasses import replace

import pytest

from ggplan.inventories import architecture_of, inventories, inventory
from ggplan.linting.check import Report, check_text
from ggplan.model import Model
from ggplan.planning import make_plan
from ggplan.rules import Diagnostic, InvalidRecipeError, load_recipe, parse_recipe

GLM = r"""norm\.weight$ = f32
^token_embd\.weight$ = q8_0
attn_(q|k|v|output)\.weight$ = q8_0
ffn_gate_inp\.weight$ = f32
ffn_(gate|up)_exps\.weight$ = q4_K
ffn_down_exps\.weight$ = q6_K | q8_0
ffn_(gate|up|down)_shexp\.weight$ = q8_0
nextn\.(eh_proj|embed_tokens|shared_head_head)\.weight$ = q8_0
"""


def as_map(name: str) -> Model:
    """The model as a tensor map has it: names and shapes alone."""
    return replace(inventory(name), architecture="", metadata={})


def check(text: str, model: Model) -> Report:
    return check_text(text, "x.recipe", None, model)


def found(report: Report, code: str) -> list[Diagnostic]:
    return [d for d in report.diagnostics if d.code == code]


@pytest.mark.parametrize("name", inventories())
def test_a_model_is_recognised_by_its_tensors(name: str) -> None:
    model = inventory(name)
    names = [t.name for t in model.tensors]
    assert architecture_of(names) == model.architecture
    assert architecture_of([n for n in names if n != "output.weight"]) == model.architecture  # tied
    assert architecture_of([*names, "blk.0.attn_q.lora_a"]) == ""
    assert architecture_of([]) == ""


def test_a_misspelt_architecture_is_told_of_a_map_too() -> None:
    text = "@arch glm4mo\n@default q8_0\n"
    (told,) = check(text, as_map("GLM-4.5-Air")).diagnostics
    assert (told.code, told.line) == ("GP209", 1)
    assert told.message == "the recipe is for glm4mo, the model has the tensors of glm4moe"
    assert told.fix is not None
    assert told.fix.safe
    other = replace(as_map("GLM-4.5-Air"), tensors=as_map("GLM-4.5-Air").tensors[:5])  # which nothing has
    (told,) = check(text, other).diagnostics
    assert told.message == "no architecture of llama.cpp is called glm4mo"
    assert "glm4moe" in told.help


def test_another_shipped_architecture_is_told_and_one_that_none_ships_of_is_not() -> None:
    (told,) = check("@arch llama\n@default q8_0\n", as_map("GLM-4.5-Air")).diagnostics
    assert told.fix is not None
    assert not told.fix.safe
    # granite has the tensors of llama.
    assert check("@arch granite\n@default q8_0\n", as_map("Llama-3.1-8B")).diagnostics == ()


@pytest.mark.parametrize("model", [inventory("Llama-3.1-8B"), as_map("Llama-3.1-8B")], ids=["named", "map"])
def test_rules_of_another_family_are_one_finding(model: Model) -> None:
    report = check(GLM, model)
    (told,) = found(report, "GP209")
    assert "5 of 8 rules (lines 4, 5, 6, 7, 8) match nothing in Llama-3.1-8B" in told.message
    assert told.message.endswith("they name tensors of glm4moe or glm-dsa")
    assert "-m" in told.help
    assert found(report, "GP101") == []
    assert not report.clean


def test_a_slip_is_no_other_family() -> None:
    report = check(GLM.replace("ffn_down_exps", "ffn_dwon_exps"), inventory("GLM-4.5-Air"))
    assert found(report, "GP209") == []
    assert [d.line for d in found(report, "GP101")] == [6]
    # Rules that no family has tensors for are told one by one.
    report = check("zzz_a = q8_0\nzzz_b = q8_0\n@default q8_0\n", inventory("GLM-4.5-Air"))
    assert [d.code for d in report.diagnostics] == ["GP101", "GP101"]


def test_an_unknown_recipe_has_the_nearest_of_the_model_s_family() -> None:
    for name, model, near in (
        ("balanced", "Qwen3-30B-A3B", "qwen3moe/balanced"),
        ("hq4k", "GLM-4.6", "glm4moe/hq4_k"),
        ("small", "Kimi-K2", "deepseek2/small"),
        ("hq4_k", "DeepSeek-V3", "deepseek2/hq4_k"),
    ):
        with pytest.raises(InvalidRecipeError) as caught:
            make_plan(inventory(model), name)
        assert f"the nearest is `{near}`" in caught.value.diagnostics[0].help
    with pytest.raises(InvalidRecipeError) as caught:
        load_recipe("balanced")
    assert "/balanced`" in caught.value.diagnostics[0].help


def test_help_speaks_of_the_order_that_the_recipe_has() -> None:
    model = inventory("GLM-4.5-Air")
    text = "@order last\nattn_q\\.weight = q6_K\nattn_ = q8_0\n@default q8_0\n"
    (told,) = found(check(text, model), "GP102")
    assert told.help == "the last match wins: narrow the pattern of line 3, or put this rule below it"
    (order,) = found(check("@order last\n.* = q8_0\nattn_q = q6_K\n", model), "GP109")
    assert "where the first match wins" in order.message
    text = "@order last\nattn_q = q6_K\nattn_k = q6_K\nattn_v = q6_K\n.* = q8_0\n"
    (told,) = found(check(text, model), "GP102")
    assert told.message.endswith("leaves nothing to 3 above")
    assert told.help == "move it above them all"
    assert parse_recipe(text).order == "last"
