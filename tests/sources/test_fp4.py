"""MXFP4 and NVFP4 of every writer: the libraries' weights, and llama.cpp's blocks, bit for bit."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from quantized_folders import QUANTIZED, edited, goldens_of, rows_of, sha256_of, tensors_of

from ggplan.errors import CheckpointError
from ggplan.quants import dequantize
from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors, mxfp4
from ggplan.sources.tensors import DTYPE_BITS, CheckpointTensor

FOLDERS = ["ct-mxfp4a16", "ct-nvfp4a16", "modelopt-nvfp4", "mxfp4-gpt-oss"]
# modelopt's table has +0 for the code of -0.
ZEROS = {"modelopt-nvfp4": "positive"}
PROJECTIONS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj", "ffn_down_exps": "mlp.experts.{}.down_proj",
}  # fmt: skip


@pytest.mark.parametrize("folder", FOLDERS)
def test_weights_are_the_librarys_bit_for_bit(folder: str) -> None:
    tensors = tensors_of(folder)
    goldens = goldens_of(folder)
    assert goldens
    for name, golden in goldens.items():
        if folder == "mxfp4-gpt-oss":  # transformers gives the transpose
            weights = rows_of(tensors[f"{name}.weight"]).transpose(0, 2, 1)
        else:
            weights = rows_of(tensors[name])
        assert list(weights.shape) == golden["shape"]
        zeros = ZEROS.get(folder, "signed")
        assert sha256_of(weights, golden["dtype"], zeros=zeros) == golden["sha256"], name


@pytest.mark.parametrize("folder", [*FOLDERS, "mxfp4-deepseek-v4"])
def test_moved_codes_are_the_same_weights(folder: str) -> None:
    tensors = deepseek_v4() if folder == "mxfp4-deepseek-v4" else tensors_of(folder)
    moved = {name: t for name, t in tensors.items() if t.codes is not None}
    assert moved
    for name, tensor in moved.items():
        codes = tensor.codes
        weights = dequantize(codes.read(0, codes.n_rows), codes.dtype)
        scale = tensor.companions.get("scale")
        if scale is not None:
            weights = weights * scale.read_float32(0, 1)[0, 0]
            # The scales are multiplied in another order, which rounds the last bit in another way.
            np.testing.assert_allclose(
                weights.reshape(tensor.shape), rows_of(tensor), rtol=2e-7, err_msg=name
            )
        else:
            np.testing.assert_array_equal(weights.reshape(tensor.shape), rows_of(tensor), err_msg=name)


@pytest.mark.parametrize("folder", ["ct-nvfp4a16", "modelopt-nvfp4", "mxfp4-gpt-oss"])
def test_moved_codes_are_the_blocks_that_llama_cpp_writes(folder: str) -> None:
    tensors = tensors_of(folder)
    for name, golden in goldens_of(folder, "llama_cpp_packed").items():
        kind, ending = name.removeprefix("blk.0.").rsplit(".", 1)
        if folder == "mxfp4-gpt-oss":
            fused = tensors[
                f"model.layers.0.mlp.experts.{'down' if 'down' in kind else 'gate_up'}_proj.weight"
            ]
            rows = fused.codes.read(0, fused.codes.n_rows).reshape(2, fused.shape[1], -1)
            if "down" not in kind:
                rows = rows[:, "up" in kind :: 2]
            found = [rows]
        else:
            stem = f"model.layers.0.{PROJECTIONS[kind]}.weight"
            parts = [tensors[stem.format(expert)] for expert in (range(2) if "{" in stem else [0])]
            sources = [part.codes if ending == "weight" else part.companions[ending] for part in parts]
            found = [source.read(0, source.n_rows) for source in sources]
        raw = b"".join(np.ascontiguousarray(rows).tobytes() for rows in found)
        assert hashlib.sha256(raw).hexdigest() == golden["sha256"], name


def deepseek_v4() -> dict[str, CheckpointTensor]:
    """The tensors of its experts; those of fp8 are another scheme's."""
    stored = read_tensors(QUANTIZED / "mxfp4-deepseek-v4" / "model.safetensors")
    return join_tensors(stored, QuantizationConfig(QUANTIZED, {}), [mxfp4])


def test_the_experts_of_deepseek_v4_are_mxfp4_beside_its_fp8() -> None:
    """The scales of its fp8 tensors are called as those of its experts."""
    tensors = deepseek_v4()
    experts = {n: g for n, g in goldens_of("mxfp4-deepseek-v4").items() if "experts" in n}
    assert len(experts) == 6
    for name, golden in experts.items():
        assert sha256_of(rows_of(tensors[name]), golden["dtype"], zeros="positive") == golden["sha256"], name
    assert {name for name, tensor in tensors.items() if tensor.codes is not None} == experts.keys()


Q = "model.layers.0.self_attn.q_proj"


def test_a_scale_that_is_nan_is_a_fault(tmp_path: Path) -> None:
    def edit(tensors: dict) -> None:
        tensors[f"{Q}.weight_scale"][2] = b"\xff" + tensors[f"{Q}.weight_scale"][2][1:]

    tensors = open_checkpoint(edited("ct-mxfp4a16", tmp_path, edit)).tensors
    assert "NaN" in tensors[f"{Q}.weight"].rows.fault()
    assert tensors["model.layers.0.self_attn.k_proj.weight"].rows.fault() == ""


def test_a_negative_scale_is_not_moved_to_nvfp4(tmp_path: Path) -> None:
    def edit(tensors: dict) -> None:
        first = tensors[f"{Q}.weight_scale"][2]
        tensors[f"{Q}.weight_scale"][2] = bytes([first[0] | 0x80]) + first[1:]

    tensor = open_checkpoint(edited("modelopt-nvfp4", tmp_path, edit)).tensors[f"{Q}.weight"]
    assert tensor.rows.fault() == ""
    assert "negative" in tensor.codes.fault()


def test_a_global_scale_of_zero_is_a_fault(tmp_path: Path) -> None:
    def edit(tensors: dict) -> None:
        tensors[f"{Q}.weight_scale_2"][2] = bytes(4)

    tensor = open_checkpoint(edited("modelopt-nvfp4", tmp_path, edit)).tensors[f"{Q}.weight"]
    assert "not positive" in tensor.rows.fault()


@pytest.mark.parametrize("part", ["weight", "weight_scale"])
def test_a_global_scale_of_zero_over_zeros_is_none(part: str, tmp_path: Path) -> None:
    """ModelOpt gives it to a matrix of zeros, for its largest magnitude is 0."""

    def edit(tensors: dict) -> None:
        tensors[f"{Q}.weight_scale_2"][2] = bytes(4)
        tensors[f"{Q}.{part}"][2] = bytes(len(tensors[f"{Q}.{part}"][2]))

    tensor = open_checkpoint(edited("modelopt-nvfp4", tmp_path, edit)).tensors[f"{Q}.weight"]
    assert tensor.rows.fault() == ""
    assert tensor.codes.fault() == ""
    assert not rows_of(tensor).any()
    codes = tensor.codes.read(0, tensor.codes.n_rows)
    assert not dequantize(codes, tensor.codes.dtype).any()


@pytest.mark.parametrize(
    ("folder", "name"), [("modelopt-nvfp4", "input_scale"), ("ct-nvfp4a16", "input_global_scale")]
)
def test_a_negative_scale_of_activations_is_a_fault(folder: str, name: str, tmp_path: Path) -> None:
    def edit(tensors: dict) -> None:
        tensors[f"{Q}.{name}"] = ["F32", [1], np.array([-5], "<f4").tobytes()]

    tensor = open_checkpoint(edited(folder, tmp_path, edit)).tensors[f"{Q}.weight"]
    assert f"scale of activations '{Q}.{name}'" in tensor.rows.fault()


def test_columns_with_scales_of_their_own_are_multiplied_in(tmp_path: Path) -> None:
    factors = np.linspace(0.5, 2, 128, dtype="<f4")

    def edit(tensors: dict) -> None:
        tensors[f"{Q}.pre_quant_scale"] = ["F32", [128], factors.tobytes()]

    plain = tensors_of("modelopt-nvfp4")[f"{Q}.weight"]
    tensor = open_checkpoint(edited("modelopt-nvfp4", tmp_path, edit)).tensors[f"{Q}.weight"]
    assert tensor.codes is None
    assert "pre_quant_scale" in tensor.why_decoded
    np.testing.assert_array_equal(rows_of(tensor), rows_of(plain) * factors)


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        ("modelopt-nvfp4", lambda t: t.pop(f"{Q}.weight_scale_2"), "has no scale .*weight_scale_2"),
        ("ct-nvfp4a16", lambda t: t.pop(f"{Q}.weight_global_scale"), "has no scale .*weight_global_scale"),
        ("mxfp4-gpt-oss", lambda t: t.pop("model.layers.0.mlp.experts.down_proj_scales"), "has no scales"),
        ("modelopt-nvfp4", lambda t: t[f"{Q}.weight_scale"].__setitem__(1, [64, 16]), "need \\[128, 8\\]"),
        (
            "modelopt-nvfp4",
            lambda t: t.update({f"{Q}.svdquant_lora_a": ["F32", [1], bytes(4)]}),
            "SVDQuant",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(
    folder: str, change: Callable[[dict], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(edited(folder, tmp_path, change))


def test_transformed_weights_are_refused(tmp_path: Path) -> None:
    folder = edited("ct-mxfp4a16", tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["transform_config"] = {"config_groups": {}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="transform_config"):
        open_checkpoint(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_any_range_of_rows_can_be_read(folder: str) -> None:
    for tensor in tensors_of(folder).values():
        for rows in (tensor.rows, tensor.codes):
            if rows is None or tensor.codes is None:
                continue
            whole = rows.read(0, rows.n_rows)
            assert rows.read(5, 5).shape == (0, whole.shape[1])
            np.testing.assert_array_equal(rows.read(3, 17), whole[3:17])
            for start, stop in ((-1, 2), (0, rows.n_rows + 1), (2, 1)):
                with pytest.raises(ValueError, match="rows"):
                    rows.read(start, stop)


DTYPES = ("U8", "I8", "BF16", "F16", "F32", "F8_E4M3", "F8_E8M0", "I32", "BOOL")


@pytest.mark.parametrize("folder", FOLDERS)
def test_mutants_give_weights_or_one_error(folder: str, tmp_path: Path) -> None:
    """Types, shapes and names that contradict each other; 60 of each checkpoint."""
    rng = random.Random(folder)
    refused: list[str] = []
    for number in range(60):

        def mutate(tensors: dict) -> None:
            name = rng.choice([n for n in tensors if ".mlp.experts" in n or "q_proj" in n])
            dtype, shape, data = tensors[name]
            match rng.randrange(5):
                case 0:
                    tensors.pop(name)
                case 1:
                    tensors[rng.choice([*tensors, "x.weight", f"{name}_scale"])] = tensors.pop(name)
                case 2:
                    other = rng.choice(DTYPES)
                    size = DTYPE_BITS[other] // 8
                    n = len(data) // size
                    tensors[name] = [other, [n], data[: n * size]]
                case 3:
                    extent = rng.choice([0, 1, 2, 16, 32])
                    tensors[name] = [dtype, [extent, *shape], data * extent]
                case 4:
                    raw = bytearray(data)
                    for _ in range(8):
                        raw[rng.randrange(len(raw))] = rng.choice([0, 0x7F, 0x80, 0xFF])
                    tensors[name] = [dtype, shape, bytes(raw)]

        try:
            tensors = open_checkpoint(edited(folder, tmp_path / str(number), mutate)).tensors
        except CheckpointError as error:
            refused.append(error.message)
            continue
        for tensor in tensors.values():
            for rows in (tensor.rows, tensor.codes):
                if rows is not None and rows.n_rows:
                    rows.fault()
                    assert len(rows.read(0, min(3, rows.n_rows))) == min(3, rows.n_rows)
    assert 5 < len(refused) < 60
    assert not [message for message in refused if "\n" in message]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"quant_algo": "W4A16_NVFP4"}, True),
        ({"quant_algo": "MIXED_PRECISION", "quantized_layers": {Q: {"quant_algo": "W4A16_NVFP4"}}}, True),
        ({"quant_algo": "W4A16_NVFP4", "quantized_layers": {Q: {"quant_algo": "NVFP4"}}}, False),
        ({"quantized_layers": {"model.layers.0.self_attn": {"quant_algo": "W4A16_NVFP4"}}}, True),
    ],
)
def test_weights_that_are_not_for_4_bit_activations(changes: dict, expected: bool, tmp_path: Path) -> None:
    folder = edited("modelopt-nvfp4", tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(folder).tensors[f"{Q}.weight"].full_activations == expected
