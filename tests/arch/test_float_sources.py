"""Whole models in 8-bit floats or nf4: their tensors are those of the model of their weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import read_case, write_case

from ggplan import open_model
from ggplan.ggml_types import BF16

Tensors = dict[str, tuple[str, np.ndarray]]
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
], "f4")  # fmt: skip


def e4m3(codes: np.ndarray) -> np.ndarray:
    """Values of codes below 0x78, whose exponent is not 0, by the formula."""
    return np.ldexp(8.0 + (codes & 7), (codes >> 3).astype(int) - 10).astype("f4")


def mxfp8(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
    codes = rng.integers(8, 0x78, shape).astype("u1")
    powers = rng.integers(100, 130, (shape[0], shape[1] // 32)).astype("u1")
    weights = e4m3(codes) * np.ldexp(1.0, powers.astype(int) - 127).astype("f4").repeat(32, axis=1)
    return {"weight": ("F8_E4M3", codes), "weight_scale": ("U8", powers)}, weights


def e8m0_blocks(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
    codes = rng.integers(8, 0x78, shape).astype("u1")
    powers = rng.integers(100, 130, (-(-shape[0] // 16), -(-shape[1] // 16))).astype("u1")
    scales = np.ldexp(1.0, powers.astype(int) - 127).astype("f4").repeat(16, axis=0).repeat(16, axis=1)
    weights = e4m3(codes) * scales[: shape[0], : shape[1]]
    return {"weight": ("F8_E4M3", codes), "weight_scale_inv": ("F8_E8M0", powers)}, weights


def rows(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
    codes = rng.integers(8, 0x78, shape).astype("u1")
    scales = rng.random((shape[0], 1)).astype("f4") + np.float32(0.1)
    parts = {
        "weight": ("F8_E4M3", codes),
        "weight_scale": ("F32", scales),
        "input_scale": ("F32", scales[0, 0]),
    }
    return parts, e4m3(codes) * scales


def nf4(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Tensors, np.ndarray]:
    codes = rng.integers(0, 16, shape[0] * shape[1]).astype("u1")
    factors = rng.random(-(-codes.size // 64)).astype("f4")
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
    weights = (NF4[codes] * factors.repeat(64)[: codes.size]).reshape(shape)
    return {
        "weight": ("U8", (codes[::2] << 4 | codes[1::2])[:, None]), "weight.absmax": ("F32", factors),
        "weight.quant_state.bitsandbytes__nf4": ("U8", raw),
    }, weights  # fmt: skip


FORMS = {
    "MXFP8": (mxfp8, {"quant_method": "modelopt", "quant_algo": "MXFP8"}),
    "E8M0": (e8m0_blocks, {"quant_method": "fp8", "weight_block_size": [16, 16], "scale_fmt": "ue8m0"}),
    "rows": (rows, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


def write(path: Path, tensors: Tensors) -> None:
    header, data = {}, b""
    for name, (dtype, values) in tensors.items():
        offsets = [len(data), len(data) + values.nbytes]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += values.tobytes()
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def write_pair(folder: Path, case: str, form: str) -> tuple[Path, Path]:
    """A model whose matrices are in a form, and the model of their weights."""
    make, config = FORMS[form]
    spec, rng = read_case(case), np.random.default_rng(7)
    quantized: Tensors = {}
    plain: Tensors = {}
    for shard in spec["shards"].values():
        for name in [name for name in shard if name.endswith("_proj.weight")]:
            parts, weights = make(tuple(shard.pop(name)[1]), rng)
            plain[name] = ("F32", weights)
            quantized |= {name.removesuffix("weight") + key: value for key, value in parts.items()}
    assert plain
    folders = folder / "quantized", folder / "plain"
    for path, added in zip(folders, (quantized, plain), strict=True):
        own = copy.deepcopy(spec)
        if path.name == "quantized":
            own["config"]["quantization_config"] = config
        write_case(path, own)
        (path / "model.safetensors.index.json").unlink(missing_ok=True)
        for i, old in enumerate(sorted(own["shards"])):
            (path / old).rename(path / f"model-{i + 1:02d}.safetensors")
        write(path / "model-99.safetensors", added)
    return folders


@pytest.mark.parametrize("case", ["llama", "glm4moe", "qwen3moe"])
@pytest.mark.parametrize("form", FORMS)
def test_a_model_has_the_tensors_of_its_weights(case: str, form: str, tmp_path: Path) -> None:
    quantized, plain = (open_model(folder, pre="glm4") for folder in write_pair(tmp_path, case, form))
    assert [t.name for t in quantized.tensors] == [t.name for t in plain.tensors]
    moved = 0
    for theirs in plain.tensors:
        ours = quantized[theirs.name]
        assert ours.shape == theirs.shape
        assert ours.rows.fault() == ""
        weights = theirs.rows.read_float32(0, theirs.n_rows)
        assert np.array_equal(ours.rows.read_float32(0, ours.n_rows), weights), ours.name
        if ours.codes is not None and not ours.codes.why_decoded:
            moved += 1
            assert ours.type == BF16
            assert ours.stored.fault() == ""
            assert np.array_equal(ours.stored.read_float32(0, ours.n_rows), weights)
    assert bool(moved) == (form in ("MXFP8", "E8M0"))
