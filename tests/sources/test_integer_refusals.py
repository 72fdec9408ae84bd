"""Integers that contradict themselves or the config: refused in one line with the tensor and numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade_safetensors import bf16, write_safetensors
from packing import packed

from ggplan.errors import CheckpointError
from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors
from ggplan.sources.tensors import CheckpointTensor

ZEROS = np.zeros((8, 64), int)


def compressed(**weights: object) -> dict[str, Any]:
    """A config of compressed-tensors, int4 in groups of 32 but for what is given."""
    own = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, **weights}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": own}},
    }  # fmt: skip


def packed_tensors(**changed: object) -> dict[str, object]:
    """8 x 64 weights of int4 in groups of 32; None takes a tensor away."""
    tensors = {
        "weight_packed": packed(ZEROS, 4, "dense"),
        "weight_scale": bf16(np.ones((8, 2))),
        "weight_shape": np.array([8, 64]),
        **changed,
    }
    return {name: values for name, values in tensors.items() if values is not None}


def gptq_config(**changed: object) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, **changed}


def gptq_tensors(**changed: object) -> dict[str, object]:
    """8 x 64 weights of GPTQ's int4 in groups of 32, zero points of 8 stored as 7."""
    tensors = {
        "qweight": packed(ZEROS, 4, "dense").T,
        "qzeros": packed(np.full((2, 8), 7), 4, "dense"),
        "scales": np.ones((2, 8), np.float16),
        **changed,
    }
    return {name: values for name, values in tensors.items() if values is not None}


def opened(folder: Path, config: dict[str, Any], tensors: dict[str, object]) -> CheckpointTensor:
    write_safetensors(folder / "t.safetensors", {f"m.{name}": values for name, values in tensors.items()})
    joined = join_tensors(read_tensors(folder / "t.safetensors"), QuantizationConfig(folder, config))
    return joined["m.weight"]


@pytest.mark.parametrize(
    ("config", "changed", "said"),
    [
        (compressed(num_bits=8), {}, "'m.weight_packed' has 8 words in a row, 64 weights of 8 bits need 16"),
        (compressed(num_bits=3), {}, "has 8 words in a row, 64 weights of 3 bits need 6 or 7"),
        (compressed(num_bits=12), {}, "'m.weight_packed' holds integers, the config says 12 bits"),
        (compressed(type="float"), {}, "'m.weight_packed' holds integers, but no group of config_groups"),
        (
            compressed(group_size=64), {},
            "'m.weight_scale' has the shape [8, 2], which does not fit weights of shape [8, 64] with scales "
            "by group in groups of 64",
        ),
        (compressed(strategy="channel"), {}, "'m.weight_scale' has the shape [8, 2], which does not fit"),
        (
            compressed(), {"weight_shape": np.array([9, 64])},
            "'m.weight_packed' has [8] rows, its weight_shape says [9]",
        ),
        (compressed(), {"weight_shape": np.array([8, 1 << 40])}, "says the impossible shape [8, 10995"),
        (compressed(), {"weight_shape": np.ones(2, np.float32)}, "'m.weight_shape' is F32 [2], not I64 [2]"),
        (compressed(), {"weight_scale": None}, "the integers 'm.weight_packed' have no scales"),
        (compressed(), {"weight_scale": np.ones((8, 2), np.int32)}, "the scales 'm.weight_scale' are I32"),
        (compressed(symmetric=False), {}, "'m.weight_packed' has no 'm.weight_zero_point'"),
        (
            compressed(symmetric=False), {"weight_zero_point": np.zeros((2, 2), np.int32)},
            "'m.weight_zero_point' has the shape [2, 2], which does not fit scales of shape [8, 2] and 4",
        ),
        (
            compressed(actorder="group"), {"weight_g_idx": np.zeros(32, np.int32)},
            "'m.weight_g_idx' has the shape [32], the weights have 64 columns",
        ),
        (
            {**compressed(), "format": "marlin-24"}, {},
            "marlin-24",
        ),
        (
            {**compressed(), "sparsity_config": {"format": "sparse-24-bitmask"}}, {},
            "stores sparse weights as sparse-24-bitmask",
        ),
    ],
)  # fmt: skip
def test_compressed_tensors(
    config: dict[str, Any], changed: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        opened(tmp_path, config, packed_tensors(**changed))


@pytest.mark.parametrize(
    ("config", "changed", "said"),
    [
        (gptq_config(bits=8), {}, "'m.qzeros' has 1 words in a row, 8 zero points of 8 bits need 2"),
        (gptq_config(group_size=16), {}, "'m.scales' has 2 groups; 64 inputs in groups of 16 make 4"),
        (gptq_config(group_size=-1), {}, "'m.scales' has 2 groups; 64 inputs in groups of 64 make 1"),
        (gptq_config(bits="4"), {}, "config.json gives the impossible bits 4"),
        (gptq_config(bits=9), {}, "impossible bits 9"),
        (gptq_config(group_size=-2), {}, "impossible group_size -2"),
        (
            gptq_config(), {"g_idx": np.zeros(80, np.int32)},
            "'m.qweight' has 8 rows of words, 80 inputs of 4 bits need 10",
        ),
        (gptq_config(), {"g_idx": np.zeros(64, np.float32)}, "the groups of columns 'm.g_idx' are F32"),
        (gptq_config(), {"qzeros": None}, "'m.qweight' has no zero points: there is no 'm.qzeros'"),
        (gptq_config(), {"scales": None}, "'m.qweight' has no scales: there is no 'm.scales'"),
        (
            gptq_config(), {"qweight": packed(ZEROS, 4, "dense").T.astype("i8")},
            "'m.qweight' and its zero points are I64 and I32",
        ),
        (
            gptq_config(), {"qweight": np.zeros((5, 5), np.int32)},
            "'m.qweight' has the shape [5, 5], its zero points [2, 1], its scales [2, 8]: neither GPTQ's",
        ),
        ({"quant_method": "awq", "bits": 4}, {}, "'m.qweight' has the layout of GPTQ, the config says AWQ"),
        ({}, {}, "holds GPTQ tensors, and no config says how their zero points are counted"),
        (
            gptq_config(), {"qweight": np.zeros((3, 8, 8), np.int32)},
            "'m.qzeros' has the shape [2, 1], and is no matrix",
        ),
        (gptq_config(checkpoint_format="marlin"), {}, "marlin"),
        (gptq_config(checkpoint_format="gptq_v2", format="gptq"), {}, "gptq_v2 and format gptq"),
        (gptq_config(bits=5), {}, "5 bits of GPTQ in a format other than gptq_p"),
        (gptq_config(rotation="hadamard"), {}, "rotation hadamard"),
        (gptq_config(adapter={"name": "lora"}), {}, "adapter {'name': 'lora'}"),
        (gptq_config(dynamic={"+:x": {"bits": 8, "lora": 1}}), {}, "in config.json says lora of '+:x'"),
        (gptq_config(dynamic={"+:x": {"format": "gptq_v2"}}), {}, "format gptq_v2 for '+:x'"),
        (gptq_config(spin=1), {}, "says spin, which ggplan does not know"),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4}, {},
            "'m.qweight' has the layout of GPTQ, the config says AWQ",
        ),
        (
            {"quant_method": "auto-round", "data_type": "mx_fp"}, {}, "quantized with data_type mx_fp",
        ),
    ],
)  # fmt: skip
def test_gptq_and_autoround(
    config: dict[str, Any], changed: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        opened(tmp_path, config, gptq_tensors(**changed))


def awq_tensors() -> dict[str, object]:
    return {
        "qweight": packed(ZEROS.T, 4, "interleaved"),
        "qzeros": packed(ZEROS.T[:2], 4, "interleaved"),
        "scales": np.ones((2, 8), np.float16),
    }


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"version": "gemv"}, "'m.qweight' has the layout of AWQ gemm, the config says AWQ gemv"),
        ({"bits": 8}, "'m.qweight' has 1 words in a row, its scales 8: not codes of 8 bits"),
        ({"group_size": 64}, "'m.scales' has 2 groups; 64 inputs in groups of 64 make 1"),
        ({"quant_method": "gptq"}, "'m.qweight' has the layout of AWQ gemm, the config says GPTQ"),
        ({"version": "tiles"}, "version tiles of AWQ, which ggplan does not read"),
    ],
)
def test_awq(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        opened(tmp_path, {"quant_method": "awq", "bits": 4, "group_size": 32, **config}, awq_tensors())


def one_of(value: float) -> np.ndarray:
    scales = np.ones((8, 2), np.float32)
    scales[3, 1] = value
    return scales


@pytest.mark.parametrize(
    ("scales", "of_rows", "of_codes"),
    [
        (one_of(-2.5), "", ""),
        (one_of(0), "", ""),
        (
            one_of(np.inf),
            "'m.weight_scale' has 1 scale that is not finite, the first inf at index 7",
            "the first inf at index 7",
        ),
        (
            one_of(1e6),
            "",
            "'m.weight_scale' has 1 scale that is not exact in float16, the first 1000000.0 at",
        ),
        (one_of(1 / 3), "", "not exact in float16, the first 0.33"),
        (bf16(one_of(1e-9)), "", "not exact in float16"),
        (bf16(one_of(2.0**-24)), "", ""),
    ],
)
def test_scales_that_are_damaged_or_have_no_place_in_a_block(
    scales: object, of_rows: str, of_codes: str, tmp_path: Path
) -> None:
    tensor = opened(tmp_path, compressed(), packed_tensors(weight_scale=scales))
    assert tensor.rows is not None
    assert tensor.codes is not None
    assert of_rows in tensor.rows.fault()
    assert of_codes in tensor.codes.fault()
    assert bool(tensor.rows.fault()) == bool(of_rows)
    assert bool(tensor.codes.fault()) == bool(of_codes)


def test_groups_that_do_not_exist(tmp_path: Path) -> None:
    index = np.arange(64, dtype=np.int32) // 32
    index[5] = 2
    tensor = opened(tmp_path, gptq_config(), gptq_tensors(g_idx=index))
    said = "'m.g_idx' puts column 5 into group 2 of 2"
    assert tensor.rows is not None
    assert said in tensor.rows.fault()
    with pytest.raises(CheckpointError, match=re.escape(said)):
        tensor.rows.read(0, 1)


def test_zero_points_that_bits_do_not_hold(tmp_path: Path) -> None:
    zeros = np.zeros((8, 2), np.int8)
    zeros[7, 1] = 8
    tensor = opened(tmp_path, compressed(symmetric=False), packed_tensors(weight_zero_point=zeros))
    assert tensor.rows is not None
    assert (
        "'m.weight_zero_point' has the zero point 8 at index 15; 4 bits hold -8 to 7" in tensor.rows.fault()
    )


@pytest.mark.parametrize(("stated", "stored", "other"), [("gptq", 8, "gptq_v2"), ("gptq_v2", 7, "gptq")])
def test_symmetric_zero_points_that_are_counted_the_other_way(
    stated: str, stored: int, other: str, tmp_path: Path
) -> None:
    zeros = packed(np.full((2, 8), stored), 4, "dense")
    tensor = opened(tmp_path, gptq_config(checkpoint_format=stated), gptq_tensors(qzeros=zeros))
    assert tensor.rows is not None
    assert f"stored as {other} does it, and the config says {stated}" in tensor.rows.fault()


def test_zero_points_that_are_not_where_the_config_says(tmp_path: Path) -> None:
    zeros = np.full((2, 8), 7)
    zeros[1, 2] = 3
    tensor = opened(tmp_path, gptq_config(), gptq_tensors(qzeros=packed(zeros, 4, "dense")))
    assert tensor.rows is not None
    assert tensor.codes is not None
    assert tensor.rows.fault() == ""
    assert tensor.rows.read(2, 3)[0, 32] == -4
    assert (
        "'m.qzeros' has zero points 4 to 8; of symmetric weights of 4 bits all are 8" in tensor.codes.fault()
    )


def test_bytes_with_more_than_their_bits(tmp_path: Path) -> None:
    codes = np.zeros((8, 64), np.int8)
    codes[6, 1] = 9
    tensors = {"weight": codes, "weight_scale": bf16(np.ones((8, 2)))}
    tensor = opened(tmp_path, {**compressed(), "format": "int-quantized"}, tensors)
    assert tensor.rows is not None
    assert tensor.codes is not None
    assert tensor.rows.read(6, 7)[0, 1] == 9
    assert "'m.weight' has levels 0 to 9; symmetric integers of 4 bits are -8 to 7" in tensor.codes.fault()
    with pytest.raises(CheckpointError, match="q4_0 holds -8 to 7"):
        tensor.codes.read(0, 8)


@pytest.mark.parametrize(
    ("config", "tensors", "why"),
    [
        (
            compressed(group_size=16),
            packed_tensors(weight_scale=bf16(np.ones((8, 4)))),
            "group_size 16 is no",
        ),
        (gptq_config(desc_act=True), gptq_tensors(g_idx=np.arange(64, dtype="i4") // 32), "(desc_act)"),
        (
            compressed(num_bits=8, symmetric=False),
            packed_tensors(weight_packed=packed(ZEROS, 8, "dense"), weight_zero_point=np.zeros((2, 2), "i4")),
            "asymmetric integers of 8 bits may be outside of q8_0's -128 to 127",
        ),
    ],
)
def test_codes_that_no_type_holds_say_why(
    config: dict[str, Any], tensors: dict[str, object], why: str, tmp_path: Path
) -> None:
    tensor = opened(tmp_path, config, tensors)
    assert tensor.codes is None
    assert why in tensor.why_decoded


def folder(path: Path, config: dict[str, Any], tensors: dict[str, object], **files: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values))
    write_safetensors(path / "model.safetensors", {f"m.{name}": values for name, values in tensors.items()})
    return path


def test_settings_in_a_file_beside_the_config(tmp_path: Path) -> None:
    settings = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False, "model_name_or_path": "x"}
    path = folder(tmp_path / "gptq", {}, gptq_tensors(), quantize_config=settings)
    assert open_checkpoint(path).tensors["m.weight"].codes is not None
    settings = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}
    path = folder(tmp_path / "awq", {}, awq_tensors(), quant_config=settings)
    assert open_checkpoint(path).tensors["m.weight"].stored_as == "AWQ int4 group 32"
    path = folder(tmp_path / "old", {"compression_config": compressed()}, packed_tensors())
    assert open_checkpoint(path).tensors["m.weight"].stored_as == "int4 group 32"
    path = folder(tmp_path / "none", {}, packed_tensors())
    assert open_checkpoint(path).tensors["m.weight"].codes is not None
    tensors = {"weight": np.zeros((8, 64), np.int8), "weight_scale": bf16(np.ones((8, 1)))}
    path = folder(tmp_path / "bytes", {}, tensors)
    assert open_checkpoint(path).tensors["m.weight"].stored_as == "int8 per row"
    path = folder(tmp_path / "other", {}, {"weight": np.ones((2, 2), np.float16)}, quant_config={"a": 1})
    assert open_checkpoint(path).tensors["m.weight"].stored_as == "F16"


def test_the_format_of_zero_points_in_a_file_beside_the_config(tmp_path: Path) -> None:
    zeros = packed(np.full((2, 8), 8), 4, "dense")
    config = {"quantization_config": gptq_config()}
    path = folder(
        tmp_path, config, gptq_tensors(qzeros=zeros), quantize_config={"checkpoint_format": "gptq_v2"}
    )
    rows = open_checkpoint(path).tensors["m.weight"].rows
    assert rows is not None
    assert rows.fault() == ""
    assert rows.read(0, 1)[0, 0] == -8
    config["quantization_config"]["checkpoint_format"] = "gptq"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"says checkpoint_format: gptq_v2, config\.json says gptq"):
        open_checkpoint(path)


def test_a_note_on_zero_points_of_0(tmp_path: Path) -> None:
    config = {"quantization_config": gptq_config(sym=False)}
    (note,) = open_checkpoint(folder(tmp_path, config, gptq_tensors())).notes
    assert "one of 0 is read as GPTQModel writes it" in note
    config["quantization_config"]["sym"] = True
    assert open_checkpoint(folder(tmp_path, config, gptq_tensors())).notes == ()


def test_shapes_follow_from_words_and_groups_where_only_headers_are_there(tmp_path: Path) -> None:
    tensors = packed_tensors(weight_packed=packed(ZEROS, 3, "padded"))
    path = folder(tmp_path, {"quantization_config": compressed(num_bits=3)}, tensors)
    whole = (path / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    (path / "model.safetensors").write_bytes(whole[: 8 + length])
    assert open_checkpoint(path, header_only=True).tensors["m.weight"].shape == (8, 64)


@pytest.mark.parametrize("order", [("int", "float"), ("float", "int")])
def test_groups_of_several_kinds_in_one_config(order: tuple[str, str], tmp_path: Path) -> None:
    """The tensors fit one group; where they fit two, targets decide."""
    four = {"targets": ["re:.*x"], "weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}
    eight: dict[str, Any] = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}
    fp8 = {"targets": ["re:.*attn.*"], "format": "float-quantized",
           "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}  # fmt: skip
    groups: dict[str, Callable[[], dict[str, Any]]] = {
        "int": lambda: {"group_1": four, "group_2": eight}, "float": lambda: {"group_0": fp8},
    }  # fmt: skip
    config = {
        "quant_method": "compressed-tensors", "format": "mixed-precision",
        "config_groups": {name: group for kind in order for name, group in groups[kind]().items()},
    }  # fmt: skip
    config["config_groups"] = {
        name: {"format": "pack-quantized", **group} for name, group in config["config_groups"].items()
    }
    tensors = packed_tensors()
    assert opened(tmp_path, config, tensors).stored_as == "int4 group 32"
    tensors = packed_tensors(weight_packed=packed(ZEROS, 8, "dense"), weight_scale=bf16(np.ones((8, 1))))
    assert opened(tmp_path, config, tensors).stored_as == "int8 per row"


def test_targets_decide_where_tensors_fit_two_groups(tmp_path: Path) -> None:
    """Codes of 7 bits, padded, are as wide as codes of 8 bits."""
    groups = {
        f"group_{bits}": {"targets": [target], "weights": {"num_bits": bits, "strategy": "channel"}}
        for bits, target in ((7, "re:n"), (8, "re:m"))
    }
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    tensors = packed_tensors(weight_packed=packed(ZEROS, 8, "dense"), weight_scale=bf16(np.ones((8, 1))))
    assert opened(tmp_path, config, tensors).stored_as == "int8 per row"
    groups["group_7"]["targets"], groups["group_8"]["targets"] = ["re:m"], ["re:n"]
    assert opened(tmp_path, config, tensors).stored_as == "int7 per row"
    groups["group_7"]["targets"], groups["group_8"]["targets"] = ["a.b"], ["a.c"]
    with pytest.raises(CheckpointError, match="may have 7 or 8 bits, and the config does not say which"):
        opened(tmp_path, config, tensors)
