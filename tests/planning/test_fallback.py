"""Which engine's fallback table a plan takes."""

import importlib.resources

import ggplan
from ggplan.planning.fallback import table_of


def test_the_recipes_target_chooses_the_table() -> None:
    assert table_of(None) == "llama.cpp"
    assert table_of(ggplan.parse_recipe("@default q5_K")) == "llama.cpp"
    assert table_of(ggplan.parse_recipe("@target ik_llama.cpp\n@default q5_K")) == "ik"


def test_a_plan_takes_it_unless_told_otherwise() -> None:
    model = ggplan.open_model(str(importlib.resources.files("ggplan") / "demo_model"), pre="glm4")
    recipe = ggplan.parse_recipe("@target ik_llama.cpp\n@default q5_K")
    types = {
        fallback: {t.type.name for t in ggplan.make_plan(model, recipe, fallback=fallback).tensors}
        for fallback in (None, "ik", "llama.cpp")
    }
    assert types[None] == types["ik"]
    assert "q6_0" in types["ik"]
    assert "q5_1" in types["llama.cpp"]
