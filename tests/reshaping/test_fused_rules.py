"""Rules for parts that meet fused tensors, and rules for fused tensors that meet their parts."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from program import run

PARTS = ("attn_q", "attn_k", "attn_v")


def model_of(path: Path, *kinds: str, dense: bool = False) -> Path:
    """A file of two layers with matrices of these kinds; a dense one has gate and up in `ffn_up`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    for layer in range(2):
        for kind in kinds:
            writer.add_tensor(f"blk.{layer}.{kind}.weight", np.ones((64, 64), np.float32))
        if dense:
            writer.add_tensor(f"blk.{layer}.ffn_up.weight", np.ones((128, 64), np.float32))
            writer.add_tensor(f"blk.{layer}.ffn_down.weight", np.ones((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def types_and_codes(model: Path, text: str) -> tuple[dict[str, str], list[str]]:
    """The types of layer 0 by kind, and the codes of findings about other forms."""
    recipe = model.with_suffix(".recipe")
    recipe.write_text(text)
    plan = json.loads(run("plan", model, "-r", recipe, "--json").stdout)
    types = {t["name"].split(".")[2]: t["type"] for t in plan["tensors"] if t["name"].startswith("blk.0.")}
    return types, [d["code"] for d in plan["diagnostics"] if d["code"] in ("GP218", "GP219", "GP101")]


@pytest.mark.parametrize(
    ("text", "type_", "codes"),
    [
        # Rules for the parts alone: one type, several, some parts only.
        (r"attn_(q|k|v)\.weight = q5_0", "q5_0", ["GP218"]),
        ("attn_q\\.weight = q4_0\nattn_k\\.weight = q4_0\nattn_v\\.weight = q8_0", "q8_0", ["GP219"]),
        (r"attn_v\.weight = q8_0", "q8_0", ["GP218"]),
        ("attn_v\\.weight = q4_0\n@default q8_0", "q8_0", ["GP219"]),
        ("attn_[qkv]\\.weight = q4_0\n.* = q8_0", "q4_0", ["GP218"]),
        # A rule that is found in the fused name holds as it always did.
        ("attn_q = q4_0\n.* = q8_0", "q4_0", []),
        (".* = q5_0\nattn_k\\.weight = q8_0", "q5_0", []),
        # One that names the fused tensor shuts out those of the parts.
        ("attn_[qkv]\\.weight = q4_0\nattn_qkv = q8_0", "q8_0", ["GP101"]),
    ],
)
def test_rules_for_parts_meet_a_fused_tensor(tmp_path: Path, text: str, type_: str, codes: list[str]) -> None:
    model = model_of(tmp_path / "fused.gguf", "attn_qkv")
    assert types_and_codes(model, text + "\n") == ({"attn_qkv": type_}, codes)


@pytest.mark.parametrize(
    ("text", "types", "codes"),
    [
        ("attn_qkv = q4_0\n.* = q8_0", "q4_0 q4_0 q4_0", ["GP218"]),
        # An unanchored `attn_q` is also found in `attn_qkv`, but means q.
        ("attn_q = q4_0\n.* = q8_0", "q4_0 q8_0 q8_0", []),
        # A rule that knows the part is for it alone, and the others keep to the fused name's.
        ("attn_qkv = q4_0\nattn_k\\.weight = q5_0\n.* = q8_0", "q4_0 q5_0 q4_0", ["GP218"]),
    ],
)
def test_rules_for_a_fused_tensor_meet_its_parts(
    tmp_path: Path, text: str, types: str, codes: list[str]
) -> None:
    model = model_of(tmp_path / "apart.gguf", *PARTS)
    assert types_and_codes(model, text + "\n") == (dict(zip(PARTS, types.split(), strict=True)), codes)


def test_a_model_with_both_forms_is_left_alone(tmp_path: Path) -> None:
    model = model_of(tmp_path / "both.gguf", "attn_qkv", *PARTS)
    types, codes = types_and_codes(model, "attn_[qkv]\\.weight = q4_0\n@default q8_0\n")
    assert types == {"attn_qkv": "q8_0", **dict.fromkeys(PARTS, "q4_0")}
    assert codes == []


def test_gate_and_up_of_a_dense_network_in_one(tmp_path: Path) -> None:
    model = model_of(tmp_path / "dense.gguf", dense=True)
    types, codes = types_and_codes(model, "ffn_gate\\. = q8_0\nffn_up = q4_0\nffn_down = q5_0\n")
    assert (types, codes) == ({"ffn_up": "q8_0", "ffn_down": "q5_0"}, ["GP219"])


def test_explain_tells_what_the_rules_ask_for(tmp_path: Path) -> None:
    model = model_of(tmp_path / "fused.gguf", "attn_qkv")
    (tmp_path / "my.recipe").write_text("attn_q\\.weight = q4_0\nattn_[kv]\\.weight = q8_0\n")
    done = run("rules", "explain", "blk.1.attn_qkv.weight", "-r", tmp_path / "my.recipe", "-m", model)
    assert done.returncode == 0
    assert "asks for fewer bits" in done.stdout
    told = "q4_0 of blk.1.attn_q.weight, q8_0 of blk.1.attn_k.weight, q8_0 of blk.1.attn_v.weight"
    assert f"the model has it in another form; the rules ask for {told}" in done.stdout
