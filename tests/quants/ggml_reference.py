"""ggml itself, through ctypes: the judge of every encoder and decoder (wheel `libggml-python`).

Before it encodes to grids, ggml builds tables for half a minute, in each process. So what it answered is
kept in `tests/data/ggml_answers.txt`: digests of its blocks, under digests of all that it was given. A test
that has the very blocks has ggml's; for others, for other weights and for another ggml, ggml itself is asked.
To ask it everything again and keep the answers:

    GGML_ANSWERS=keep python -m pytest -n 0 tests/quants/test_{decode,decode_grids,encode_grids,iq1}.py
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggplan.ggml_types import parse_type

_ANSWERS = Path(__file__).parents[1] / "data" / "ggml_answers.txt"
_KEEPS = os.environ.get("GGML_ANSWERS") == "keep"


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
    guess: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """What `ggml_quantize_chunk` makes of `rows` (n_rows, n_columns): uint8 (n_rows, row_bytes).

    `library` is another ggml than the wheel's. `guess` are blocks that may be ggml's: if those that it gave
    before are the same, they are returned, and it is not asked.
    """
    ggml_type = parse_type(type_name)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    if guess is not None:
        question = _question(rows, type_name, importance)
        if not _KEEPS and _answers().get(question) == _digest(guess.tobytes()):
            return guess
        answer = quantize(rows, type_name, importance)
        _answers()[question] = _digest(answer.tobytes())
        return answer
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


def _question(rows: NDArray[np.float32], type_name: str, importance: NDArray[np.float32] | None) -> str:
    """A digest of all that ggml is given."""
    weighted = b"" if importance is None else importance.tobytes()
    return _digest(f"{type_name} {rows.shape} {len(weighted)} ".encode() + rows.tobytes() + weighted)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


@cache
def _answers() -> dict[str, str]:
    """The kept answers of this ggml, or none."""
    title = f"libggml-python {importlib.metadata.version('libggml-python')}: questions and answers"
    first, *lines = _ANSWERS.read_text().splitlines() if _ANSWERS.exists() else [""]
    kept = dict(line.split() for line in lines) if first == title else {}
    if _KEEPS:
        atexit.register(_keep, title, kept)
    return kept


def _keep(title: str, answers: dict[str, str]) -> None:
    lines = [title, *(f"{question} {answer}" for question, answer in sorted(answers.items()))]
    _ANSWERS.write_text("".join(f"{line}\n" for line in lines))
