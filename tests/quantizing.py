"""A checkpoint in bf16 as llm-compressor, AutoAWQ and AutoGPTQ write it in 4 bits, rounded to nearest.

    w4a16   compressed-tensors `pack-quantized`, symmetric, scales absmax / 7.5 in BF16 (W4A16)
    awq     GEMM, with zero points, scales of the range of a group in F16
    gptq    the first format (zero points less 1), symmetric, scales absmax / 7.5 in F16

Quantized is what these tools quantize: every linear layer but the router and the head, one module for each
expert. How codes are chosen (with the activations of a calibration) leaves no trace in the form.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ggplan.sources.safetensors import read_tensors

GROUP = 32
NATURAL, INTERLEAVED = (0, 1, 2, 3, 4, 5, 6, 7), (0, 4, 1, 5, 2, 6, 3, 7)
_WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
_WEIGHTS |= {"block_structure": None, "dynamic": False, "observer": "minmax", "actorder": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "w4a16": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "quantization_status": "compressed", "version": "0.20.1", "kv_cache_scheme": None,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": _WEIGHTS, "input_activations": None,
                                      "output_activations": None}},
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": ["mlp.gate"]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False,
             "static_groups": False, "true_sequential": True, "checkpoint_format": "gptq", "lm_head": False},
}  # fmt: skip


def words(codes: np.ndarray, nibbles: tuple[int, ...] = NATURAL) -> np.ndarray:
    """Eight codes of a row in a word."""
    eights = codes.reshape(len(codes), -1, 8).astype(np.uint32)
    return (eights << (4 * np.array(nibbles, np.uint32))).sum(-1, dtype=np.uint32).view(np.int32)


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """Rounded to bf16, to nearest even."""
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32).astype(np.uint64)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2")


def _module(form: str, weights: np.ndarray) -> tuple[dict[str, tuple[str, np.ndarray]], np.ndarray]:
    """The tensors of a module, by the end of their names, and the weights that they stand for in float32."""
    n_rows, n_columns = weights.shape
    groups = weights.reshape(n_rows, -1, GROUP)
    if form == "awq":
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scales = np.maximum((high - low) / 15, 1e-5).astype(np.float16)
        wide = scales.astype(np.float32)
        zeros = np.clip(np.rint(-low / wide), 0, 15)
    else:
        wide = np.maximum(np.abs(groups).max(-1) / np.float32(7.5), np.float32(1e-5))
        scales = bf16_bits(wide) if form == "w4a16" else wide.astype(np.float16)
        wide = (scales.astype(np.uint32) << 16).view(np.float32) if form == "w4a16" else scales.astype("f4")
        zeros = np.full(wide.shape, 8.0)
    codes = np.clip(np.rint(groups / wide[..., None]) + zeros[..., None], 0, 15)
    decoded = ((codes - zeros[..., None]).astype(np.float32) * wide[..., None]).reshape(weights.shape)
    codes, zeros = codes.astype(int).reshape(weights.shape), zeros.astype(int)
    if form == "w4a16":
        shape = np.array(weights.shape, "<i8")
        return {"weight_packed": ("I32", words(codes)), "weight_scale": ("BF16", scales),
                "weight_shape": ("I64", shape)}, decoded  # fmt: skip
    if form == "awq":
        return {"qweight": ("I32", words(codes.T, INTERLEAVED)), "scales": ("F16", scales.T),
                "qzeros": ("I32", words(zeros.T, INTERLEAVED))}, decoded  # fmt: skip
    order = (np.arange(n_columns) // GROUP).astype("<i4")
    return {"qweight": ("I32", words(codes).T), "g_idx": ("I32", order),
            "qzeros": ("I32", words(zeros.T - 1)), "scales": ("F16", scales.T)}, decoded  # fmt: skip


def quantized_folder(source: Path, target: Path, form: str) -> dict[str, np.ndarray]:
    """A copy of a checkpoint of one file in a form; the weights that its codes stand for, by name."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIGS[form]}))
    decoded: dict[str, np.ndarray] = {}
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    raw = (source / "model.safetensors").read_bytes()
    for name, tensor in read_tensors(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            weights = tensor.read_floats(0, tensor.n_weights).reshape(tensor.shape)
            module, decoded[name] = _module(form, weights)
            tensors |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in module.items()}
        else:
            data = np.frombuffer(raw[tensor.offset : tensor.offset + tensor.n_bytes], np.uint8)
            values = data.view("<u2" if tensor.dtype == "BF16" else "<f4").reshape(tensor.shape)
            tensors[name] = (tensor.dtype, values)
    header, data, at = {}, [], 0
    for name, (dtype, values) in tensors.items():
        part = np.ascontiguousarray(values).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + len(part)]}
        data.append(part)
        at += len(part)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (target / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))
    return decoded
