"""Whole models whose matrices are stored as integers: the tensors are those of the model of their weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import read_case, write_case

from ggplan import open_model

GROUP = 32
NATURAL, INTERLEAVED = (0, 1, 2, 3, 4, 5, 6, 7), (0, 4, 1, 5, 2, 6, 3, 7)
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
CONFIGS: dict[str, dict[str, Any]] = {
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["re:.*layers.0.*"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4}},
    },
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False,
             "lm_head": True, "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": ["layers.0.", "lm_head"]},
}  # fmt: skip


def words(codes: np.ndarray, nibbles: tuple[int, ...] = NATURAL) -> np.ndarray:
    """Eight codes of a row in a word."""
    eights = codes.reshape(len(codes), -1, 8).astype(np.uint32)
    return (eights << (4 * np.array(nibbles, np.uint32))).sum(-1, dtype=np.uint32).view(np.int32)


def quantized(method: str, codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a module, by the end of their names."""
    if method == "compressed-tensors":
        return {
            "weight_packed": words(codes),
            "weight_scale": scales.astype(np.float16),
            "weight_shape": np.array(codes.shape, np.int64),
        }
    if method == "gptq":
        return {
            "qweight": words(codes).T,
            "qzeros": words(zeros.T - 1),
            "scales": scales.T.astype(np.float16),
            "g_idx": (np.arange(codes.shape[1]) // GROUP).astype(np.int32),
        }
    return {
        "qweight": words(codes.T, INTERLEAVED),
        "qzeros": words(zeros.T, INTERLEAVED),
        "scales": scales.T.astype(np.float16),
    }


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    names = {"i4": "I32", "i8": "I64", "f2": "F16", "f4": "F32"}
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        offsets = [len(data), len(data) + values.nbytes]
        header[name] = {
            "dtype": names[values.dtype.str[1:]], "shape": list(values.shape), "data_offsets": offsets,
        }  # fmt: skip
        data += values.tobytes()
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def write_pair(folder: Path, case: str, method: str) -> tuple[Path, Path]:
    """A model whose matrices are integers but for those of layer 0, and the model of their weights."""
    spec = read_case(case)
    rng = np.random.default_rng(7)
    integers: dict[str, np.ndarray] = {}
    plain: dict[str, np.ndarray] = {}
    for shard in spec["shards"].values():
        for name in list(shard):
            is_head = name == "lm_head.weight" and method == "gptq"
            if "layers.0." in name or not (name.endswith("_proj.weight") or is_head):
                continue
            n_rows, n_columns = shard.pop(name)[1]
            codes = rng.integers(0, 16, (n_rows, n_columns))
            zeros = np.full((n_rows, n_columns // GROUP), 8)
            if method == "awq":
                zeros = rng.integers(0, 16, zeros.shape)
            scales = rng.integers(-100, 100, zeros.shape) / np.float32(4096)
            module = name.removesuffix(".weight")
            for part, values in quantized(method, codes, zeros, scales).items():
                integers[f"{module}.{part}"] = values
            levels = codes - zeros.repeat(GROUP, axis=1)
            plain[name] = (levels * scales.repeat(GROUP, axis=1)).astype(np.float32)
    assert plain
    folders = folder / "integers", folder / "plain"
    for path, added in zip(folders, (integers, plain), strict=True):
        own = copy.deepcopy(spec)
        if path.name == "integers":
            own["config"]["quantization_config"] = CONFIGS[method]
        write_case(path, own)
        (path / "model.safetensors.index.json").unlink(missing_ok=True)
        for i, old in enumerate(sorted(own["shards"])):
            (path / old).rename(path / f"model-{i + 1:02d}.safetensors")
        # Scales and zero points are in another shard than the codes.
        first = {name: v for name, v in added.items() if "scale" not in name and "zero" not in name}
        write(path / "model-98.safetensors", first)
        if rest := {name: v for name, v in added.items() if name not in first}:
            write(path / "model-99.safetensors", rest)
    return folders


@pytest.mark.parametrize("case", ["llama", "glm4moe", "qwen3moe"])
@pytest.mark.parametrize("method", CONFIGS)
def test_a_model_of_integers_has_the_tensors_of_its_weights(case: str, method: str, tmp_path: Path) -> None:
    integers, plain = (open_model(folder) for folder in write_pair(tmp_path, case, method))
    assert [t.name for t in integers.tensors] == [t.name for t in plain.tensors]
    for name in (tensor.name for tensor in plain.tensors):
        ours, theirs = integers[name].rows, plain[name].rows
        assert ours is not None
        assert theirs is not None
        assert integers[name].shape == plain[name].shape
        assert ours.fault() == ""
        assert np.array_equal(ours.read_float32(0, ours.n_rows), theirs.read_float32(0, theirs.n_rows)), name
    assert any("int4" in tensor.stored_as for tensor in integers.tensors)
