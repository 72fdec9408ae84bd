"""The types of tensors and why they have them: who makes an assignment, and what a plan makes of it."""

import dataclasses
from pathlib import Path

import pytest

import ggplan
from ggplan.comparing import compare, side_of_assignment, side_of_model
from ggplan.errors import PlanError, RecipeError, TypeNameError
from ggplan.inventories import inventory
from ggplan.linting import check_plan
from ggplan.metadata import string
from ggplan.model import Model, TensorInfo
from ggplan.planning import (
    Assignment,
    assign,
    decide,
    find_recipe,
    fit,
    kept_types,
    lay_out,
    make_plan,
    mix_types,
    recipe_of,
    stored_types,
    types_by_hand,
)
from ggplan.stock import Mix, find_mix
from ggplan.verification.reproducing import reproduce

SHAPES = {
    "token_embd.weight": ((1000, 256), "bf16"),
    "output.weight": ((1000, 256), "bf16"),
    "output_norm.weight": ((256,), "f32"),
    "blk.0.attn_q.weight": ((256, 256), "bf16"),
    "blk.0.attn_norm.weight": ((256,), "f32"),
    "blk.0.ffn_gate_inp.weight": ((8, 256), "f32"),
    "blk.0.ffn_gate_tid2eid.weight": ((8, 256), "i32"),
    "blk.0.ffn_down_exps.weight": ((8, 256, 352), "bf16"),
}


def model_of(shapes: dict[str, tuple[tuple[int, ...], str]]) -> Model:
    tensors = tuple(
        TensorInfo(name, shape, ggplan.parse_type(type_), "x.map", type_)
        for name, (shape, type_) in shapes.items()
    )
    return Model(Path("x.map"), "inventory", "llama", {"general.architecture": string("llama")}, tensors)


MODEL = model_of(SHAPES)


def types_of(model: Model, assignment: Assignment) -> dict[str, str]:
    return {f.tensor.name: f.type.name for f in fit(model, assignment)}


def test_a_recipe_decides_and_says_why() -> None:
    recipe = ggplan.parse_recipe(
        "blk = q8_0\nffn_gate_inp = q8_0!\nattn_q = q6_K\n@default bf16", "my.recipe"
    )
    assignment = decide(MODEL, recipe)
    assert assignment.recipe is recipe
    assert assignment.name == "my"
    query = assignment.decision("blk.0.attn_q.weight")
    assert (query.type.name, query.reason, query.rule, query.matching) == ("q8_0", "rule", 0, (0, 2))
    router = assignment.decision("blk.0.ffn_gate_inp.weight")
    assert (router.type.name, router.reason, router.rule, router.forced) == ("q8_0", "rule", 1, True)
    assert (router.protected, router.passed_over) == ("it is the router", (0,))
    norm = assignment.decision("blk.0.attn_norm.weight")
    assert (norm.type.name, norm.reason, norm.rule, norm.passed_over) == ("f32", "kept", None, (0,))
    assert assignment.decision("output.weight").reason == "default"
    assert assignment.chosen_by("blk.0.attn_q.weight") == "my.recipe:1"
    assert assignment.chosen_by("output.weight") == "@default"
    assert assignment.chosen_by("blk.0.attn_norm.weight") == "kept"


def test_a_shape_comes_in_when_types_are_fitted() -> None:
    assignment = decide(MODEL, ggplan.parse_recipe("down = q6_K | q4_K\n@default q8_0"))
    down = "blk.0.ffn_down_exps.weight"
    assert assignment.decision(down).type.name == "q4_K"
    for table, type_ in (("llama.cpp", "q5_0"), ("ik", "q5_0")):
        (fitted,) = [f for f in fit(MODEL, assignment, table) if f.tensor.name == down]
        assert (fitted.type.name, fitted.asked and fitted.asked.name) == (type_, "q4_K")
    chained = decide(MODEL, ggplan.parse_recipe("down = q6_K | q8_0 | q4_0\n@default q8_0"))
    assert chained.decision(down).type.name == "q8_0"


def test_what_cannot_be_fitted_is_a_fault_until_it_is_laid_out() -> None:
    model = model_of({"blk.0.attn_q.weight": ((6, 100), "bf16")})
    assignment = decide(model, ggplan.parse_recipe("attn_q = q8_0"))
    (fitted,) = fit(model, assignment, "ik")
    assert fitted.fault is not None
    assert fitted.fault.message.startswith("rows of 100 do not fit q8_0")
    assert (fitted.type.name, fitted.asked) == ("bf16", None)
    with pytest.raises(PlanError, match=r"^blk\.0\.attn_q\.weight: rows of 100 do not fit"):
        lay_out(model, assignment, fallback="ik")


def test_it_is_frozen_and_knows_its_tensors() -> None:
    assignment = kept_types(MODEL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        assignment.name = "other"  # type: ignore[misc]
    with pytest.raises(PlanError, match=r"no tensor blk\.0\.atn_q\.weight") as caught:
        assignment.decision("blk.0.atn_q.weight")
    assert caught.value.hint == "the nearest is blk.0.attn_q.weight"


def test_an_assignment_of_another_model_is_refused() -> None:
    fewer = dataclasses.replace(MODEL, tensors=MODEL.tensors[1:])
    with pytest.raises(PlanError, match=r"^the assignment my has no tensor token_embd\.weight"):
        lay_out(MODEL, types_by_hand(fewer, {}, "my"))
    with pytest.raises(PlanError, match=r"^x\.map has no tensor token_embd\.weight"):
        lay_out(fewer, kept_types(MODEL))


@pytest.mark.parametrize("name", ["Q4_K_M", "IQ2_XXS", "MXFP4_MOE"])
def test_a_mix_decides_without_a_recipe(name: str) -> None:
    model, mix = inventory("GLM-4.5-Air"), find_mix(name)
    plan = make_plan(model, mix)
    assert plan.assignment.recipe is None
    assert plan.assignment.mix == mix
    assert {t.chosen_by for t in plan.tensors} == {name, "kept"}
    assert all(t.rule is None and t.asked is None for t in plan.tensors)
    # What is recorded says the same.
    assert plan.recipe is not None
    assert plan.metadata["ggplan.recipe.text"] == string(plan.recipe.text)
    again = make_plan(model, plan.recipe)
    assert [(t.name, t.type, t.offset) for t in again.tensors] == [
        (t.name, t.type, t.offset) for t in plan.tensors
    ]
    assert again.metadata == plan.metadata


def test_the_types_of_one_file_on_the_tensors_of_another() -> None:
    theirs = model_of(
        {n: (shape, "q8_0" if type_ == "bf16" else type_) for n, (shape, type_) in SHAPES.items()}
    )
    plan = lay_out(MODEL, stored_types(theirs, "theirs"))
    assert {t.name: t.type.name for t in plan.tensors} == {t.name: t.type.name for t in theirs.tensors}
    assert plan.assignment.chosen_by("output.weight") == "theirs"
    assert plan.recipe is not None
    assert plan.recipe.name == "theirs"
    assert compare(side_of_model(theirs), side_of_assignment(MODEL, plan.assignment, "theirs")).is_same


def test_types_by_hand() -> None:
    down = "blk.0.ffn_down_exps.weight"
    assignment = types_by_hand(MODEL, {"output.weight": "q6_K", down: ggplan.parse_type("q4_K")})
    assert types_of(MODEL, assignment) == {n: type_ for n, (_, type_) in SHAPES.items()} | {
        "output.weight": "q6_K",
        down: "q5_0",  # rows of 352
    }
    plan = lay_out(MODEL, assignment)
    assert [d.code for d in check_plan(plan).diagnostics] == ["GP201"]
    assert plan.assignment.chosen_by("output.weight") == "by hand"
    assert plan.recipe is not None
    assert types_of(MODEL, decide(MODEL, plan.recipe)) == types_of(MODEL, assignment)
    with pytest.raises(PlanError, match="352 % 256 = 96"):
        lay_out(MODEL, assignment, strict=True)


def test_types_by_hand_that_cannot_be() -> None:
    with pytest.raises(PlanError, match=r"no tensor outptu\.weight") as caught:
        types_by_hand(MODEL, {"outptu.weight": "q8_0"})
    assert caught.value.hint == "the nearest is output.weight"
    with pytest.raises(TypeNameError):
        types_by_hand(MODEL, {"output.weight": "q9_K"})
    with pytest.raises(PlanError, match="holds integers"):
        types_by_hand(MODEL, {"blk.0.ffn_gate_tid2eid.weight": "q8_0"})


def test_kept_types_record_no_recipe() -> None:
    plan = lay_out(MODEL, kept_types(MODEL))
    assert plan.recipe is None
    assert not [key for key in plan.metadata if key.startswith("ggplan.recipe")]


def test_types_need_no_recipe_to_be_compared() -> None:
    """No pattern tells these two names apart; only a file, which records a recipe, needs one."""
    names = {"blk.0.a b.weight": ((8, 256), "q4_0"), "blk.0.a\u00e9b.weight": ((8, 256), "q8_0")}
    model = model_of(names)
    assignment = stored_types(model)
    assert compare(side_of_model(model), side_of_assignment(model, assignment, "B")).is_same
    with pytest.raises(PlanError, match="no pattern tells this name from others"):
        recipe_of(model, assignment)
    with pytest.raises(PlanError, match="no pattern tells this name from others"):
        lay_out(model, assignment)


def test_make_plan_takes_what_a_user_names(tmp_path: Path) -> None:
    file = tmp_path / "own.recipe"
    file.write_text("@default q8_0\n")
    model = inventory("GLM-4.5-Air")
    assert make_plan(model, str(file)).assignment.name == make_plan(model, file).assignment.name == "own"
    assert make_plan(model, "glm4moe/hq4_k").recipe == ggplan.load_recipe("glm4moe/hq4_k")
    assert make_plan(model, " q4_k_m ").assignment.mix == find_mix("Q4_K_M")
    assignment = assign(model, "glm4moe/hq4_k")
    assert make_plan(model, assignment).assignment is assignment
    assert make_plan(model, None).assignment == kept_types(model)


def test_a_file_goes_before_a_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(find_recipe("Q4_K_M"), Mix)
    with pytest.raises(RecipeError):
        find_recipe(Path("Q4_K_M"))
    Path("Q4_K_M").write_text("@name own\n@default q8_0\n")
    found = find_recipe("Q4_K_M")
    assert isinstance(found, ggplan.Recipe)
    assert found.name == "own"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("Q4_KM", "Q4_K_M"), ("iq4-xs", "IQ4_XS"), ("glm4moe/hq4k", "glm4moe/hq4_k"), ("", ""), ("a\0b", "")],
)
def test_an_unknown_name_never_means_to_keep_all_types(name: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_plan(MODEL, name)
    assert nearest in f"{caught.value.message} {caught.value.hint}"


def test_a_forced_rule_reaches_no_other_layer() -> None:
    """A norm in f16 in one layer only: those of the other layers stay f32, and the recipe says so."""
    norms = {f"blk.{i}.attn_norm.weight": ((256,), "f16" if i == 1 else "f32") for i in range(4)}
    model = model_of({"output.weight": ((8, 256), "q8_0"), **norms})
    recipe = ggplan.recipe_from_types(model)
    assert types_of(model, decide(model, recipe)) == {t.name: t.type.name for t in model.tensors}


@pytest.mark.parametrize("how", ["mix", "file", "hand"])
def test_a_file_made_without_a_recipe_is_made_again(how: str, tmp_path: Path) -> None:
    import importlib.resources

    folder = str(importlib.resources.files("ggplan") / "demo_model")
    source = ggplan.convert(make_plan(ggplan.open_model(folder, pre="glm4")), tmp_path / "source.gguf").path
    model = ggplan.open_model(source)
    assignment = mix_types(model, find_mix("Q8_0"))
    if how == "hand":
        assignment = types_by_hand(model, {"output.weight": "q8_0", "blk.1.ffn_gate_inp.weight": "bf16"})
    elif how == "file":
        other = ggplan.convert(lay_out(model, assignment), tmp_path / "other.gguf").path
        assignment = stored_types(ggplan.open_model(other))
    plan = lay_out(model, assignment)
    path = ggplan.convert(plan, tmp_path / "out.gguf").path
    assert path.stat().st_size == plan.file_bytes
    written = {t.name: t.type.name for t in ggplan.open_model(path).tensors}
    assert written == {t.name: t.type.name for t in plan.tensors}
    assert reproduce(path, model).is_equal
