"""What differs between two sides, by class and in bytes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import ggplan
from ggplan.comparing import compare, differences_json, side_of_json, side_of_model, side_of_plan, transitions
from ggplan.ggml_types import parse_type
from ggplan.model import Model, TensorInfo
from ggplan.planning.export import plan_json

SHAPES = {
    "token_embd.weight": (100, 256),
    "output_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 256),
    "blk.0.ffn_down_exps.weight": (4, 256, 352),
    "blk.0.ffn_up_exps.weight": (4, 352, 256),
}


@pytest.fixture
def model() -> Model:
    bf16, f32 = parse_type("bf16"), parse_type("f32")
    tensors = tuple(
        TensorInfo(name, shape, f32 if len(shape) == 1 else bf16, "", "BF16")
        for name, shape in SHAPES.items()
    )
    return Model(Path("tiny.gguf"), "gguf", "llama", {}, tensors)


def side(model: Model, recipe: str, label: str = "side") -> object:
    return side_of_plan(ggplan.make_plan(model, ggplan.parse_recipe(recipe)), label)


def test_the_same_types_are_the_same_whatever_the_rules(model: Model) -> None:
    differences = compare(
        side(model, "@default q8_0"), side(model, "attn = q8_0\nexps = q8_0\ntoken = q8_0\n_norm = f32")
    )
    assert differences.is_same
    assert differences.changes == ()
    assert differences.total.bytes[0] == differences.total.bytes[1]
    assert not transitions(differences.changes)


def test_changes_are_counted_by_class_in_bytes(model: Model) -> None:
    differences = compare(
        side(model, "exps = q4_K | q5_0\n@default q8_0"),
        side(model, "ffn_up = q8_0\nexps = q6_K | q8_0\n@default q8_0"),
    )
    assert not differences.is_same
    assert [(p.name, p.verdict) for p in differences.changes] == [
        ("blk.0.ffn_down_exps.weight", "type"),
        ("blk.0.ffn_up_exps.weight", "type"),
    ]
    by_role = {total.label: total for total in differences.by_role}
    experts = by_role["routed experts"]
    n = 4 * 256 * 352
    assert (experts.n_tensors, experts.n_different) == (2, 2)
    assert experts.bytes == (n * 22 // 32 + n * 144 // 256, 2 * n * 34 // 32)
    assert experts.bits_per_weight == ((5.5 + 4.5) / 2, 8.5)
    assert by_role["attention"].n_different == 0
    assert [(r, a, b, t.n_tensors) for r, a, b, t in transitions(differences.changes)] == [
        ("routed experts", "q4_K", "q8_0", 1),
        ("routed experts", "q5_0", "q8_0", 1),
    ]


def test_missing_tensors_and_other_shapes_differ(model: Model) -> None:
    fewer = replace(
        model,
        tensors=(*model.tensors[:2], replace(model.tensors[2], shape=(512, 256)), *model.tensors[4:]),
    )
    differences = compare(side_of_model(model), side_of_model(fewer))
    assert [(p.name, p.verdict) for p in differences.changes] == [
        ("blk.0.attn_q.weight", "shape"),
        ("blk.0.ffn_down_exps.weight", "only in A"),
    ]
    assert compare(side_of_model(fewer), side_of_model(model)).changes[1].verdict == "only in B"


def test_a_plans_json_is_the_plan(model: Model) -> None:
    plan = ggplan.make_plan(model, ggplan.parse_recipe("exps = q6_K | q8_0\n@default q8_0"))
    document = json.loads(json.dumps(plan_json(plan)))
    assert compare(side_of_json(document, "plan.json"), side_of_plan(plan, "plan")).is_same


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "other@1"},
        {"tensors": []},
        {"tensors": 3},
        {"tensors": [3]},
        {"tensors": [{"name": "x", "class": "attention", "shape": [3], "type": "q8_0"}]},
        {"tensors": [{"name": "x", "class": "attention", "shape": [], "type": "f32"}]},
        {"tensors": [{"name": "x", "class": "attention", "shape": [-1], "type": "f32"}]},
        {"tensors": [{"name": "x", "class": "magic", "shape": [3], "type": "f32"}]},
        {"tensors": [{"name": "x", "class": "attention", "shape": [3], "type": "q99"}]},
        {"tensors": [{"name": "x", "class": "attention", "shape": [3], "type": None}]},
    ],
)
def test_damaged_plans_are_refused(model: Model, damage: dict[str, object]) -> None:
    document = plan_json(ggplan.make_plan(model)) | damage
    with pytest.raises(ggplan.Error, match=r"bad\.json is"):
        side_of_json(document, "bad.json")


def test_json_lists_what_differs_or_everything(model: Model) -> None:
    differences = compare(side(model, "@default q8_0", "A"), side(model, "attn = q6_K\n@default q8_0", "B"))
    short, long = differences_json(differences), differences_json(differences, every_tensor=True)
    assert json.loads(json.dumps(short)) == short
    assert short["sides"] == ["A", "B"]
    assert short["same"] is False
    assert [t["name"] for t in short["tensors"]] == ["blk.0.attn_q.weight"]
    assert len(long["tensors"]) == len(SHAPES)
