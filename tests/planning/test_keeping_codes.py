"""`keep`: what a recipe leaves as it is, and which codes are moved once their scales are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggplan.conversion.finiteness import check_early
from ggplan.errors import ConversionError, TruncatedError
from ggplan.ggml_types import BF16, F32, GgmlType, parse_type
from ggplan.linting import check_plan
from ggplan.model import Codes, Model, RowSource, TensorInfo
from ggplan.planning import Plan, assign, kept_types, lay_out, make_plan
from ggplan.planning.outcomes import outcomes
from ggplan.planning.settling import settle
from ggplan.quants import dequantize, quantize
from ggplan.rules import parse_recipe
from ggplan.sources.codes import nearly_q4_1

Q4_0, Q5_0, NVFP4 = (parse_type(name) for name in ("q4_0", "q5_0", "nvfp4"))


def numbers(name: str, values: list[float], type_: GgmlType = F32) -> TensorInfo:
    """A vector of these numbers."""
    data = np.array([values], "<f4")
    rows = RowSource(F32, (len(values),), lambda start, stop: data[start:stop].copy())
    return TensorInfo(name, rows.shape, type_, "model.safetensors", "F32", rows, rows)


def plain(name: str, columns: int = 64) -> TensorInfo:
    """A matrix in bf16."""
    bits = np.full((4, columns), 0x3F80, "<u2")
    rows = RowSource(BF16, (4, columns), lambda start, stop: bits[start:stop].copy())
    return TensorInfo(name, rows.shape, BF16, "model.safetensors", "BF16", rows)


def moved(
    name: str,
    type_: GgmlType = Q4_0,
    *,
    form: str = "int4 group 128",
    fault: str = "",
    companions: tuple[TensorInfo, ...] = (),
    nearly: bool = False,
) -> TensorInfo:
    """A matrix whose codes are moved, unless their scales have a fault."""
    weights = np.random.default_rng(len(name)).integers(-7, 8, (4, 64)) * 0.25
    rows = quantize(weights.astype("f4"), type_)
    decoded = dequantize(rows, type_)
    stored = RowSource(type_, (4, 64), lambda start, stop: rows[start:stop].copy(), lambda: fault)
    exact = RowSource(F32, (4, 64), lambda start, stop: decoded[start:stop].copy())
    codes = Codes(form, BF16, "", companions, nearly_q4_1(stored) if nearly else None)
    return TensorInfo(name, (4, 64), type_, "model.safetensors", form, exact, stored, codes)


def model_of(*tensors: TensorInfo) -> Model:
    return Model(Path("checkpoint"), "hf", "llama", {}, tensors)


SCALE = numbers("blk.0.attn_v.scale", [3.0])
MODEL = model_of(
    plain("token_embd.weight"),
    moved("blk.0.attn_q.weight"),
    moved("blk.0.attn_k.weight", Q5_0, form="int4 asymmetric group 64", nearly=True),
    moved("blk.0.attn_v.weight", NVFP4, form="NVFP4", companions=(SCALE,)),
    plain("blk.0.ffn_up.weight"),
    replace(numbers("blk.0.attn_norm.weight", [1.0] * 64), stored=None),
)


def types_of(plan: Plan) -> dict[str, str]:
    return {t.name.removeprefix("blk.0."): t.type.name for t in plan.tensors}


def planned(text: str, model: Model = MODEL) -> dict[str, str]:
    return types_of(make_plan(model, parse_recipe(text, "r.recipe")))


KEPT = {
    "token_embd.weight": "bf16", "attn_k.weight": "q5_0", "attn_norm.weight": "f32", "attn_q.weight": "q4_0",
    "attn_v.scale": "f32", "attn_v.weight": "nvfp4", "ffn_up.weight": "bf16",
}  # fmt: skip


@pytest.mark.parametrize(
    "text", ["# nothing", ".* = keep", "@default keep", "@default keep!", "_norm = q8_0\n.* = keep"]
)
def test_keep_is_the_type_that_no_rule_changes(text: str) -> None:
    assert planned(text) == KEPT
    assert types_of(make_plan(MODEL)) == KEPT


def test_in_a_chain_it_is_for_what_is_quantized_in_the_source() -> None:
    asked = {"token_embd.weight": "q8_0", "ffn_up.weight": "q8_0"}
    assert planned(".* = keep | q8_0") == KEPT | asked
    assert planned("@default keep | q6_K | q8_0") == KEPT | asked
    assert planned(".* = q6_K | keep") == KEPT  # 64 columns are no block of q6_K
    assert planned(".* = keep(q4_1) | q8_0") == KEPT | asked | {"attn_k.weight": "q4_1"}


def test_a_protected_tensor_keeps_its_type_in_a_chain_unless_it_is_forced() -> None:
    assert planned("attn_norm = keep | f16")["attn_norm.weight"] == "f32"
    assert planned("attn_norm = keep | f16!")["attn_norm.weight"] == "f16"


def test_a_gguf_keeps_its_quantized_tensors() -> None:
    source = replace(MODEL, kind="gguf", tensors=tuple(replace(t, codes=None) for t in MODEL.tensors))
    found = planned(".* = keep | q8_0", source)
    assert (found["attn_q.weight"], found["attn_k.weight"], found["ffn_up.weight"]) == (
        "q4_0",
        "q5_0",
        "q8_0",
    )
    assert planned(".* = keep(q4_1)", source)["attn_k.weight"] == "q5_0"  # the codes may be of 5 bits


def test_companions_are_there_only_with_their_codes() -> None:
    assert "attn_v.scale" not in planned("attn_v = q8_0")
    plan = make_plan(MODEL, parse_recipe("attn_v = nvfp4"))
    companion = next(t for t in plan.tensors if t.name.endswith(".scale"))
    assert (companion.chosen_by, companion.is_copied, companion.n_bytes) == ("kept", True, 4)
    forced = planned(".* = q8_0!")
    assert "attn_v.scale" not in forced
    assert forced["attn_norm.weight"] == "q8_0"


def test_the_offsets_have_room_for_companions() -> None:
    plan = make_plan(MODEL)
    ends = [t.offset + -(-t.n_bytes // 32) * 32 for t in plan.tensors]
    assert [t.offset for t in plan.tensors] == [0, *ends[:-1]]
    assert plan.data_bytes == ends[-1]


def test_what_becomes_of_codes_is_summed_up_and_recorded() -> None:
    plan = make_plan(MODEL, parse_recipe("attn_q = q8_0\n.* = keep(q4_1)"))
    lines = {outcome.line for outcome in outcomes(plan.tensors)}
    assert lines == {
        "1 tensor in q8_0: moved from int4 group 128",
        "1 tensor in q4_1: moved from int4 asymmetric group 64, minima rounded to float16"
        " (relative error 1e-4 to 5e-4)",
        "1 tensor in nvfp4: moved from NVFP4",
    }
    value = plan.metadata["ggplan.codes"]
    assert set(value.decode_items(value.length)) == lines
    assert "ggplan.codes" not in make_plan(model_of(plain("token_embd.weight"))).metadata


def faulty(model: Model = MODEL) -> Model:
    """The model with one tensor whose scale is too small for a float16."""
    broken = moved("blk.0.attn_q.weight", fault="its scales 'x' hold 1e-09")
    return replace(model, tensors=(model.tensors[0], broken, *model.tensors[2:]))


def test_a_scale_that_the_type_does_not_hold_decodes_that_tensor_alone() -> None:
    settled = settle(faulty())
    assert settled["blk.0.attn_q.weight"].type == BF16
    assert settled["blk.0.attn_q.weight"].codes.outcome == (
        "decoded: q4_0 does not hold a scale of it exactly: its scales 'x' hold 1e-09"
    )
    assert settled["blk.0.attn_k.weight"].type == Q5_0
    changed = {"attn_q.weight": "bf16"}
    assert types_of(make_plan(faulty())) == KEPT | changed
    assert planned(".* = keep | q8_0", faulty())["attn_q.weight"] == "q8_0"
    (found,) = [f for f in outcomes(make_plan(faulty()).tensors) if f.type == BF16]
    assert found.words == "decoded: q4_0 does not hold a scale of it exactly"


def test_an_assignment_made_before_is_that_of_the_settled_model() -> None:
    assert types_of(make_plan(faulty(), kept_types(faulty()))) == KEPT | {"attn_q.weight": "bf16"}
    decided = assign(faulty(), parse_recipe("@default keep | q8_0"))
    assert types_of(make_plan(faulty(), decided))["attn_q.weight"] == "q8_0"


def test_codes_that_were_not_settled_are_looked_at_before_they_are_written() -> None:
    plan = lay_out(faulty(), kept_types(faulty()))
    with pytest.raises(ConversionError, match=r"attn_q\.weight: its codes cannot be moved to q4_0: .*1e-09"):
        check_early(plan)


def test_scales_are_not_read_where_only_headers_are() -> None:
    for model in (replace(faulty(), kind="inventory"), replace(faulty(), obstacle=TruncatedError("cut"))):
        assert settle(model) is model
        assert types_of(make_plan(model)) == KEPT


def test_scales_are_read_once() -> None:
    settled = settle(MODEL)
    assert settled is not MODEL
    assert settle(settled) is settled


def test_a_scale_of_one_has_no_tensor() -> None:
    one = numbers("blk.0.attn_v.scale", [1.0])
    model = model_of(moved("blk.0.attn_v.weight", NVFP4, companions=(one,)))
    assert types_of(make_plan(model)) == {"attn_v.weight": "nvfp4"}


def found(text: str) -> list:
    plan = make_plan(MODEL, parse_recipe(text, "r.recipe"))
    return [d for d in check_plan(plan).diagnostics if d.code in ("GP205", "GP211", "GP216")]


def test_codes_encoded_anew_in_as_few_bits_are_warned_about_and_kept_by_the_fix() -> None:
    (warning,) = found("attn_q = iq4_nl")
    assert (warning.code, warning.severity) == ("GP216", "warning")
    assert "int4 group 128 in the source, whose codes q4_0 holds, encoded anew as iq4_nl" in warning.message
    assert warning.help == "write `keep`, which moves the codes and loses nothing"
    assert warning.fix.edits[0].text == "keep | iq4_nl"
    assert warning.fix.safe
    assert found("attn_q = keep | iq4_nl") == []
    assert found("attn_q = q4_0") == []


def test_the_fix_that_makes_the_file_larger_is_not_safe() -> None:
    (warning,) = found("attn_k = q4_0")
    assert warning.fix.edits[0].text == "keep(q4_1) | q4_0"
    assert not warning.fix.safe
    assert "5 to 8 %" in warning.message


def test_codes_with_zero_points_in_q4_1_are_moved_there() -> None:
    (warning,) = found("attn_k = q4_1")
    assert warning.fix.edits[0].text == "keep(q4_1) | q4_1"
    assert warning.fix.safe
    assert "rounds the minimum" in warning.help
    assert found("attn_k = keep(q4_1) | q4_1") == []


def test_a_wider_type_is_warned_about_with_its_bytes() -> None:
    (warning,) = found("attn_q = q8_0")
    assert warning.code == "GP216"
    assert warning.cost_bytes == 4 * 64 * 4 // 8


def test_fewer_bits_than_four_are_told_without_a_fix() -> None:
    (warning,) = found("attn_q = q2_0")
    assert (warning.code, warning.fix, warning.cost_bytes) == ("GP216", None, None)
    assert "it saves 2.2 bpw" in warning.help


def test_keep_is_no_finding_where_nothing_is_quantized() -> None:
    model = model_of(plain("token_embd.weight"), plain("blk.0.ffn_up.weight"))
    plan = make_plan(model, parse_recipe(".* = keep | q8_0"))
    assert [d for d in check_plan(plan).diagnostics if d.severity != "note"] == []


NF4 = replace(
    plain("blk.0.attn_q.weight"),
    codes=Codes("bitsandbytes nf4", BF16, "no ggml type has the 16 values of nf4", bits=4),
)


@pytest.mark.parametrize("type_", ["q4_0", "q4_1", "q5_0", "q2_0"])
def test_codes_that_are_decoded_and_encoded_anew_in_as_few_bits_are_warned_about(type_: str) -> None:
    plan = make_plan(model_of(NF4), parse_recipe(f"attn_q = {type_}"))
    (warning,) = [d for d in check_plan(plan).diagnostics if d.code == "GP216"]
    assert warning.severity == "warning"
    assert warning.fix is None
    assert f"decoded (no ggml type has the 16 values of nf4), encoded anew as {type_}" in warning.message
    assert "`keep` does not move them" in warning.help
    (found,) = outcomes(plan.tensors)
    assert found.words == "bitsandbytes nf4, decoded (no ggml type has the 16 values of nf4), encoded anew"


@pytest.mark.parametrize(("type_", "bits"), [("q8_0", 4), ("bf16", 4), ("q4_0", 8), ("q4_0", 0)])
def test_decoded_codes_in_enough_bits_or_of_many_are_no_second_quantization(type_: str, bits: int) -> None:
    source = replace(NF4, codes=replace(NF4.codes, bits=bits))
    plan = make_plan(model_of(source), parse_recipe(f"attn_q = {type_}"))
    assert [d for d in check_plan(plan).diagnostics if d.code == "GP216"] == []


def test_a_tensor_that_alone_is_decoded_is_warned_about_by_name() -> None:
    plan = make_plan(faulty(), parse_recipe("attn_q = q4_0\n@default keep"))
    source = next(t for t in plan.tensors if t.name == "blk.0.attn_q.weight")
    assert source.type == Q4_0
    told = [outcome.told for outcome in outcomes(plan.tensors) if "decoded" in outcome.words]
    assert len(told) == 1
    assert "blk.0.attn_q.weight" in told[0]
    (kept,) = [o for o in outcomes(make_plan(faulty()).tensors) if o.type == BF16]
    assert kept.told.endswith("(blk.0.attn_q.weight: its scales 'x' hold 1e-09)")
    assert "rounded to bf16" in kept.told


def test_the_measured_error_is_told_of_the_type_it_was_measured_with() -> None:
    (four,) = found("attn_k = q4_0")
    (other,) = found("attn_q = iq4_nl")
    assert "5 to 8 %" in four.message
    assert "%" not in other.message


@pytest.mark.parametrize(
    ("name", "type_"), [("attn_q", "q4_1"), ("attn_q", "q5_0"), ("attn_q", "q8_0"), ("attn_k", "q8_0")]
)
def test_codes_are_moved_into_a_wider_type_that_holds_them(name: str, type_: str) -> None:
    plan = make_plan(MODEL, parse_recipe(f"{name} = {type_}"))
    (found,) = [t for t in plan.tensors if t.name == f"blk.0.{name}.weight"]
    assert found.is_copied
    assert found.type.name == type_
    source = MODEL[found.name].rows
    assert source is not None
    written = found.tensor.stored.read(0, 4)
    assert np.array_equal(dequantize(written, found.type), source.read(0, 4))
    (warning,) = [d for d in check_plan(plan).diagnostics if d.code == "GP216"]
    assert "holds the same weights in more bytes" in warning.message
    assert warning.fix.safe
    assert warning.cost_bytes > 0
