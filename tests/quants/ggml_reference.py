"""ggml itself, through ctypes: the judge of every encoder and decoder (wheel `libggml-python`)."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggplan.ggml_types import parse_type


@cache
def _library(path: Path | None = None) -> ctypes.CDLL:
    """The library of the wheel, or another one."""
    if path is None:
        spec = importlib.util.find_spec("libggml")
        assert spec is not None
        assert spec.origin is not None
        path = next(Path(spec.origin).parent.glob("lib*/*ggml-base.*"))
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    return library


def quantize(
    rows: NDArray[np.float32],
    type_name: str,
    importance: NDArray[np.float32] | None = None,
    out: NDArray[np.uint8] | None = None,
    library: Path | None = None,
) -> NDArray[np.uint8]:
    """What `ggml_quantize_chunk` makes of `rows` (n_rows, n_columns): uint8 (n_rows, row_bytes).

    `library` is another ggml than the wheel's.
    """
    ggml_type = parse_type(type_name)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    if out is None:
        out = np.empty((rows.shape[0], ggml_type.row_bytes(rows.shape[1])), np.uint8)
    ggml = _library(library)
    ggml.ggml_quantize_init(ggml_type.id)
    written = ggml.ggml_quantize_chunk(
        ggml_type.id,
        rows.ctypes.data,
        out.ctypes.data,
        0,
        rows.shape[0],
        rows.shape[1],
        None if importance is None else importance.ctypes.data,
    )
    assert written == out.nbytes
    return out


def dequantize(blocks: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    """What ggml's `to_float` makes of `blocks` (n_rows, row_bytes): float32 (n_rows, n_columns)."""
    ggml_type = parse_type(type_name)
    names = {"f16": "ggml_fp16_to_fp32_row", "bf16": "ggml_bf16_to_fp32_row"}
    to_float = getattr(_library(), names.get(type_name, f"dequantize_row_{type_name}"))
    to_float.restype = None
    to_float.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    assert blocks.flags.c_contiguous
    n_columns = blocks.shape[1] // ggml_type.block_bytes * ggml_type.block_size
    weights = np.empty((blocks.shape[0], n_columns), np.float32)
    to_float(blocks.ctypes.data, weights.ctypes.data, weights.size)
    return weights
