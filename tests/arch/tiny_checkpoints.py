"""Tiny Hugging Face checkpoints of every architecture, made anywhere without torch.

`tests/data/hf/CASE.json` holds what transformers once saved for a random tiny model, without its weights: the
config, further files, and for each safetensors file the tensors' names, types and shapes. The weights come
from SHAKE-256 of the tensor's name, so they are the same everywhere and for ever.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ggplan.model import Model, TensorInfo

DATA = Path(__file__).parent.parent / "data"
CASES = sorted(path.stem for path in (DATA / "hf").glob("*.json") if not path.stem.startswith("tokenizer"))
# What the converter is asked to write, so that no weight is rounded; bf16 for all others.
OUTTYPES = {"llama_tied": "f16", "llama_bias": "f32", "qwen3_5_f16": "f16"}
# Further options of the converter: it cannot go on with a model of these classes that has no such layers.
OPTIONS = {case: ["--no-mtp"] for case in ("qwen3_next", "qwen3_5", "qwen3_5_f16", "qwen3_5_moe_absent")}


def weights(name: str, dtype: str, n: int) -> bytes:
    """Finite values with every bit of the mantissa in use, as a safetensors file holds them."""
    if dtype == "F32":
        raw = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * n), "<u4")
        return ((raw & 0x807FFFFF) | (121 + (raw >> 23) % 7) << 23).astype("<u4").tobytes()
    if dtype == "F64":  # more digits than a float32 has
        return (np.frombuffer(weights(name, "F32", n), "<f4").astype("<f8") * 1.0000000123).tobytes()
    if dtype == "F8_E5M2":
        codes = np.frombuffer(weights(name, "F8_E4M3", n), np.uint8)
        return np.where(codes & 0x7C == 0x7C, codes & 0xBF, codes).astype(np.uint8).tobytes()
    raw = np.frombuffer(hashlib.shake_256(name.encode()).digest(2 * n), "<u2")
    if dtype == "F16":
        return ((raw & 0x83FF) | (9 + (raw >> 10) % 7) << 10).astype("<u2").tobytes()
    if dtype == "F8_E4M3":
        return (raw % 0x7F | raw >> 8 & 0x80).astype(np.uint8).tobytes()
    return ((raw & 0x807F) | (121 + (raw >> 7) % 7) << 7).astype("<u2").tobytes()


def write_tensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file of such weights: type and shape by name."""
    header, parts, end = {}, [], 0
    for name, (dtype, shape) in tensors.items():
        parts.append(weights(name, dtype, math.prod(shape)))
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def write_tokenizer(folder: Path) -> None:
    """The one small tokenizer: 300 byte-level tokens and twelve added ones, split as GLM-4 does."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DATA / "hf" / name, folder / name)


def read_case(case: str) -> dict:
    """A case as it is kept."""
    return json.loads((DATA / "hf" / f"{case}.json").read_text())


def write_case(folder: Path, spec: dict) -> Path:
    """The checkpoint of a case, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(spec["config"]))
    if spec.get("pieces"):
        shutil.copy(DATA / "hf" / "small.model", folder / "tokenizer.model")
    for name, text in spec.get("files", {}).items():
        (folder / name).write_text(text)
    for name, tensors in spec["shards"].items():
        write_tensors(folder / name, tensors)
    if len(spec["shards"]) > 1:
        weight_map = {tensor: shard for shard, tensors in spec["shards"].items() for tensor in tensors}
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def encode(rows: np.ndarray, kind: str) -> bytes:
    """float32 rows as bytes of f32, f16 or bf16, rounded to the nearest, ties to even."""
    if kind == "f32":
        return rows.astype("<f4").tobytes()
    if kind == "f16":
        return rows.astype("<f2").tobytes()
    assert kind == "bf16"
    bits = rows.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def golden_keys(model: Model) -> dict[str, object]:
    """Each key's type and value; of an array its item type, its length and the hash of its bytes."""
    return {
        key: [value.item_type.name, value.length, digest(value.data)]
        if value.item_type is not None
        else [value.type.name, value.decode()]
        for key, value in model.metadata.items()
        if key != "general.file_type"  # the planner's to write
    }


def golden_tensors(model: Model) -> list[list[object]]:
    """Each tensor's name, type, shape and the hash of its bytes in that type."""
    return [[t.name, t.type.name, list(t.shape), digest(tensor_bytes(t))] for t in model.tensors]


def tensor_bytes(tensor: TensorInfo) -> bytes:
    """A whole tensor's bytes in its own type."""
    if tensor.stored is not None:
        return bytes(tensor.stored.read_bytes(0, tensor.n_rows))
    assert tensor.rows is not None
    rows = tensor.rows.read_float32(0, tensor.n_rows)
    assert rows.shape == (tensor.n_rows, tensor.n_columns)
    assert rows.dtype == np.float32
    return encode(rows, tensor.type.name)


def golden_summary(model: Model) -> dict[str, object]:
    """The keys, and one hash of all that `golden_tensors` says."""
    return {"keys": golden_keys(model), "tensors": digest(json.dumps(golden_tensors(model)).encode())}


def digest(data: bytes) -> str:
    """Enough of a SHA-256 to tell two arrays apart."""
    return hashlib.sha256(data).hexdigest()[:24]
