"""The tiny quantized checkpoints of tests/data/quantized, and what the libraries make of their tensors."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.tensors import CheckpointTensor

DATA = Path(__file__).parent / "data"
QUANTIZED = DATA / "quantized"
N_TOKENS = 312  # of the tests' tokenizer
Tensors = dict[str, list]  # by name: dtype, shape, bytes


def tensors_of(name: str) -> dict[str, CheckpointTensor]:
    """The weights of a checkpoint by name."""
    return dict(open_checkpoint(QUANTIZED / name).tensors)


def goldens_of(name: str, kind: str = "library") -> dict[str, dict]:
    """What the library, or llama.cpp's converter, gives: by tensor its type, shape and SHA-256."""
    return json.loads((QUANTIZED / name / "golden.json").read_text())[kind]


def rows_of(tensor: CheckpointTensor) -> np.ndarray:
    """All weights of a tensor, in f32, read in pieces of three rows: in the tensor's shape."""
    assert tensor.rows is not None
    pieces = [
        tensor.rows.read_float32(start, min(start + 3, tensor.rows.n_rows))
        for start in range(0, tensor.rows.n_rows, 3)
    ]
    return np.concatenate(pieces).reshape(tensor.shape)


def sha256_of(weights: np.ndarray, dtype: str, *, zeros: str = "signed") -> str:
    """The SHA-256 of weights rounded to a type; some libraries have no negative zeros."""
    if zeros == "positive":
        weights = np.where(weights == 0, np.float32(0), weights)
    weights = np.ascontiguousarray(weights, np.float32)
    if dtype == "bfloat16":
        bits = weights.view(np.uint32)
        raw = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    else:
        raw = weights.astype({"float32": "<f4", "float16": "<f2"}[dtype])
    return hashlib.sha256(raw.tobytes()).hexdigest()


def edited(name: str, folder: Path, edit: Callable[[Tensors], object]) -> Path:
    """A copy of a checkpoint in a folder, its tensors edited."""
    target = folder / name
    shutil.copytree(QUANTIZED / name, target)
    raw = (target / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors: Tensors = {}
    for key, tensor in header.items():
        start, end = tensor["data_offsets"]
        tensors[key] = [tensor["dtype"], tensor["shape"], raw[8 + size + start : 8 + size + end]]
    edit(tensors)
    made, data = {}, b""
    for key, (dtype, shape, part) in tensors.items():
        made[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(made).encode()
    (target / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return target


def with_tokenizer(name: str, folder: Path) -> Path:
    """A copy of a checkpoint that can be converted: with the tests' tokenizer, and embeddings of its size."""

    def lengthen(tensors: Tensors) -> None:
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            columns = tensors[key][1][1]
            values = np.random.default_rng(len(key)).normal(0, 0.02, (N_TOKENS, columns)).astype("<f4")
            tensors[key][1:] = [[N_TOKENS, columns], (values.view("<u4") >> 16).astype("<u2").tobytes()]

    target = edited(name, folder, lengthen)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "vocab_size": N_TOKENS}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "hf" / file, target / file)
    return target
