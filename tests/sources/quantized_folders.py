"""The tiny quantized checkpoints of tests/data/quantized, and what the libraries make of their tensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.tensors import CheckpointTensor

QUANTIZED = Path(__file__).parent.parent / "data" / "quantized"


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
