"""Checkpoints of integers that quantizers wrote: the weights of their own libraries, and codes that move."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ggplan.quants import dequantize
from ggplan.sources.safetensors import read_tensors
from ggplan.sources.schemes import join_tensors, read_quantization_config
from ggplan.sources.tensors import CheckpointTensor, StoredTensor

FOLDERS = sorted(
    path for path in (Path(__file__).parents[1] / "data/quantized/integers").iterdir() if path.is_dir()
)
NAMES = [folder.name for folder in FOLDERS]
# The type that holds the codes, or a part of the reason why none does.
MOVED = {
    "autoround-export-gptq": "q4_0",
    "autoround-gptq-int4-g64": "q4_0",
    "autoround-raw-int2-g64-asym": "q4_0",
    "awq-gemm-g128": "q5_0",
    "awq-gemv-g64": "q5_0",
    "awq-gemv-fast-g64": "rounded products",
    "ct-int8-channel": "q8_0",
    "ct-mixed-precision": "",
    "ct-pack-int3-g64-dense": "q4_0",
    "ct-pack-int3-g64-padded": "q4_0",
    "ct-pack-int4-asym-channel": "q5_0",
    "ct-pack-int4-asym-g64": "q5_0",
    "ct-pack-int4-channel": "q4_0",
    "ct-pack-int4-g32-experts": "q4_0",
    "ct-pack-int4-g64-gidx": "weight_g_idx",
    "ct-pack-int5-asym-g32-dense": "q8_0",
    "ct-pack-int8-g64": "q8_0",
    "gptq-int2-g64-sym": "q4_0",
    "gptq-int4-channel": "q4_0",
    "gptq-int4-g128-sym": "q4_0",
    "gptq-int4-g64-asym-desc": "desc_act",
    "gptq-planar-int5-g32": "q8_0",
    "gptq-v2-int4-g32-asym": "q5_0",
}


def opened(folder: Path) -> tuple[dict[str, StoredTensor], dict[str, CheckpointTensor]]:
    """The stored tensors, and the weights that are integers."""
    stored = read_tensors(folder / "model.safetensors")
    config = read_quantization_config(json.loads((folder / "config.json").read_text()), folder)
    joined = join_tensors(stored, config)
    return stored, {name: tensor for name, tensor in joined.items() if "int" in tensor.stored_as}


def golden(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "golden.json").read_text())["library"]


def rounded(weights: np.ndarray, dtype: str) -> bytes:
    """Float32 weights as a library rounds them."""
    if dtype == "float16":
        return weights.astype("<f2").tobytes()
    if dtype == "bfloat16":
        bits = weights.view(np.uint32).astype(np.uint64)
        return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2").tobytes()
    assert dtype == "float32"
    return weights.tobytes()


def test_every_checkpoint_has_an_expectation() -> None:
    assert sorted(MOVED) == NAMES


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_weights_are_those_of_the_library(folder: Path) -> None:
    stored, tensors = opened(folder)
    expected = golden(folder)
    if folder.name == "ct-mixed-precision":  # its attention is fp8
        expected = {name: entry for name, entry in expected.items() if "experts" in name}
    assert set(tensors) == set(expected)
    for name, entry in expected.items():
        rows = tensors[name].rows
        assert rows is not None
        assert list(rows.shape) == entry["shape"]
        assert rows.fault() == ""
        weights = rows.read(0, rows.n_rows)
        if folder.name == "awq-gemv-fast-g64":
            weights = rounded_twice(stored, name, weights)
        # AutoRound's goldens went through a product with the identity, which leaves no -0.
        found = {
            hashlib.sha256(rounded(w, str(entry["dtype"]))).hexdigest() for w in (weights, weights + 0.0)
        }
        assert entry["sha256"] in found
        for start, stop in ((0, 0), (3, 4), (17, 50), (rows.n_rows - 5, rows.n_rows)):
            assert np.array_equal(rows.read(start, stop), weights[start:stop]) or "fast" in folder.name


def rounded_twice(stored: dict[str, StoredTensor], name: str, weights: np.ndarray) -> np.ndarray:
    """What AutoAWQ's GEMV-fast makes: the product and the sum each rounded to float16."""
    module = name.removesuffix(".weight")
    scale, zero = (
        stored[f"{module}.{part}"].read_floats(0, stored[f"{module}.{part}"].n_weights)
        .reshape(stored[f"{module}.{part}"].shape)[: weights.shape[1] // 64].T.repeat(64, axis=1)
        for part in ("scales", "qzeros")
    )  # fmt: skip
    codes = np.rint((weights - zero) / scale)
    assert np.array_equal(codes * scale + zero, weights)
    assert codes.min() == 0
    assert codes.max() == 15
    return (
        ((codes * scale).astype(np.float16).astype(np.float32) + zero).astype(np.float16).astype(np.float32)
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_codes_decode_to_the_same_weights(folder: Path) -> None:
    _, tensors = opened(folder)
    for name, tensor in tensors.items():
        assert tensor.rows is not None
        type_ = MOVED[folder.name] or ("q8_0" if "down" in name else "q4_0")
        if tensor.codes is None:
            assert type_ in tensor.why_decoded
            continue
        assert tensor.why_decoded == ""
        assert tensor.codes.dtype.name == type_
        assert tensor.codes.fault() == ""
        blocks = tensor.codes.read(0, tensor.codes.n_rows)
        assert np.array_equal(dequantize(blocks, tensor.codes.dtype), tensor.rows.read(0, tensor.rows.n_rows))
        assert np.array_equal(tensor.codes.read(9, 23), blocks[9:23])
