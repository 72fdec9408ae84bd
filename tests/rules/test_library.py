"""The recipes that ship with ggplan: what they say of themselves is true, and the lint is content."""

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from ggplan.inventories import inventories, inventory
from ggplan.linting import check_recipe
from ggplan.planning import Plan, make_plan
from ggplan.rules import load_recipe, parse_recipe, shipped_recipes
from ggplan.rules.formatting import format_recipe
from ggplan.rules.library import ShippedRecipe, library
from ggplan.rules.loading import recipe_text

ROOT = Path(__file__).parents[2]
LIBRARY = {entry.name: entry for entry in library()}
CASES = [(entry.name, figures.model) for entry in library() for figures in entry.figures]
LEVELS = ("Quality", "Balanced", "Small")
# For whom nobody's mixes were collected: they have the machines that `tools/make_recipes.py` is asked for.
OPTIMISED_ONLY = {"GLM-5", "Qwen3.5-27B", "Qwen3.5-35B-A3B", "Qwen3.5-397B-A17B"}
WITH_IMATRIX_ONLY = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"}


@cache
def plan_of(name: str, model: str) -> Plan:
    return make_plan(inventory(model), load_recipe(name))


@cache
def maker(name: str = "make_library") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_maker() -> ModuleType:
    maker()  # which it imports
    return maker("make_recipes")


def level(entry: ShippedRecipe) -> str:
    return re.split(r"[:,]", entry.summary)[0]


@pytest.mark.parametrize(("name", "model"), CASES)
def test_the_figures_are_true(name: str, model: str) -> None:
    figures = next(f for f in LIBRARY[name].figures if f.model == model)
    plan = plan_of(name, model)
    facts = {key.rpartition(".")[2]: value.decode() for key, value in plan.model.metadata.items()}
    loaded = {t.name: t.n_bytes for t in plan.tensors}
    if "nextn_predict_layers" in facts:
        skipped = f"blk.{int(str(facts['block_count'])) - 1}."
        loaded = {tensor: size for tensor, size in loaded.items() if not tensor.startswith(skipped)}
    experts = sum(size for tensor, size in loaded.items() if "_exps." in tensor)
    embeddings = loaded["token_embd.weight"]

    total = sum(t.type.tensor_bytes(t.tensor.shape) for t in plan.tensors)
    weights = sum(t.tensor.n_weights for t in plan.tensors)
    assert f"{figures.size:.2f}" == f"{total / 2**30:.2f}"
    assert f"{figures.bits_per_weight:.3f}" == f"{8 * total / weights:.3f}"
    assert f"{figures.gpu:.1f}" == f"{(sum(loaded.values()) - experts - embeddings) / 2**30:.1f}"
    if "expert_count" not in facts:
        assert figures.ram is figures.ram_per_token is None
        return
    per_token = experts * int(str(facts["expert_used_count"])) / int(str(facts["expert_count"]))
    assert f"{figures.ram:.1f}" == f"{(experts + embeddings) / 2**30:.1f}"
    assert f"{figures.ram_per_token:.2f}" == f"{per_token / 2**30:.2f}"


@pytest.mark.parametrize(("name", "model"), CASES)
def test_nothing_is_to_be_said_of_them(name: str, model: str) -> None:
    report = check_recipe(name, inventory(model))
    assert [d.message for d in report.diagnostics if d.severity != "note"] == []


@pytest.mark.parametrize(
    ("name", "model", "size", "bpw"),
    [
        # What others published, for mixes that are the same: AesSedai's GLM-4.7, ubergarm's Q4_X of
        # Kimi-K2-Thinking, mix-IQ3_K of Qwen3-235B and IQ4_K of GLM-4.6, ggml-org's and unsloth's gpt-oss.
        ("glm4moe/balanced", "GLM-4.7", "209.77", "5.03"),
        ("glm4moe/small", "GLM-4.7", "165.28", "3.96"),
        ("deepseek2/kimi-k2-thinking", "Kimi-K2", "543.617", "4.549"),
        ("qwen3moe/ik-iq3_k", "Qwen3-235B-A22B", "106.830", "3.903"),
        ("glm4moe/ik-iq4_k", "GLM-4.6", "", "5.001"),
        ("gpt-oss/balanced", "gpt-oss-120b", "59.02", ""),
        ("gpt-oss/quality", "gpt-oss-120b", "60.87", ""),
    ],
)
def test_they_give_the_sizes_that_were_published(name: str, model: str, size: str, bpw: str) -> None:
    text = (ROOT / "tensor_rules" / f"{name}.recipe").read_text(encoding="utf-8")
    # Theirs quantize the experts and all of the block that predicts a second token as those of all others.
    nextn = "@role nextn = q8_0\n"
    own = text.replace(nextn, "") + (nextn if nextn in text else "")
    plan = make_plan(inventory(model), parse_recipe(own))
    for told, found in ((size, plan.tensor_bytes / 2**30), (bpw, plan.bits_per_weight)):
        digits = len(told.partition(".")[2])
        assert told in ("", f"{found:.{digits}f}")


def test_each_model_has_recipes_of_each_level() -> None:
    for model in set(inventories()) - OPTIMISED_ONLY:
        found = {level(e) for e in library() if e.family and any(f.model == model for f in e.figures)}
        assert found == set(LEVELS), model


def test_recipes_stand_in_the_folder_of_their_architecture() -> None:
    assert set(LIBRARY) == set(shipped_recipes())
    for entry in library():
        recipe = load_recipe(entry.name)
        assert level(entry) in LEVELS, entry.name
        assert entry.figures, entry.name
        assert recipe.architecture == ("" if entry.family in ("", "dense") else entry.family)
        assert recipe.assertions, entry.name
        assert recipe.tests, entry.name
        assert len(entry.summary) <= 100
        assert entry.summary.endswith(".")


@pytest.mark.parametrize(("name", "model"), CASES)
def test_types_that_need_an_imatrix_are_announced(name: str, model: str) -> None:
    entry = LIBRARY[name]
    needs = any(t.type.name in WITH_IMATRIX_ONLY for t in plan_of(name, model).tensors)
    assert needs == ("needs an imatrix" in entry.summary)
    assert not needs or level(entry) == "Small"


@pytest.mark.parametrize("name", LIBRARY)
def test_what_ggplan_cannot_encode_is_for_ik_llama_cpp(name: str) -> None:
    types = {t.type for f in LIBRARY[name].figures for t in plan_of(name, f.model).tensors}
    foreign = any(t.engine == "ik_llama.cpp" for t in types)
    assert foreign == (LIBRARY[name].target == "ik_llama.cpp") == name.rpartition("/")[2].startswith("ik-")
    assert foreign or all(t.encodable for t in types)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_files_are_as_the_tools_lay_them_out(name: str) -> None:
    path = ROOT / "tensor_rules" / f"{name}.recipe"
    text = path.read_text(encoding="utf-8")
    assert format_recipe(text) == text, "run ggplan rules fmt"
    assert maker().with_figures(text, path) == text, "run tools/make_library.py"
    assert max(map(len, text.split("\n"))) <= 110


def test_the_readme_is_true(tmp_path: Path) -> None:
    readme = (ROOT / "tensor_rules" / "README.md").read_text(encoding="utf-8")
    (table,) = maker().TABLE.findall(readme)
    assert table == maker().table(), "run tools/make_library.py"
    (example,) = re.findall(r"```recipe\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "my.recipe").write_text(example, encoding="utf-8")
    assert check_recipe(tmp_path / "my.recipe", inventory("GLM-4.6")).clean
    for name in re.findall(r"`([a-z0-9-]+/[a-z0-9_.-]+)`", readme):
        assert name in LIBRARY


def test_an_optimised_recipe_is_what_the_tool_makes() -> None:
    tool = recipe_maker()
    (made,) = (one for one in tool.RECIPES if one.name == "qwen35moe/qwen3.5-35b-a3b-24gb")
    path = ROOT / "tensor_rules" / f"{made.name}.recipe"
    assert tool.text_of(made) == path.read_text(encoding="utf-8"), "run tools/make_recipes.py"


def test_the_predictions_of_the_readme_are_true() -> None:
    tool = recipe_maker()
    readme = (ROOT / "tensor_rules" / "README.md").read_text(encoding="utf-8")
    (table,) = tool.TABLE.findall(readme)
    for model in ("Qwen3.5-35B-A3B", "GLM-4.5-Air"):
        rows = "\n".join(tool.rows(model, library()))
        assert rows in table, "run tools/make_recipes.py"
        assert "optimised" in rows
    assert {one.name for one in tool.RECIPES} <= set(LIBRARY)
    made_by_hand = {e.name for e in library()} - {one.name for one in tool.RECIPES}
    assert not any(tool.MARK in recipe_text(name)[0] for name in made_by_hand)


def test_an_optimised_recipe_is_predicted_to_lose_less_than_one_by_hand_that_is_larger() -> None:
    """By the numbers it was made from: anything else would be a fault of the solver."""
    tool = recipe_maker()
    for made in (one for one in tool.RECIPES if one.model == "GLM-4.5-Air"):
        own = tool.predicted(plan_of(made.name, made.model))
        size = plan_of(made.name, made.model).tensor_bytes
        for entry in library():
            if entry.target == "llama.cpp" and any(f.model == made.model for f in entry.figures):
                plan = plan_of(entry.name, made.model)
                if plan.tensor_bytes <= size and entry.name != made.name:
                    assert own.kld <= tool.predicted(plan).kld * 1.001, (made.name, entry.name)
