from pathlib import Path

import pytest
from glm_4_5_air import REAL_FILES
from glm_4_5_air import model as glm_4_5_air

from ggplan import Model, TensorInfo, load_recipe, make_plan, parse_recipe, parse_type
from ggplan.errors import PlanError
from ggplan.linting import check_plan
from ggplan.planning import Plan, Role, by_role, by_type
from ggplan.planning.export import plan_json


def model_of(*tensors: tuple[str, tuple[int, ...], str]) -> Model:
    found = tuple(TensorInfo(n, s, parse_type(t), "x.map", t) for n, s, t in tensors)
    return Model(Path("x.map"), "inventory", "", {}, found)


def types_of(plan: Plan) -> dict[str, str]:
    return {t.name: t.type.name for t in plan.tensors}


def codes_of(plan: Plan) -> list[str]:
    return [d.code for d in check_plan(plan).diagnostics]


def message_of(plan: Plan, code: str) -> str:
    (found,) = [d for d in check_plan(plan).diagnostics if d.code == code]
    return found.message


SMALL = model_of(
    ("token_embd.weight", (1000, 256), "bf16"),
    ("blk.0.attn_q.weight", (256, 256), "bf16"),
    ("blk.0.attn_norm.weight", (256,), "f32"),
    ("blk.0.attn_q.bias", (256,), "f32"),
    ("blk.0.ffn_gate_inp.weight", (8, 256), "f32"),
    ("blk.0.ffn_down_exps.weight", (8, 256, 352), "bf16"),
    ("output.weight", (1000, 256), "bf16"),
)


@pytest.mark.parametrize(("asked", "table"), REAL_FILES)
def test_one_type_for_all_gives_what_real_files_have(asked: str, table: str) -> None:
    plan = make_plan(glm_4_5_air(), parse_recipe(f".* = {asked}"), fallback=table)
    real = REAL_FILES[asked, table]
    assert {s.label: (s.n_tensors, s.n_bytes) for s in by_type(plan)} == real
    assert plan.tensor_bytes == sum(size for _, size in real.values())


def test_first_match_wins_and_every_choice_knows_its_rule() -> None:
    recipe = parse_recipe("attn_q = q6_K\n# a comment\nattn = q2_K\n@default q8_0\n", "my.recipe")
    plan = make_plan(SMALL, recipe)
    chosen = {t.name: t for t in plan.tensors}
    assert chosen["blk.0.attn_q.weight"].type.name == "q6_K"
    assert chosen["blk.0.attn_q.weight"].chosen_by == "my.recipe:1"
    assert chosen["output.weight"].chosen_by == "@default"
    assert chosen["blk.0.attn_norm.weight"].chosen_by == "kept"


def test_search_is_unanchored() -> None:
    # The classic slip: this takes attn_output too.
    model = model_of(("output.weight", (8, 256), "bf16"), ("blk.0.attn_output.weight", (8, 256), "bf16"))
    plan = make_plan(model, parse_recipe("output\\.weight = q8_0\nattn_output = q4_K"))
    assert set(types_of(plan).values()) == {"q8_0"}
    assert "GP102" in codes_of(plan)


@pytest.mark.parametrize("pattern", [".*", "blk", "weight|bias"])
@pytest.mark.parametrize("type_", ["q4_0", "bf16", "f16"])
def test_broad_rules_pass_protected_tensors_over(pattern: str, type_: str) -> None:
    plan = make_plan(SMALL, parse_recipe(f"{pattern} = {type_}\n@default q8_0"))
    types = types_of(plan)
    assert types["blk.0.attn_q.weight"] == type_
    for name in ("blk.0.attn_norm.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight"):
        assert types[name] == "f32"
    note = next(d for d in check_plan(plan).diagnostics if d.code == "GP213")
    assert note.severity == "note"


def test_a_rule_meant_for_protected_tensors_may_give_a_float_type() -> None:
    plan = make_plan(SMALL, parse_recipe("ffn_gate_inp|norm = bf16\n.* = q8_0"))
    types = types_of(plan)
    assert types["blk.0.ffn_gate_inp.weight"] == types["blk.0.attn_norm.weight"] == "bf16"
    assert types["blk.0.attn_q.bias"] == "f32"


def test_f32_is_never_refused() -> None:
    model = model_of(("blk.0.ffn_gate_inp.weight", (8, 256), "bf16"), ("output.weight", (8, 256), "bf16"))
    assert set(types_of(make_plan(model, parse_recipe(".* = f32"))).values()) == {"f32"}


def test_a_rule_meant_for_protected_tensors_may_not_quantize_them_unless_forced() -> None:
    plan = make_plan(SMALL, parse_recipe("ffn_gate_inp = q8_0\n@default q8_0", "r"))
    assert types_of(plan)["blk.0.ffn_gate_inp.weight"] == "f32"
    (warning,) = [d for d in check_plan(plan).diagnostics if d.code == "GP202"]
    assert warning.severity == "warning"
    assert "router" in warning.message
    assert "`q8_0!`" in warning.help

    plan = make_plan(SMALL, parse_recipe("ffn_gate_inp = q8_0!\n@default q8_0"))
    assert types_of(plan)["blk.0.ffn_gate_inp.weight"] == "q8_0"
    assert "llama-quantize would keep" in message_of(plan, "GP203")


def test_passing_over_tries_the_next_rule() -> None:
    plan = make_plan(SMALL, parse_recipe("blk.* = q8_0\n_norm\\.weight = f16"))
    assert types_of(plan)["blk.0.attn_norm.weight"] == "f16"


def test_norms_and_vectors_become_f32() -> None:
    model = model_of(("output_norm.weight", (256,), "f16"), ("blk.0.attn_q.bias", (256,), "bf16"))
    assert set(types_of(make_plan(model)).values()) == {"f32"}


def test_a_chain_is_tried_from_left_to_right() -> None:
    recipe = parse_recipe("ffn_down_exps = q6_K | q5_K | q8_0 | f16\n@default bf16")
    plan = make_plan(SMALL, recipe, strict=True)
    assert types_of(plan)["blk.0.ffn_down_exps.weight"] == "q8_0"
    assert codes_of(plan).count("GP201") == 0


@pytest.mark.parametrize(
    ("asked", "n_columns", "table", "got"),
    [
        ("q4_K", 352, "llama.cpp", "q5_0"),
        ("q5_K", 352, "llama.cpp", "q5_1"),
        ("q5_K", 352, "ik", "q6_0"),
        ("q2_K", 352, "llama.cpp", "q4_0"),
        ("q2_K", 352, "ik", "iq4_nl"),
        ("iq4_xs", 352, "llama.cpp", "iq4_nl"),
        ("q6_K", 100, "llama.cpp", "f16"),
        ("q8_0", 100, "llama.cpp", "f16"),
        ("iq4_k", 352, "ik", "q5_0"),
        ("q4_k_r4", 352, "ik", "q5_0"),
    ],
)
def test_fallback_tables(asked: str, n_columns: int, table: str, got: str) -> None:
    model = model_of(("blk.0.attn_q.weight", (8, n_columns), "bf16"))
    plan = make_plan(model, parse_recipe(f".* = {asked}"), fallback=table)
    assert types_of(plan) == {"blk.0.attn_q.weight": got}
    assert f"{n_columns} % " in message_of(plan, "GP201")
    assert got in message_of(plan, "GP201")


@pytest.mark.parametrize(
    ("asked", "table", "tells"),
    [("q8_0", "ik", "ik_llama.cpp has no fallback"), ("nvfp4", "llama.cpp", "no fallback")],
)
def test_where_the_engine_would_stop_so_do_we(asked: str, table: str, tells: str) -> None:
    model = model_of(("blk.0.attn_q.weight", (8, 100), "bf16"))
    with pytest.raises(PlanError, match=tells) as caught:
        make_plan(model, parse_recipe(f".* = {asked}"), fallback=table)
    assert "blk.0.attn_q.weight" in caught.value.message


def test_strict_refuses_a_fallback_with_its_arithmetic() -> None:
    with pytest.raises(PlanError, match="352 % 256 = 96") as caught:
        make_plan(SMALL, parse_recipe(".* = q4_K"), strict=True)
    assert "ffn_down_exps" in caught.value.message


def test_interleaved_rows_must_divide() -> None:
    model = model_of(("blk.0.attn_q.weight", (6, 256), "bf16"))
    with pytest.raises(PlanError, match="interleaves 4 rows"):
        make_plan(model, parse_recipe(".* = q4_k_r4"))


def test_what_ik_llama_cpp_does_not_interleave_gets_the_plain_type() -> None:
    model = model_of(
        ("token_embd.weight", (64, 256), "bf16"),
        ("blk.0.attn_q.weight", (6, 256), "bf16"),
        ("blk.0.attn_k.weight", (8, 256), "bf16"),
        ("blk.0.attn_v.weight", (8, 96), "bf16"),
    )
    recipe = parse_recipe("@target ik_llama.cpp\nattn_[qk] = q8_k_r8\n@default iq4_k_r4", "my.recipe")
    plan = make_plan(model, recipe)
    assert types_of(plan) == {
        "token_embd.weight": "iq4_k", "blk.0.attn_q.weight": "q8_0", "blk.0.attn_k.weight": "q8_k_r8",
        "blk.0.attn_v.weight": "q5_0",
    }  # fmt: skip
    told = [d.message for d in check_plan(plan).diagnostics if d.code == "GP214"]
    assert len(told) == 2
    assert any("token_embd.weight" in m and "iq4_k takes the place of iq4_k_r4" in m for m in told)
    assert "blk.0.attn_v.weight" in message_of(plan, "GP201")  # the rows of 96, not the interleaved ones
    alone = make_plan(model_of(("token_embd.weight", (64, 256), "bf16")), parse_recipe(".* = iq4_k_r4"))
    assert types_of(alone)["token_embd.weight"] == "iq4_k_r4"  # no target: as it is said


def test_how_a_file_in_types_of_ik_llama_cpp_is_made_is_said() -> None:
    plan = make_plan(SMALL, parse_recipe("@target ik_llama.cpp\n@default iq4_k | q6_0", "my.recipe"))
    told = message_of(plan, "GP215")
    for part in (
        "ggplan convert",
        "ggplan rules export my.recipe --dialect ik_llama.cpp",
        "llama-quantize --custom-q",
    ):
        assert part in told


def test_dead_rules_and_uncovered_tensors_are_shown() -> None:
    plan = make_plan(SMALL, parse_recipe("ssm_ = q8_0\nattn_q = q4_K", "my.recipe"))
    assert "GP101" in codes_of(plan)
    assert "token_embd.weight" in message_of(plan, "GP108")
    assert types_of(plan)["token_embd.weight"] == "bf16"


def test_what_cannot_be_written_is_said_before_it_is_tried() -> None:
    plan = make_plan(SMALL, parse_recipe("attn_q\\.weight = iq2_k\n@default bf16"))
    assert "cannot write iq2_k" in message_of(plan, "GP208")


def test_quantizing_twice_is_said() -> None:
    model = model_of(("blk.0.attn_q.weight", (8, 256), "q8_0"))
    plan = make_plan(model, parse_recipe(".* = q4_K"))
    assert "q8_0 in the source" in message_of(plan, "GP205")
    assert [t.name for t in plan.requantized] == ["blk.0.attn_q.weight"]


def test_integers_are_never_touched() -> None:
    model = model_of(("blk.0.ffn_gate_tid2eid.weight", (8, 256), "i32"))
    assert types_of(make_plan(model, parse_recipe(".* = q8_0!"))) == {"blk.0.ffn_gate_tid2eid.weight": "i32"}


def test_the_file_order_is_llama_quantizes() -> None:
    names = ["blk.10.a.weight", "output.weight", "blk.2.b.weight", "blk.2.a.weight", "a.weight"]
    plan = make_plan(model_of(*[(name, (1, 32), "f32") for name in names]))
    assert [t.name for t in plan.tensors] == [
        "a.weight", "output.weight", "blk.2.a.weight", "blk.2.b.weight", "blk.10.a.weight",
    ]  # fmt: skip


def test_offsets_follow_sizes_and_alignment() -> None:
    plan = make_plan(
        model_of(("a", (3, 5), "f32"), ("b.weight", (2, 32), "bf16")), parse_recipe("@default q8_0")
    )
    assert [(t.offset, t.n_bytes) for t in plan.tensors] == [(0, 60), (64, 68)]
    assert plan.data_bytes == 160
    assert len(plan.header) % 32 == 0


def test_classes_of_a_real_model() -> None:
    plan = make_plan(glm_4_5_air(), load_recipe("glm4moe/hq4_k"))
    by_name = {t.name: t.role for t in plan.tensors}
    assert by_name["blk.3.attn_output.weight"] is Role.ATTENTION
    assert by_name["blk.3.ffn_gate_inp.weight"] is Role.SMALL
    assert by_name["blk.3.ffn_up_shexp.weight"] is Role.SHARED_EXPERTS
    assert by_name["blk.3.ffn_up_exps.weight"] is Role.ROUTED_EXPERTS
    assert by_name["blk.0.ffn_up.weight"] is Role.DENSE_FFN
    assert by_name["token_embd.weight"] is Role.EMBEDDINGS
    assert by_name["output.weight"] is Role.OUTPUT
    assert by_name["output_norm.weight"] is Role.SMALL
    assert by_name["blk.46.ffn_up_exps.weight"] is by_name["blk.46.nextn.eh_proj.weight"] is Role.NEXTN
    assert sum(s.n_bytes for s in by_role(plan)) == plan.tensor_bytes
    assert sum(s.n_tensors for s in by_role(plan)) == 803


def test_the_seed_recipe_on_a_real_model() -> None:
    plan = make_plan(glm_4_5_air(), load_recipe("glm4moe/hq4_k"), strict=True)
    types = types_of(plan)
    assert types["blk.3.ffn_down_exps.weight"] == "q8_0"  # 1408 columns
    assert types["blk.3.ffn_up_exps.weight"] == "q4_K"
    assert types["blk.3.attn_q.weight"] == "q8_0"
    assert types["blk.3.ffn_up_shexp.weight"] == types["token_embd.weight"] == "bf16"
    assert types["blk.3.attn_norm.weight"] == types["blk.3.ffn_gate_inp.weight"] == "f32"
    assert not [d for d in check_plan(plan).diagnostics if d.severity != "note"]


def test_the_plan_as_json_says_all() -> None:
    plan = make_plan(SMALL, parse_recipe(".* = q4_K", "r"))
    found = plan_json(plan)
    assert found["schema"] == "ggplan/plan@1"
    totals = found["totals"]
    assert isinstance(totals, dict)
    assert totals["file_bytes"] == plan.file_bytes == len(plan.header) + plan.data_bytes
    down = next(t for t in found["tensors"] if t["name"] == "blk.0.ffn_down_exps.weight")
    assert (down["type"], down["fallback_from"], down["rule"]["line"]) == ("q5_0", "q4_K", 1)


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [("effort", "bset", "best"), ("nonfinite", "zeor", "zero"), ("fallback", "ikk", "ik")],
)
def test_an_option_without_such_a_value_is_refused(option: str, value: str, near: str) -> None:
    with pytest.raises(PlanError, match=f"{option} cannot be {value}") as caught:
        make_plan(SMALL, None, **{option: value})
    assert near in caught.value.hint
