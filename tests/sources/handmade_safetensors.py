"""Safetensors files byte by byte, sound or broken as a test wants them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

DTYPES = {
    np.dtype("f4"): "F32", np.dtype("f2"): "F16", np.dtype("f8"): "F64",
    np.dtype("i8"): "I64", np.dtype("i4"): "I32", np.dtype("u1"): "U8",
    np.dtype("i2"): "I16", np.dtype("i1"): "I8",
}  # fmt: skip


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A whole file; `header` is JSON or the bytes that stand in its place."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def fp8(codes: np.ndarray) -> tuple[str, np.ndarray]:
    """An array of codes as an F8_E4M3 tensor."""
    return "F8_E4M3", codes.astype(np.uint8)


def bf16(values: np.ndarray) -> tuple[str, np.ndarray]:
    """Values that bfloat16 can hold, as a BF16 tensor."""
    return "BF16", (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(
    path: Path,
    tensors: dict[str, np.ndarray | tuple[str, np.ndarray]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write arrays, and codes with their dtype, as a sound file."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, tensor in tensors.items():
        dtype, codes = tensor if isinstance(tensor, tuple) else (DTYPES[tensor.dtype], tensor)
        offsets = [len(data), len(data) + codes.nbytes]
        header[name] = {"dtype": dtype, "shape": list(codes.shape), "data_offsets": offsets}
        data += codes.tobytes()
    path.write_bytes(safetensors(header, data))
