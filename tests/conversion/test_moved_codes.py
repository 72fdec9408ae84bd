"""Quantized checkpoints through the command line: codes moved, decoded, recorded, verified, made again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from program import run
from quantized_folders import goldens_of, rows_of, tensors_of, with_tokenizer

from ggplan import Model, open_model

PRE = ("--pre", "qwen2")
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
FOLDERS = {"ct-mxfp4a16": "mxfp4", "ct-nvfp4a16": "nvfp4", "modelopt-nvfp4": "nvfp4"}


def ggplan(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bytes_of(model: Model, name: str) -> bytes:
    stored = model[name].stored
    assert stored is not None
    return bytes(stored.read_bytes(0, model[name].n_rows))


def weights_of(model: Model, name: str) -> np.ndarray:
    """Its weights, times the scale of the whole tensor where there is one."""
    tensor = model[name]
    assert tensor.rows is not None
    rows = tensor.rows.read_float32(0, tensor.n_rows).reshape(tensor.shape)
    scale = name.replace(".weight", ".scale")
    if scale not in model:
        return rows
    factors = np.frombuffer(bytes_of(model, scale), "<f4")
    return rows * (factors.reshape(-1, 1, 1) if len(tensor.shape) == 3 else factors)


@pytest.mark.parametrize(("folder", "type_"), FOLDERS.items())
def test_without_a_recipe_the_codes_are_moved(folder: str, type_: str, tmp_path: Path) -> None:
    source, out = with_tokenizer(folder, tmp_path), tmp_path / "out.gguf"
    ggplan("convert", source, out, *PRE)
    made, tensors = open_model(out), tensors_of(folder)
    for kind, module in EXPERTS.items():
        found = weights_of(made, f"blk.0.{kind}.weight")
        assert made[f"blk.0.{kind}.weight"].type.name == type_
        for expert in range(2):
            exact = rows_of(tensors[f"model.layers.0.mlp.experts.{expert}.{module}.weight"])
            np.testing.assert_allclose(found[expert], exact, rtol=0 if type_ == "mxfp4" else 2e-7)
    for name, golden in goldens_of(folder, "llama_cpp_packed").items() if type_ == "nvfp4" else ():
        assert hashlib.sha256(bytes_of(made, name)).hexdigest() == golden["sha256"], name
    record = made.metadata["ggplan.codes"]
    form = type_.upper()
    assert record.decode_items(record.length) == [f"7 tensors in {type_}: moved from {form}"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_was_made_is_verified_and_made_again(folder: str, tmp_path: Path) -> None:
    source, out, recipe = with_tokenizer(folder, tmp_path), tmp_path / "out.gguf", tmp_path / "r.recipe"
    recipe.write_text("ffn_down_exps = q8_0\n_exps = keep\n@default keep | q8_0\n")
    ggplan("convert", source, out, "-r", recipe, *PRE)
    made = open_model(out)
    assert made["blk.0.ffn_down_exps.weight"].type.name == "q8_0"
    assert "blk.0.ffn_down_exps.scale" not in made
    assert ("blk.0.ffn_up_exps.scale" in made) == (FOLDERS[folder] == "nvfp4")
    assert made["token_embd.weight"].type.name == "q8_0"
    assert "every byte is what" in ggplan("reproduce", out, source)
    assert "every byte is what the plan encodes" in ggplan("verify", out, "--against", source, "--exact")
    errors = json.loads(ggplan("verify", out, "--against", source, "--json"))
    worst = {t["name"]: t["relative"] for t in errors["errors"]}
    assert worst["blk.0.ffn_up_exps.weight"] < 1e-6
    assert 1e-4 < worst["blk.0.ffn_down_exps.weight"] < 0.02


def test_plan_shows_what_becomes_of_each_tensor(tmp_path: Path) -> None:
    source, recipe = with_tokenizer("modelopt-nvfp4", tmp_path), tmp_path / "r.recipe"
    recipe.write_text("attn_q = q4_0\n@default keep\n")
    text = ggplan("plan", source, "-r", recipe, "--tensors", *PRE)
    assert "6 tensors in nvfp4: moved from NVFP4" in text
    assert "1 tensor in q4_0: NVFP4, encoded anew" in text
    assert any("ffn_up_exps.weight" in line and "moved from NVFP4" in line for line in text.split("\n"))
    plan = json.loads(ggplan("plan", source, "-r", recipe, "--json", *PRE))
    outcomes = {t["name"]: t["codes"] for t in plan["tensors"]}
    assert outcomes["blk.0.attn_q.weight"] == "NVFP4, encoded anew"
    assert outcomes["blk.0.attn_k.weight"] == "moved from NVFP4"
    assert outcomes["output.weight"] is None
    assert {"outcome": "NVFP4, encoded anew", "type": "q4_0", "tensors": 1, "bytes": 9216} in plan["codes"]
    assert [d["code"] for d in plan["diagnostics"] if d["severity"] == "warning"] == ["GP216"]


def test_an_inventory_of_it_is_planned_to_the_byte(tmp_path: Path) -> None:
    source, recipe = with_tokenizer("modelopt-nvfp4", tmp_path), tmp_path / "r.recipe"
    recipe.write_text("attn_q = q8_0\n@default keep\n")
    inventory = tmp_path / "i.json"
    inventory.write_text(ggplan("inspect", source, "--json", *PRE))
    plans = [json.loads(ggplan("plan", model, "-r", recipe, "--json", *PRE)) for model in (source, inventory)]
    ours, theirs = ([(t["name"], t["type"], t["offset"]) for t in plan["tensors"]] for plan in plans)
    assert ours == theirs
    assert plans[0]["codes"] == plans[1]["codes"]
    assert "7 tensors in nvfp4: moved from NVFP4" in ggplan("inspect", inventory)


@pytest.mark.parametrize(
    "codes", [3, {"form": 1}, {"form": "x", "decoded": "q9", "why_decoded": ""},
              {"form": "x", "decoded": "bf16", "why_decoded": "", "companions": [{"name": 1}]}],
)  # fmt: skip
def test_an_inventory_with_impossible_codes_is_refused(codes: object, tmp_path: Path) -> None:
    tensor = {"name": "output.weight", "shape": [4, 64], "type": "q4_0", "stored_as": "int4", "codes": codes}
    path = tmp_path / "i.json"
    path.write_text(json.dumps({"schema": "ggplan/inventory@1", "tensors": [tensor]}))
    done = run("inspect", path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().split("\n")) <= 2


def test_an_export_says_that_the_other_tool_encodes_anew(tmp_path: Path) -> None:
    source, recipe = with_tokenizer("ct-mxfp4a16", tmp_path), tmp_path / "r.recipe"
    recipe.write_text("@default keep\n")
    done = run("rules", "export", recipe, "--dialect", "llama-quantize", "-m", source)
    assert done.returncode == 0
    assert "7 tensors have the types of the codes that `ggplan convert` moves" in done.stderr


def test_diff_finds_no_difference_between_a_checkpoint_and_what_was_moved_from_it(tmp_path: Path) -> None:
    source, out = with_tokenizer("modelopt-nvfp4", tmp_path), tmp_path / "out.gguf"
    ggplan("convert", source, out, *PRE)
    done = run("diff", source, out)
    assert done.returncode == 0, done.stdout


def test_an_imatrix_is_not_asked_for_codes_that_are_moved(tmp_path: Path) -> None:
    source, recipe = with_tokenizer("modelopt-nvfp4", tmp_path), tmp_path / "r.recipe"
    recipe.write_text("@default keep | q4_K | q8_0\n")
    done = run("plan", source, "-r", recipe, *PRE)
    assert "imatrix" not in done.stderr


def test_diff_knows_that_a_scale_of_one_has_no_tensor(tmp_path: Path) -> None:
    source, out = with_tokenizer("modelopt-nvfp4", tmp_path), tmp_path / "out.gguf"
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    scale = json.loads(data[8 : 8 + size])["model.layers.0.self_attn.q_proj.weight_scale_2"]
    at = 8 + size + scale["data_offsets"][0]
    data[at : at + 4] = np.float32(1).tobytes()
    path.write_bytes(data)
    ggplan("convert", source, out, *PRE)
    assert "blk.0.attn_q.scale" not in open_model(out)
    done = run("diff", source, out)
    assert done.returncode == 0, done.stdout
