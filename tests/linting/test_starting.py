"""`ggplan rules new` writes what `ggplan rules check` has nothing to say about, not even in a note."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from ggplan import open_model, parse_type
from ggplan.inventories import inventories, inventory
from ggplan.linting.check import check_text
from ggplan.linting.starting import starting_recipe
from ggplan.model import Model
from ggplan.planning import make_plan
from ggplan.rules import parse_recipe
from ggplan.rules.formatting import format_recipe


def assert_clean(model: Model) -> str:
    text = starting_recipe(model)
    assert check_text(text, "start.recipe", None, model).diagnostics == ()
    assert format_recipe(text) == text
    return text


@pytest.mark.parametrize("name", inventories())
def test_it_is_clean_for_every_inventory_and_its_map(name: str) -> None:
    model = inventory(name)
    text = assert_clean(model)
    assert f"@arch {model.architecture}\n" in text
    as_map = replace(model, architecture="", metadata={}, path=Path("air.map"))
    assert f"@arch {model.architecture}\n" in assert_clean(as_map)


def test_what_is_quantized_in_the_source_keeps_its_type() -> None:
    plan = make_plan(inventory("gpt-oss-20b"), parse_recipe(starting_recipe(inventory("gpt-oss-20b"))))
    assert {t.type.name for t in plan.tensors if "exps.weight" in t.name} == {"mxfp4"}
    model = inventory("GLM-4.5-Air")
    types = ["q4_K", "q6_K", "bf16"]
    tensors = tuple(
        replace(t, type=parse_type(types[i % 3])) if t.n_columns % 256 == 0 and "exps" in t.name else t
        for i, t in enumerate(model.tensors)
    )
    mixed = replace(model, tensors=tensors)
    plan = make_plan(mixed, parse_recipe(assert_clean(mixed)))
    assert all(t.type == t.tensor.type for t in plan.tensors if t.tensor.type.is_quantized)


def test_it_is_clean_for_a_folder() -> None:
    assert_clean(open_model(Path(str(files("ggplan") / "demo_model")), pre="glm4"))


def test_names_of_no_role_have_a_default() -> None:
    model = inventory("Qwen3-8B")
    (other,) = [t for t in model.tensors if t.name == "output.weight"]
    strange = replace(model, tensors=(*model.tensors, replace(other, name="zzz.weight")))
    assert "@default q8_0 | f16" in assert_clean(strange)
