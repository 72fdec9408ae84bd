"""Layouts of the scales of 8-bit floats: which are read by their shapes, and what a config may say beside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from handmade_safetensors import bf16, fp8, write_safetensors

from ggplan.errors import CheckpointError
from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import QuantizationConfig, join_tensors
from ggplan.sources.tensors import CheckpointTensor

NAME = "model.layers.0.mlp.down_proj.weight"
CODES = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
RNG = np.random.default_rng(11)


def values(codes: np.ndarray) -> np.ndarray:
    """The values of E4M3 codes, by its formula."""
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7).astype(int)
    size = np.where(exponent > 0, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(1.0 * mantissa, -9))
    return np.where(codes & 128, -size, size).astype("f4")


def opened(path: Path, tensors: dict, **config: object) -> dict[str, CheckpointTensor]:
    write_safetensors(path, tensors)
    return join_tensors(read_tensors(path), QuantizationConfig(Path("folder"), config))


def rows_of(tensor: CheckpointTensor) -> np.ndarray:
    n_rows, pieces = tensor.rows.n_rows, []
    for start in range(0, n_rows, 77):
        pieces.append(tensor.rows.read(start, min(start + 77, n_rows)))
    return np.concatenate(pieces).reshape(tensor.shape)


def ct(*weights: dict, **more: object) -> dict:
    groups = {f"group_{i}": {"targets": ["Linear"], "weights": w} for i, w in enumerate(weights)}
    float8 = {"format": "float-quantized", "quant_method": "compressed-tensors"}
    return {**float8, "config_groups": groups, **more}


FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
BLOCKS = {**FLOAT8, "strategy": "block", "block_structure": [128, 128]}
FP8 = {"quant_method": "fp8"}
PB_WO = {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}
# Shape of the weights, of the scales, the block that a scale belongs to, and a config.
LAYOUTS = {
    "blocks": ((300, 200), (3, 2), (128, 128), FP8),
    "small blocks": ((96, 200), (3, 7), (32, 32), {**FP8, "weight_block_size": [32, 32]}),
    "blocks of an old compressed-tensors": (
        (300, 200), (3, 2), (128, 128), ct({**BLOCKS, "block_structure": "128x128"}),
    ),
    "blocks among several groups": (
        (300, 200), (3, 2), (128, 128),
        ct({**FLOAT8, "strategy": "channel"}, BLOCKS, {"num_bits": 4}, format="mixed-precision"),
    ),
    "rows among several groups": (
        (300, 200), (300, 1), (1, 200), ct(BLOCKS, {**FLOAT8, "strategy": "channel"}),
    ),
    "groups": ((6, 192), (6, 3), (1, 64), ct({**FLOAT8, "strategy": "group", "group_size": 64})),
    "the tensor": ((6, 192), (1,), (6, 192), ct({**FLOAT8, "strategy": "tensor"})),
    "naive": ((6, 192), (6, 1), (1, 192), ct({**FLOAT8, "strategy": "channel"}, format="naive-quantized")),
    "fbgemm": ((6, 192), (6, 1), (1, 192), {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "Llama 4, gate and up": ((3, 8, 12), (3, 1, 12), (8, 1), {"quant_method": "fbgemm_fp8"}),
    "Llama 4, down": ((3, 8, 12), (3, 8, 1), (1, 12), {"quant_method": "fbgemm_fp8"}),
    "stacked blocks": ((3, 200, 130), (3, 2, 2), (128, 128), FP8),
    "one for each expert": ((3, 8, 12), (3, 1, 1), (8, 12), {**FP8, "weight_block_size": None}),
    "FP8_PB_WO": ((300, 200), (3, 1, 2, 1), (128, 128), PB_WO),
    "FP8_PB_WO, small letters": ((300, 200), (3, 2), (128, 128), {**PB_WO, "quant_algo": "fp8_pb_wo"}),
    "FP8_PB_WO, squeezed to a row": ((4, 512), (4,), (128, 128), PB_WO),
    "FP8_PB_WO, squeezed to a column": ((300, 100), (3,), (128, 128), PB_WO),
    "FP8_PB_WO, squeezed to one": ((100, 100), (), (128, 128), PB_WO),
    "FP8_PB_WO of a layer": (
        (4, 512), (4,), (128, 128),
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
         "quantized_layers": {"model.layers.0.mlp": {"quant_algo": "FP8_PB_WO"}}},
    ),
    "rows of ModelOpt": (
        (4, 512), (4,), (1, 512), {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}
    ),
    "blocks that no config names": ((300, 200), (3, 2), (128, 128), {"quant_method": "modelopt"}),
    "small blocks that no config names": ((96, 64), (3, 2), (32, 32), {"quant_method": "modelopt"}),
    "no config": ((300, 200), (3, 2), (128, 128), {}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("kind", ["F32", "BF16", "F16", "F8_E8M0", "U8"])
@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv"])
def test_layouts(layout: tuple, kind: str, suffix: str, tmp_path: Path) -> None:
    shape, scales, block, config = layout
    codes, exponents = RNG.choice(CODES, shape), RNG.integers(-9, 4, scales)
    powers = np.ldexp(1.0, exponents).astype("f4")
    whole = powers * np.float32(1.25) if kind in ("F32", "BF16", "F16") else powers
    stored = {
        "F32": whole, "BF16": bf16(whole), "F16": whole.astype("f2"),
        "F8_E8M0": ("F8_E8M0", (exponents + 127).astype("u1")), "U8": (exponents + 127).astype("u1"),
    }[kind]  # fmt: skip
    grid = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    wide = np.broadcast_to(whole.reshape(grid if whole.size > 1 else (1,) * len(grid)), grid)
    wide = wide.repeat(block[0], axis=-2).repeat(block[1], axis=-1)[..., : shape[-2], : shape[-1]]
    tensor = opened(tmp_path / "t.safetensors", {NAME: fp8(codes), NAME + suffix: stored}, **config)[NAME]
    expected = values(codes) * wide
    assert np.array_equal(rows_of(tensor), expected)
    assert tensor.rows.fault() == ""
    assert (tensor.codes is not None) == (kind in ("F8_E8M0", "U8"))
    if tensor.codes is not None:
        assert tensor.codes.fault() == ""
        moved = tensor.codes.read_float32(0, tensor.codes.n_rows)
        assert np.array_equal(moved.reshape(shape), expected)


@pytest.mark.parametrize(
    ("shape", "scales", "config", "said"),
    [
        ((300, 200), (5, 4), {**FP8, "weight_block_size": [128, 128]}, "in blocks of 128 x 128"),
        ((300, 200), (3, 2), {**FP8, "weight_block_size": [64, 64]}, "in blocks of 64 x 64"),
        ((300, 200), (3, 2), ct({**BLOCKS, "block_structure": [64, 64]}), "in blocks of 64 x 64"),
        ((6, 192), (6, 4), ct({**FLOAT8, "strategy": "group", "group_size": 64}), "in blocks of 1 x 64"),
        ((6, 192), (1, 192), {"quant_method": "fbgemm_fp8"}, r"\[1, 192\] do not fit"),
        ((6, 192), (192,), {"quant_method": "modelopt"}, r"\[192\] do not fit"),
        ((3, 8, 12), (3, 1, 11), {"quant_method": "fbgemm_fp8"}, "do not fit"),
        ((300, 200), (3, 1, 3, 1), PB_WO, r"\[3, 1, 3, 1\] do not fit .* in blocks of 128 x 128"),
        ((4, 4), (1,), ct({**FLOAT8, "block_structure": "axb"}), "impossible shape axb"),
        ((4, 4), (1,), ct(FLOAT8, transform_config={"a": 1}), "its weights were transformed"),
    ],
)
def test_layouts_that_contradict_the_config(
    shape: tuple[int, ...], scales: tuple[int, ...], config: dict, said: str, tmp_path: Path
) -> None:
    tensors = {NAME: fp8(np.full(shape, 0x38)), NAME + "_scale": np.ones(scales, "f4")}
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path / "t.safetensors", tensors, **config)


def test_mxfp8(tmp_path: Path) -> None:
    codes, exponents = RNG.choice(CODES, (5, 96)), RNG.integers(100, 130, (5, 3)).astype("u1")
    expected = values(codes) * np.ldexp(1.0, exponents.astype(int) - 127).astype("f4").repeat(32, axis=1)
    for config in (
        {"quant_method": "modelopt", "quant_algo": "MXFP8"},
        {"quant_method": "mxfp8", "weight_block_size": [1, 32]},
        {**FP8, "weight_block_size": [128, 128]},
        ct({**FLOAT8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
    ):
        tensors = {NAME: fp8(codes), NAME + "_scale": exponents}
        tensor = opened(tmp_path / "t.safetensors", tensors, **config)[NAME]
        assert tensor.stored_as == "MXFP8"
        assert np.array_equal(rows_of(tensor), expected)
        assert np.array_equal(tensor.codes.read_float32(0, 5), expected)


@pytest.mark.parametrize("scale", [".scale", ".qscale_weight"])
def test_scales_in_the_place_of_weight(scale: str, tmp_path: Path) -> None:
    """DeepSeek-V4's name, and that of Mistral's own files, whose scales of activations are not needed."""
    module = NAME.removesuffix(".weight")
    codes = RNG.choice(CODES, (6, 8))
    tensors = {
        NAME: fp8(codes),
        module + scale: np.float32([0.75]),
        module + ".qscale_act": np.ones((), "f4"),
    }
    joined = opened(tmp_path / "t.safetensors", tensors, **FP8)
    assert list(joined) == [NAME]
    assert np.array_equal(rows_of(joined[NAME]), values(codes) * np.float32(0.75))


def test_powers_of_two_in_f32(tmp_path: Path) -> None:
    """DeepSeek-V3.1: `scale_fmt` says that all are; a scale that is none leaves f32 alone."""
    codes = RNG.choice(CODES, (256, 128))
    for scales, said in (
        ([[0.5], [2.0**-20]], ""),
        ([[0.5], [0.3]], "at index 1, which is no power of two: only f32"),
        ([[0.5], [2.0**-126]], "too small for bf16"),
    ):
        tensors = {NAME: fp8(codes), NAME + "_scale_inv": np.array(scales, "f4")}
        tensor = opened(tmp_path / "t.safetensors", tensors, **FP8, scale_fmt="ue8m0")[NAME]
        assert tensor.rows.fault() == ""
        assert said in tensor.codes.fault()
        if not said:
            assert np.array_equal(tensor.codes.read_float32(0, 256), rows_of(tensor))


def test_scales_of_e8m0_that_are_none(tmp_path: Path) -> None:
    tensors = {NAME: fp8(np.ones((2, 64), int)), NAME + "_scale": np.array([[1, 255], [0, 254]], "u1")}
    tensor = opened(tmp_path / "t.safetensors", tensors, quant_method="modelopt", quant_algo="MXFP8")[NAME]
    assert "1 scale that is not finite and positive, the first nan at index 1" in tensor.rows.fault()
    assert tensor.codes.fault() == tensor.rows.fault()


@pytest.mark.parametrize("code", [0, 0x80, 1])
def test_a_scale_of_zero_is_sound_over_zeros_alone(code: int, tmp_path: Path) -> None:
    """Old compressed-tensors files have such scales for blocks of zeros."""
    codes = np.full((130, 300), 0x38)
    codes[128:, 128:256] = code
    scales = np.ones((2, 3), "f4")
    scales[1, 1] = 0
    tensor = opened(tmp_path / "t.safetensors", {NAME: fp8(codes), NAME + "_scale": scales}, **ct(BLOCKS))[
        NAME
    ]
    assert bool(tensor.rows.fault()) == (code == 1)


def test_zero_points_of_zero_are_no_zero_points(tmp_path: Path) -> None:
    tensors = {NAME: fp8(np.full((4, 4), 0x38)), NAME + "_scale": np.ones((4, 1), "f4")}
    for zero, is_sound in ((0, True), (3, False)):
        zeros = fp8(np.full((4, 1), zero))
        path = tmp_path / f"{zero}.safetensors"
        tensor = opened(path, {**tensors, NAME + "_zero_point": zeros}, **ct(FLOAT8))[NAME]
        assert (tensor.rows.fault() == "") == is_sound


def test_codes_alone_where_nothing_is_stated(tmp_path: Path) -> None:
    """A model that was cast to fp8: only if no tensor of it has scales, and no config says fp8."""
    codes = RNG.choice(CODES, (4, 8))
    tensors = {NAME: fp8(codes), "other.weight": bf16(np.ones(3))}
    assert np.array_equal(rows_of(opened(tmp_path / "t.safetensors", tensors)[NAME]), values(codes))
    more = {**tensors, "x.weight": fp8(codes), "x.weight_scale": np.ones(1, "f4")}
    for found, config in ((tensors, FP8), (more, {})):
        with pytest.raises(CheckpointError, match=f"F8_E4M3 tensor '{NAME}' has no scales"):
            opened(tmp_path / "t.safetensors", found, **config)


def test_scales_of_other_forms_are_no_weights(tmp_path: Path) -> None:
    """NVFP4 beside fp8: its scales are F8_E4M3 too."""
    tensors = {
        "a.weight": fp8(np.full((4, 64), 0x38)), "a.weight_scale": np.float32([2]),
        "b.weight": np.zeros((4, 32), "u1"), "b.weight_scale": fp8(np.full((4, 4), 0x38)),
        "b.weight_scale_2": np.ones((), "f4"), "b.input_scale": np.ones((), "f4"),
        "a.input_scale": np.ones((), "f4"), "a.k_scale": np.ones((), "f4"),
    }  # fmt: skip
    config = {
        "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8",
        "quantized_layers": {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4", "group_size": 16}},
    }  # fmt: skip
    joined = opened(tmp_path / "t.safetensors", tensors, **config)
    found = {name: tensor.stored_as for name, tensor in joined.items()}
    assert found == {"a.weight": "F8_E4M3", "b.weight": "NVFP4"}
    alone = {name: value for name, value in tensors.items() if name.startswith("b.")}
    assert opened(tmp_path / "b.safetensors", alone)["b.weight"].stored_as == "NVFP4"


PUBLISHED = {
    "MiniMax-M2": {
        "activation_scheme": "dynamic", "fmt": "float8_e4m3fn", "quant_method": "fp8",
        "weight_block_size": [128, 128], "modules_to_not_convert": ["gate", "lm_head"],
    },
    "Step-3.7-Flash": {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    },
    "DeepSeek-V4": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128], "expert_dtype": "fp4",
    },
    "Meta-Llama-3-8B-Instruct-FP8": {
        "quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"],
    },
    "Llama-3.1-405B-Instruct-FP8": {
        "quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"],
    },
    "GLM-4.5-Air-FP8": ct(
        {**FLOAT8, "strategy": "channel", "group_size": None, "block_structure": None, "actorder": None,
         "dynamic": False, "observer": "minmax", "observer_kwargs": {}},
        ignore=["lm_head", "re:.*mlp.gate$"], kv_cache_scheme=None, quantization_status="compressed",
        global_compression_ratio=1.5, version="0.9.4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_configs(config: dict, tmp_path: Path) -> None:
    tensors = {NAME: fp8(np.full((4, 4), 0x38)), NAME + "_scale": np.float32([[2], [2], [2], [2]])}
    assert rows_of(opened(tmp_path / "t.safetensors", tensors, **config)[NAME]).tolist() == [[2] * 4] * 4


def test_only_hf_quant_config(tmp_path: Path) -> None:
    """Nemotron-3: nothing in config.json, ModelOpt's own file beside it."""
    write_safetensors(
        tmp_path / "model.safetensors", {NAME: fp8(np.full((4, 4), 0x38)), NAME + "_scale": np.ones((), "f4")}
    )
    (tmp_path / "config.json").write_text("{}")
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    document = {"producer": {"name": "modelopt", "version": "0.33"}, "quantization": quantization}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(document))
    assert rows_of(open_checkpoint(tmp_path).tensors[NAME]).tolist() == [[1] * 4] * 4


def test_blocks_whose_size_nothing_states_are_noted(tmp_path: Path) -> None:
    def notes_of(shape: tuple[int, int], **config: object) -> list[str]:
        grid = tuple(-(-extent // 128) for extent in shape)
        tensors = {NAME: fp8(np.ones(shape, np.uint8)), f"{NAME}_scale_inv": np.ones(grid, np.float32)}
        write_safetensors(tmp_path / "t.safetensors", tensors)
        notes: list[str] = []
        stored = read_tensors(tmp_path / "t.safetensors")
        join_tensors(stored, QuantizationConfig(tmp_path, {**FP8, **config}), notes=notes)
        return notes

    [note] = notes_of((200, 200))
    assert "states no weight_block_size" in note
    assert "blocks of 100 x 100 fit" in note
    assert "100 x 100" in notes_of((200, 64))[0]
    assert notes_of((200, 200), weight_block_size=[128, 128]) == []
    assert notes_of((256, 384)) == []
    assert notes_of((576, 256)) == []
