"""What is in RAM and on the GPU: one definition for plans, assertions, explanations and recipe headers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ggplan.cli import cli
from ggplan.ggml_types import parse_type
from ggplan.inventories import inventory
from ggplan.linting.case import make_case
from ggplan.linting.rules.gp301_promises import outcomes
from ggplan.metadata import uint32
from ggplan.model import Model, TensorInfo
from ggplan.planning import devices_in, in_memory, make_plan, memory_of
from ggplan.planning.export import plan_json
from ggplan.rules import load_recipe, parse_recipe
from ggplan.rules.library import library

CASES = [(entry.name, f) for entry in library() for f in entry.figures if f.ram is not None]
GIB = 1 << 30


def model_of(*names: str, architecture: str = "glm4moe", **facts: int) -> Model:
    """Tensors of 32 weights each in q8_0, 34 bytes."""
    tensors = tuple(TensorInfo(name, (1, 32), parse_type("q8_0"), "", "q8_0") for name in names)
    metadata = {f"{architecture}.{key}": uint32(value) for key, value in facts.items()}
    return Model(Path("m"), "inventory", architecture, metadata, tensors)


def asserted(model: Model, recipe: str, *promises: str) -> dict[str, str]:
    """What is said to be true of each promise."""
    text = "\n".join(f"@assert size({of}) <= 1 TiB" for of in promises)
    checked = parse_recipe(f"{recipe}\n{text.replace('1 TiB', '1024 GiB')}\n", "r")
    return dict(zip(promises, (o.actual for o in outcomes(make_case(model, checked))), strict=True))


@pytest.mark.parametrize(("name", "figures"), CASES, ids=[f"{name}-{f.model}" for name, f in CASES])
def test_headers_plans_and_assertions_say_the_same(name: str, figures: object) -> None:
    model = inventory(figures.model)  # type: ignore[attr-defined]
    recipe = load_recipe(name)
    plan = make_plan(model, recipe)
    memory = in_memory(plan)
    assert f"{memory.ram / GIB:.1f}" == f"{figures.ram:.1f}"  # type: ignore[attr-defined]
    assert f"{memory.gpu / GIB:.1f}" == f"{figures.gpu:.1f}"  # type: ignore[attr-defined]
    assert memory.ram + memory.gpu + memory.nextn == plan.tensor_bytes
    told = plan_json(plan)["memory"]
    assert told == {
        "ram_bytes": memory.ram,
        "ram_bytes_per_token": memory.ram_per_token,
        "gpu_bytes": memory.gpu,
        "nextn_bytes": memory.nextn,
    }
    promises = parse_recipe(f"@assert size(cpu) == {memory.ram}B\n@assert size(gpu) == {memory.gpu}B\n", "r")
    case = make_case(model, dataclasses.replace(recipe, assertions=promises.assertions, tests=()))
    assert all(outcome.finding is None for outcome in outcomes(case))


def test_glm_4_5_air_under_hq4_k() -> None:
    found = CliRunner().invoke(cli, ["plan", "GLM-4.5-Air", "-r", "glm4moe/hq4_k"])
    lines = [
        "RAM 68.8 GiB: routed experts and lookup tables",
        "GPU 7.80 GiB: all else, nextn 4.69 GiB not loaded",
    ]
    assert "\n" + "\n".join([*lines, "4.23 GiB of RAM read per token: "]) in found.output
    listed = CliRunner().invoke(cli, ["rules", "list", "GLM-4.5-Air", "--json"])
    (entry,) = [r for r in json.loads(listed.output)["recipes"] if r["name"] == "glm4moe/hq4_k"]
    assert (entry["models"][0]["ram_gib"], entry["models"][0]["gpu_gib"]) == (68.8, 7.8)


def test_the_blocks_that_are_not_loaded_are_in_neither() -> None:
    model = model_of(
        "token_embd.weight", "output.weight", "output_norm.weight",
        "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.0.ffn_up_exps.bias",
        "blk.0.ffn_gate_inp.weight", "blk.1.attn_q.weight", "blk.1.ffn_up_exps.weight",
        "blk.1.nextn.eh_proj.weight",
        block_count=2, nextn_predict_layers=1, expert_count=8, expert_used_count=2,
    )  # fmt: skip
    devices = devices_in(model)
    assert [name for name, where in devices.items() if not where] == [
        name for name in devices if name.startswith("blk.1.")
    ]
    assert {name for name, where in devices.items() if where == ("cpu",)} == {
        "token_embd.weight", "blk.0.ffn_up_exps.weight", "blk.0.ffn_up_exps.bias",
    }  # fmt: skip
    memory = memory_of(model, {t.name: t.n_bytes for t in model.tensors})
    assert (memory.ram, memory.gpu, memory.nextn) == (3 * 34, 4 * 34, 3 * 34)
    assert memory.ram_per_token == 2 * 34 / 4
    assert asserted(model, "@default q8_0", "cpu", "gpu", "nextn") == {
        "cpu": "102 B", "gpu": "136 B", "nextn": "102 B",
    }  # fmt: skip


def test_a_map_without_metadata_knows_its_nextn_blocks_by_their_names() -> None:
    model = model_of(
        "token_embd.weight", "output.weight", "blk.0.ffn_up_exps.weight",
        "blk.1.ffn_up_exps.weight", "blk.1.nextn.eh_proj.weight", architecture="",
    )  # fmt: skip
    memory = memory_of(model, {t.name: t.n_bytes for t in model.tensors})
    assert (memory.ram, memory.gpu, memory.nextn, memory.ram_per_token) == (68, 34, 68, None)


@pytest.mark.parametrize(
    ("names", "ram", "gpu"),
    [
        (("token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight"), 34, 102),  # tied: llama, gemma
        (("token_embd.weight", "token_embd_norm.weight", "blk.0.shortconv.conv.weight"), 34, 102),  # lfm2
        (("token_embd.weight", "output_norm.weight", "output.weight"), 34, 68),
        (("token_embd.weight", "token_embd_norm.weight", "token_types.weight"), 68, 34),  # bert
        (("per_layer_token_embd.weight", "blk.0.proj.weight"), 34, 34),  # gemma-3n
    ],
)
def test_tied_embeddings_are_on_the_gpu_too(names: tuple[str, ...], ram: int, gpu: int) -> None:
    model = model_of(*names)
    memory = memory_of(model, {t.name: t.n_bytes for t in model.tensors})
    assert (memory.ram, memory.gpu, memory.nextn, memory.ram_per_token) == (ram, gpu, 0, None)


@pytest.mark.parametrize(
    ("tensor", "told", "device"),
    [
        ("blk.7.ffn_down_exps.weight", "meant for RAM", "cpu"),
        ("blk.7.attn_q.weight", "meant for GPU", "gpu"),
        ("blk.46.ffn_down_exps.weight", "loaded only to draft tokens", None),
    ],
)
def test_an_explanation_says_the_same(tensor: str, told: str, device: str | None) -> None:
    command = ["rules", "explain", tensor, "-r", "glm4moe/hq4_k", "-m", "GLM-4.5-Air"]
    assert told in CliRunner().invoke(cli, command).output
    assert json.loads(CliRunner().invoke(cli, [*command, "--json"]).output)["device"] == device


def test_what_is_loaded_of_blocks_that_draft() -> None:
    experts, router, head = (
        f"blk.1.{part}" for part in ("ffn_up_exps.weight", "exp_probs_b.bias", "attn_q.weight")
    )
    names = ("blk.0.ffn_up_exps.weight", experts, router, head)
    loaded = {"glm4moe": set(), "glm-dsa": {router}, "deepseek32": {router}, "step35": {experts, router}}
    for architecture, expected in loaded.items():
        facts = {"block_count": 2, "nextn_predict_layers": 1, "expert_count": 4, "expert_used_count": 1}
        model = model_of(*names, architecture=architecture, **facts)
        devices = devices_in(model)
        assert {name for name in names[1:] if devices[name]} == expected, architecture
        assert memory_of(model, dict.fromkeys(names, 400)).ram_per_token == 100  # and no token reads them
