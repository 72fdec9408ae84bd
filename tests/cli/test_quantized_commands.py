"""What commands say of a checkpoint of integers: which codes are moved, which are decoded, and why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from program import run
from quantized_folders import Tensors, edited, tensors_of

sys.path.insert(0, str(Path(__file__).parent.parent / "arch"))

from test_quantized_sources import write, write_pair

from ggplan import open_model

PRE = ("--pre", "glm4")
ODD = "model.layers.1.self_attn.q_proj.weight_scale"


def ggplan(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_odd_scale(folder: Path) -> None:
    """Scales in float32, and one of them of ODD so small that float16 rounds it."""
    path = folder / "model-99.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    scales = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        start, stop = entry["data_offsets"]
        values = np.frombuffer(data[8 + size + start : 8 + size + stop], "<f2").astype("<f4")
        scales[name] = values.reshape(entry["shape"])
    scales[ODD][0, 0] = 3.3e-7
    write(path, scales)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """int4 in groups of 32, a scale of which no float16 holds."""
    folder = write_pair(tmp_path, "llama", "compressed-tensors")[0]
    with_odd_scale(folder)
    return folder


def test_a_scale_that_is_not_held_is_seen_by_every_command(source: Path, tmp_path: Path) -> None:
    kept, out, recipe = tmp_path / "kept.gguf", tmp_path / "out.gguf", tmp_path / "r.recipe"
    assert "1 tensor in bf16: decoded: q4_0 does not hold a scale of it exactly" in ggplan("inspect", source)
    ggplan("convert", source, kept, *PRE)
    types = {t.name: t.type.name for t in open_model(kept).tensors}
    assert types["blk.1.attn_q.weight"] == "bf16"
    assert types["blk.1.attn_k.weight"] == "q4_0"
    listed = json.loads(ggplan("inspect", source, "--json"))
    assert {t["name"]: t["type"] for t in listed["tensors"]} == types
    recipe.write_text(ggplan("rules", "from", source))
    ggplan("convert", source, out, "-r", recipe, *PRE)
    assert {t.name: t.type.name for t in open_model(out).tensors} == types
    assert run("diff", source, out).returncode == 0


def test_codes_encoded_anew_in_4_bits_are_warned_about(source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.recipe"
    recipe.write_text("attn_q = q4_0\n@default keep\n")
    text = run("rules", "check", recipe, "-m", source).stdout
    assert "GP216" in text
    assert (
        "`blk.1.attn_q.weight`: int4 group 32 in the source, decoded (q4_0 does not hold a scale of it"
        in text
    )
    assert "1 tensor in q4_0: int4 group 32, decoded (" in ggplan("plan", source, "-r", recipe)


def test_convert_tells_what_became_of_the_codes(source: Path, tmp_path: Path) -> None:
    first, *rest = ggplan("convert", source, tmp_path / "out.gguf", *PRE).splitlines()
    assert first.startswith("wrote ")
    decoded, moved = sorted(rest)
    assert "rounded to bf16 where it is not exact" in decoded
    assert "(blk.1.attn_q.weight: " in decoded
    assert "3.3000000598804036e-07" in decoded
    assert "in q4_0: moved from int4" in moved
    quiet = ggplan("convert", source, tmp_path / "quiet.gguf", "-q", *PRE)
    assert quiet == ""
    result = json.loads(ggplan("convert", source, tmp_path / "json.gguf", "--json", *PRE))
    assert [(c["type"], c["tensors"]) for c in result["codes"]] == [("q4_0", 13), ("bf16", 1)]


@pytest.mark.parametrize(
    "name", ["integers/gptq-int4-g64-asym-desc", "integers/ct-pack-int4-g64-gidx", "floats/bnb-nf4-nested",
             "floats/hqq-int4-g64-axis1", "integers/awq-gemm-g128", "modelopt-nvfp4"],
)  # fmt: skip
def test_the_bits_of_codes_are_known(name: str) -> None:
    found = {tensor.bits for tensor in tensors_of(name).values() if tensor.is_quantized}
    assert found == {4.0}


def test_an_inventory_knows_the_bits_of_codes(source: Path, tmp_path: Path) -> None:
    inventory, recipe = tmp_path / "i.json", tmp_path / "r.recipe"
    inventory.write_text(ggplan("inspect", source, "--json"))
    recipe.write_text("attn_q = q4_0\n@default keep\n")
    assert "decoded (q4_0 does not hold" in run("rules", "check", recipe, "-m", inventory).stdout
    values = json.loads(inventory.read_text())
    next(t["codes"] for t in values["tensors"] if "codes" in t)["bits"] = -1
    inventory.write_text(json.dumps(values))
    done = run("inspect", inventory)
    assert done.returncode == 1
    assert "`bits`" in done.stderr


def test_scales_of_a_cache_are_left_out_with_a_note(tmp_path: Path) -> None:
    source = write_pair(tmp_path, "llama", "compressed-tensors")[0]
    write(source / "model-97.safetensors", {
        "model.layers.1.self_attn.k_scale": np.ones(1, "f4"),
        "model.layers.1.mlp.up_proj.k_scale": np.ones(1, "f4"),
    })  # fmt: skip
    done = run("plan", source, *PRE)
    assert done.returncode == 0, done.stderr
    assert "no weights depend on 2 tensors that have scales of activations or of a cache" in done.stderr
    assert "model.layers.1.mlp.up_proj.k_scale" in done.stderr


def test_nvfp4_of_experts_in_one_tensor_is_refused_by_name(tmp_path: Path) -> None:
    """As transformers 5 keeps experts; in which order its columns are no published file tells."""

    def fuse(tensors: Tensors) -> None:
        for part, ending in (("weight", ""), ("weight_scale", "_weight_scale")):
            names = [name for name in tensors if ".experts." in name and name.endswith(f"down_proj.{part}")]
            values = [tensors.pop(name) for name in names]
            whole = names[0].partition(".experts.")[0] + f".experts.down_proj{ending}"
            tensors[whole] = [values[0][0], [len(values), *values[0][1]], b"".join(v[2] for v in values)]

    done = run("plan", edited("modelopt-nvfp4", tmp_path, fuse), "--pre", "qwen2")
    assert done.returncode == 1
    assert (
        "experts.down_proj' is NVFP4 of all experts in one tensor, which ggplan does not read" in done.stderr
    )
    assert len(done.stderr.splitlines()) == 2
