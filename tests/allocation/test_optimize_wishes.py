"""`ggplan optimize`: what is asked for in vain is refused, and what is taken of this machine is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from program import run

import ggplan
from ggplan.errors import PlanError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gate,upp", "no kind of tensor has the harmonised word upp"),
        ("none,gate", "no kind of tensor has the harmonised word none"),
        ("gate", "nothing is harmonised with gate alone"),
    ],
)
def test_harmonised_words_without_effect_are_refused(words: str, message: str) -> None:
    done = run("optimize", "Qwen3-8B", "--bpw", "4.5", "--harmonise", words)
    assert done.returncode == 1
    assert message in done.stderr
    model = ggplan.open_model("Qwen3-8B")
    options = ggplan.OptimizeOptions(bpw=4.5, harmonised=(tuple(words.split(",")),))
    with pytest.raises(PlanError, match=message):
        ggplan.optimize(model, options)


def test_the_default_of_harmonise_needs_neither_gate_nor_up() -> None:
    names = Path(ggplan.__file__).parent / "demo_model"
    assert ggplan.optimize(ggplan.open_model(names), ggplan.OptimizeOptions(bpw=5)).groups


@pytest.mark.parametrize("option", ["--bpw", "--max-kld", "--min-tps"])
@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_numbers_that_are_none_are_wrong_usage(option: str, value: str) -> None:
    done = run("optimize", "Qwen3-8B", option, value)
    assert done.returncode == 2
    assert option in done.stderr


def test_a_folder_that_is_not_there_is_named_before_anything_is_done(tmp_path: Path) -> None:
    output = tmp_path / "nowhere" / "my.recipe"
    done = run("optimize", "Qwen3-8B", "--bpw", "4.5", "-o", output)
    assert done.returncode == 1
    assert f"there is no folder {output.parent}" in done.stderr
    assert ".ggplan-" not in done.stderr


def test_an_unknown_engine_is_told_which_there_are() -> None:
    done = run("optimize", "Qwen3-8B", "--bpw", "4.5", "--engine", "vllm")
    assert done.returncode == 2
    assert "vllm" in done.stderr
    assert "llama.cpp or ik_llama.cpp" in done.stderr


def test_what_is_taken_of_this_machine_is_told() -> None:
    done = run("optimize", "Qwen3-8B", "--vram", "8G", "-c", "4k", "--json")
    assert done.returncode == 0, done.stderr
    assert "--ram states another. Layers stay on the GPUs with --gpu-layers 99" in done.stderr


def test_with_all_layers_on_the_gpu_no_other_place_is_possible() -> None:
    wishes = ("--vram", "8G", "--ram", "8G", "-c", "4k", "--gpu-layers", "99", "--bands", "free")
    done = run("optimize", "Qwen3-8B", *wishes, "--json", "-q")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert max(found["gap"], found["gap_anywhere"]) < 0.005
    assert "@assert fits(vram=8G, ram=8G, ctx=4k, ub=512)" in found["recipe"]
    assert any("not how many layers are on the GPUs" in note for note in found["notes"])


def test_the_table_of_from_is_as_wide_as_the_terminal() -> None:
    done = run("optimize", "GLM-4.5-Air", "--from", "Q4_K_M", "-q", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("Q4_K_M: ")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert "before" in done.stdout
    assert "after" in done.stdout


@pytest.mark.parametrize("types", [("bf16",), ("q4_K", "f16"), ("q4_K", "q6_K"), ("q4_K", "q8_0", "f16")])
def test_blocks_that_draft_get_the_least_type_that_is_named_and_no_less_than_q8_0(
    types: tuple[str, ...],
) -> None:
    options = ggplan.OptimizeOptions(bpw=16.5, types=types)
    plan = ggplan.optimize(ggplan.open_model("GLM-4.5-Air"), options).plan
    drafts = {t.type.name for t in plan.tensors if t.name.startswith("blk.46.") and len(t.tensor.shape) > 1}
    wanted = {("bf16",): "bf16", ("q4_K", "f16"): "f16"}.get(types, "q8_0")
    assert drafts - {"f32"} == {wanted}


def test_a_recipe_of_one_float_type_is_not_made_smaller_where_it_drafts() -> None:
    model = ggplan.open_model("GLM-4.5-Air")
    found = ggplan.improve(model, ggplan.parse_recipe("@recipe 1\n@default bf16\n", "all.recipe"))
    assert found.answer.plan.tensor_bytes == found.before.plan.tensor_bytes
    # Of one type alone there is nothing to choose, and no bytes to spare for the text of a recipe.
    uniform = ggplan.parse_recipe("@recipe 1\n@default q4_K\n", "all.recipe")
    found = ggplan.improve(ggplan.open_model("Qwen3-8B"), uniform)
    assert found.answer.plan.tensor_bytes == found.before.plan.tensor_bytes
    assert found.answer.plan.file_bytes - found.before.plan.file_bytes < 1 << 14


def test_a_source_that_is_quantized_and_kept_is_said_to_be() -> None:
    answer = ggplan.optimize(ggplan.open_model("gpt-oss-20b"), ggplan.OptimizeOptions(bpw=9))
    assert "# Source          quantized: what that has lost is not counted" in answer.recipe.text


def test_tied_embeddings_are_said_to_be_the_output_too() -> None:
    model = ggplan.open_model("Qwen3-8B")
    tied = replace(model, tensors=tuple(t for t in model.tensors if t.name != "output.weight"))
    text = ggplan.optimize(tied, ggplan.OptimizeOptions(bpw=4.5)).recipe.text
    assert "# Tied embeddings are the output matrix too" in text
    assert "looked up" not in text
    assert "looked up" in ggplan.optimize(model, ggplan.OptimizeOptions(bpw=4.5)).recipe.text
