"""The type that integers are moved to is that of their zero points: every command says the same."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from program import run

sys.path.insert(0, str(Path(__file__).parent.parent / "arch"))
sys.path.insert(0, str(Path(__file__).parent.parent / "sources"))

from packing import packed
from quantizing import quantized_folder
from test_quantized_sources import write
from tiny_checkpoints import read_case, write_case

import ggplan
from ggplan import open_model
from ggplan.quants import dequantize

GROUP = 32
PRE = ("--pre", "glm4")
GPTQ = {"quant_method": "gptq", "group_size": GROUP, "desc_act": False, "checkpoint_format": "gptq"}
ROUND = {"quant_method": "auto-round", "group_size": GROUP, "sym": True, "data_type": "int"}
ROUND |= {"packing_format": "auto_round:auto_gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
ODD = "layers.1.mlp.down_proj"


def compressed(bits: int, *, symmetric: bool) -> dict:
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group",
        "group_size": GROUP,
    }
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "version": "0.18.0",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip


def module_of(config: dict, codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, bits: int) -> dict:
    """The tensors of a module, by the end of their names, as the config's library packs them."""
    if config["quant_method"] == "compressed-tensors":
        found = {
            "weight_packed": packed(codes, bits, "dense"), "weight_scale": scales.astype("f4"),
            "weight_shape": np.array(codes.shape, np.int64),
        }  # fmt: skip
        if not config["config_groups"]["group_0"]["weights"]["symmetric"]:
            found["weight_zero_point"] = packed(zeros.T, bits, "dense").T
        return found
    if config["quant_method"] == "awq":
        return {
            "qweight": packed(codes.T, bits, "interleaved"), "qzeros": packed(zeros.T, bits, "interleaved"),
            "scales": scales.T.astype("f2"),
        }  # fmt: skip
    order = {"g_idx": (np.arange(codes.shape[1]) // GROUP).astype("i4")} if config.get("desc_act") else {}
    return order | {
        "qweight": packed(codes, bits, "dense").T, "qzeros": packed(zeros.T - 1, bits, "dense"),
        "scales": scales.T.astype("f2"),
    }  # fmt: skip


def folder_of(
    path: Path,
    config: dict,
    bits: int,
    zeros_of: Callable[[str, np.random.Generator], int],
    low: int = 0,
    *,
    scale: float = 0,
) -> dict[str, np.ndarray]:
    """A llama whose layers are integers, written to a folder; the weights by name."""
    spec = read_case("llama")
    rng = np.random.default_rng(3)
    integers: dict[str, np.ndarray] = {}
    plain: dict[str, np.ndarray] = {}
    for shard in spec["shards"].values():
        for name in [name for name in shard if name.endswith("_proj.weight")]:
            n_rows, n_columns = shard.pop(name)[1]
            codes = rng.integers(low, (1 << bits) - low, (n_rows, n_columns))
            codes[0, :2] = low, (1 << bits) - 1 - low
            zeros = np.array([zeros_of(name, rng) for _ in range(n_rows * n_columns // GROUP)])
            zeros = zeros.reshape(n_rows, -1)
            scales = rng.integers(1, 100, zeros.shape) / np.float32(4096)
            if scale:
                scales[0, 0] = scale
            module = name.removesuffix(".weight")
            for part, values in module_of(config, codes, zeros, scales, bits).items():
                integers[f"{module}.{part}"] = np.ascontiguousarray(values)
            levels = codes - zeros.repeat(GROUP, axis=1)
            plain[name] = (levels * scales.repeat(GROUP, axis=1)).astype(np.float32)
    spec["config"]["quantization_config"] = config
    write_case(path, spec)
    (path / "model.safetensors.index.json").unlink(missing_ok=True)
    for i, old in enumerate(sorted(spec["shards"])):
        (path / old).rename(path / f"model-{i:02d}.safetensors")
    write(path / "model-99.safetensors", integers)
    return plain


def types_in(tensors: list[dict]) -> dict[str, str]:
    return {t["name"]: t["type"] for t in tensors if t["name"].startswith("blk.") and "norm" not in t["name"]}


def shown(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def middle(bits: int) -> Callable:
    return lambda name, rng: 1 << (bits - 1)


def odd_alone(bits: int) -> Callable:
    return lambda name, rng: int(rng.integers(1, 1 << bits)) if ODD in name else 1 << (bits - 1)


def any_of(low: int, high: int) -> Callable:
    return lambda name, rng: int(rng.integers(low, high + 1))


EXTRA = {"extra_config": {f"model.{ODD}": {"sym": False}}}
CASES = {
    "gptq-8-without-sym": ({**GPTQ, "bits": 8}, 8, middle(8), 0, "q8_0", "q8_0"),
    "gptq-4-without-sym": ({**GPTQ, "bits": 4}, 4, middle(4), 0, "q4_0", "q4_0"),
    "gptq-4-symmetric-by-its-config": ({**GPTQ, "bits": 4, "sym": True}, 4, any_of(3, 12), 0, "q5_0", "q5_0"),
    "gptq-4-in-order-after-all": ({**GPTQ, "bits": 4, "desc_act": True}, 4, middle(4), 0, "q4_0", "q4_0"),
    "round-8-one-asymmetric": ({**ROUND, "bits": 8, **EXTRA}, 8, odd_alone(8), 0, "q8_0", "bf16"),
    "round-4-one-asymmetric": ({**ROUND, "bits": 4, **EXTRA}, 4, odd_alone(4), 0, "q4_0", "q5_0"),
    "ct-8-asymmetric": (compressed(8, symmetric=False), 8, middle(8), 0, "q8_0", "q8_0"),
    "ct-8-that-fits": (compressed(8, symmetric=False), 8, any_of(118, 138), 10, "q8_0", "q8_0"),
    "ct-8-that-does-not": (compressed(8, symmetric=False), 8, any_of(100, 138), 0, "bf16", "bf16"),
    "awq-middle": (AWQ, 4, middle(4), 0, "q4_0", "q4_0"),
    "awq": (AWQ, 4, any_of(3, 12), 0, "q5_0", "q5_0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_zero_points_decide_in_every_command(case: str, tmp_path: Path) -> None:
    config, bits, zeros_of, low, type_, of_odd = CASES[case]
    source, made, recipe = tmp_path / "source", tmp_path / "made.gguf", tmp_path / "r.recipe"
    plain = folder_of(source, config, bits, zeros_of, low)
    found = types_in(json.loads(shown("plan", source, "--json", *PRE))["tensors"])
    assert {t for name, t in found.items() if name != "blk.1.ffn_down.weight"} == {type_}
    assert found["blk.1.ffn_down.weight"] == of_odd
    assert types_in(json.loads(shown("inspect", source, "--json"))["tensors"]) == found
    recipe.write_text(shown("rules", "from", source))
    shown("convert", source, made, "-r", recipe, *PRE)
    tensors = {t.name: t for t in open_model(made).tensors}
    assert {name: tensors[name].type.name for name in found} == found
    assert run("diff", source, made).returncode == 0
    down = tensors["blk.1.ffn_down.weight"]
    assert down.stored is not None
    if of_odd != "bf16":
        weights = dequantize(down.stored.read(0, down.n_rows), down.type)
        assert np.array_equal(weights, plain[f"model.{ODD}.weight"])


def test_why_a_tensor_is_wider_or_decoded_is_said(tmp_path: Path) -> None:
    config, bits, zeros_of, low, *_ = CASES["round-8-one-asymmetric"]
    folder_of(tmp_path / "a", config, bits, zeros_of, low)
    text = shown("plan", tmp_path / "a", *PRE)
    assert "1 tensor in bf16: decoded: its integers are outside of q8_0's -128 to 127" in text
    config, bits, zeros_of, low, *_ = CASES["gptq-4-symmetric-by-its-config"]
    folder_of(tmp_path / "b", config, bits, zeros_of, low)
    text = shown("plan", tmp_path / "b", *PRE)
    assert "in q5_0: moved from GPTQ int4 group 32, which is not symmetric and needs q5_0" in text
    told = {
        t["codes"]
        for t in json.loads(shown("plan", tmp_path / "b", "--json", *PRE))["tensors"]
        if t.get("codes")
    }
    assert any("has zero points 3 to 12" in text for text in told)


def test_headers_alone_give_what_the_config_says(tmp_path: Path) -> None:
    config, bits, zeros_of, low, *_ = CASES["gptq-4-symmetric-by-its-config"]
    source = tmp_path / "source"
    folder_of(source, config, bits, zeros_of, low)
    whole = source / "model-99.safetensors"
    size = int.from_bytes(whole.read_bytes()[:8], "little")
    whole.write_bytes(whole.read_bytes()[: size + 8])
    done = run("plan", source, "--header-only", "--json", *PRE)
    assert done.returncode == 0, done.stderr
    assert set(types_in(json.loads(done.stdout)["tensors"]).values()) == {"q4_0"}
    shutil.rmtree(source)


def test_q4_1_takes_symmetric_codes_as_they_are(tmp_path: Path) -> None:
    config, bits, zeros_of, low, *_ = CASES["gptq-4-without-sym"]
    source, made, recipe = tmp_path / "source", tmp_path / "made.gguf", tmp_path / "r.recipe"
    plain = folder_of(source, config, bits, zeros_of, low)
    recipe.write_text("down_proj|ffn_down = q4_1\n@default keep\n")
    shown("convert", source, made, "-r", recipe, *PRE)
    down = {t.name: t for t in open_model(made).tensors}["blk.1.ffn_down.weight"]
    assert down.type.name == "q4_1"
    assert down.stored is not None
    weights = dequantize(down.stored.read(0, down.n_rows), down.type)
    assert np.array_equal(weights, plain[f"model.{ODD}.weight"])


@pytest.mark.parametrize("case", ["awq", "gptq-4-without-sym"])
def test_a_scale_that_is_too_large_for_q4_1_is_found_before_anything_is_written(
    case: str, tmp_path: Path
) -> None:
    config, bits, zeros_of, low, *_ = CASES[case]
    source, recipe = tmp_path / "source", tmp_path / "r.recipe"
    folder_of(source, config, bits, zeros_of, low, scale=9000)
    recipe.write_text("ffn_down = keep(q4_1)\n@default keep\n")
    found = types_in(json.loads(shown("plan", source, "-r", recipe, "--json", *PRE))["tensors"])
    assert set(found.values()) == {"q5_0" if case == "awq" else "q4_0"}
    assert "a scale of which is too large for q4_1" in shown("plan", source, "-r", recipe, *PRE)
    shown("convert", source, tmp_path / "kept.gguf", "-r", recipe, *PRE)
    recipe.write_text("ffn_down = q4_1\n@default keep\n")  # asked for, and so encoded anew
    assert "GP216" in run("rules", "check", recipe, "-m", source).stdout
    assert "encoded anew" in shown("plan", source, "-r", recipe, *PRE)
    done = run("convert", source, tmp_path / "again.gguf", "-r", recipe, *PRE)
    assert done.returncode == 1
    assert "too large for q4_1" in done.stderr  # the weights themselves are


def test_a_wider_type_than_that_of_the_codes_is_told_by_their_form(tmp_path: Path) -> None:
    config, bits, zeros_of, low, *_ = CASES["gptq-4-without-sym"]
    source, recipe = tmp_path / "source", tmp_path / "r.recipe"
    folder_of(source, config, bits, zeros_of, low)
    recipe.write_text("ffn_down = bf16\n@default keep\n")
    text = run("rules", "check", recipe, "-m", source).stdout
    assert "GPTQ int4 group 32 in the source, written as bf16" in text
    assert "more bits say no more: write `keep`" in text


def test_fused_integers_take_the_widest_type_of_their_parts(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made.gguf"
    config, bits, *_ = CASES["awq"]
    plain = folder_of(
        source, config, bits, lambda name, rng: int(rng.integers(3, 13)) if "k_proj" in name else 8
    )
    shown("convert", source, made, "--fuse", "qkv", *PRE)
    tensors = {t.name: t for t in open_model(made).tensors}
    qkv, down = tensors["blk.1.attn_qkv.weight"], tensors["blk.1.ffn_down.weight"]
    assert (qkv.type.name, down.type.name) == ("q5_0", "q4_0")
    assert qkv.stored is not None
    weights = dequantize(qkv.stored.read(0, qkv.n_rows), qkv.type)
    value = plain["model.layers.1.self_attn.v_proj.weight"]
    assert np.array_equal(weights[-len(value) :], value)


def test_integers_that_only_their_data_lets_move_are_fused_before_it_is_read(tmp_path: Path) -> None:
    config, bits, zeros_of, low, *_ = CASES["ct-8-that-fits"]
    folder_of(tmp_path / "source", config, bits, zeros_of, low)
    found = json.loads(shown("plan", tmp_path / "source", "--fuse", "qkv", "--json", *PRE))["tensors"]
    assert types_in(found)["blk.1.attn_qkv.weight"] == "q8_0"


def test_one_asymmetric_expert_of_many_is_named_and_widens_no_other_tensor(tmp_path: Path) -> None:
    source, kept = tmp_path / "source", tmp_path / "kept.txt"
    quantized_folder(Path(ggplan.__file__).parent / "demo_model", source, "gptq")
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start, _ = json.loads(data[8 : 8 + size])["model.layers.1.mlp.experts.5.up_proj.qzeros"]["data_offsets"]
    data[8 + size + start] = 0x73  # zero points of 4 and 8
    path.write_bytes(data)
    tensors = {t["name"]: t for t in json.loads(shown("plan", source, "--json", *PRE))["tensors"]}
    assert tensors["blk.1.ffn_up_exps.weight"]["type"] == "q5_0"
    assert tensors["blk.2.ffn_up_exps.weight"]["type"] == "q4_0"
    assert (
        "11 of 12 experts widened from q4_0 to q5_0, which expert 5 needs"
        in (tensors["blk.1.ffn_up_exps.weight"]["codes"])
    )
    assert "has zero points 4 to 8" in tensors["blk.1.ffn_up_exps.weight"]["codes"]
    assert "which expert 5 needs (blk.1.ffn_up_exps.weight: " in shown("plan", source, *PRE)
    kept.write_text("1: 0-4 6-8\n2: 0-7\n")
    pruned = json.loads(shown("plan", source, "--keep-experts", kept, "--json", *PRE))["tensors"]
    assert types_in(pruned)["blk.1.ffn_up_exps.weight"] == "q4_0"
