"""The bytes of a GGUF file around its weights: header, places, padding.

A GGUF file (version 3; ggml, `docs/gguf.md`) is

    magic "GGUF" | version:u32 | n_tensors:u64 | n_pairs:u64
    n_pairs   x  key:string value                    (see ggplan.metadata)
    n_tensors x  name:string n_dims:u32 dims:u64*n_dims (ggml's ne0 first) type:u32 offset:u64
    padding to 32
    tensor data, each tensor padded to 32; `offset` counts from the start of this part

so metadata, types and shapes alone determine the whole layout. Trailing dimensions of 1 (a matrix of one row)
are written as llama.cpp writes them: its converter keeps those of the checkpoint, and llama-quantize leaves
them out (`ggml_n_dims`). Both load alike.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from ggplan.metadata import Metadata

ALIGNMENT = 32
VERSION = 3

TensorEntry = tuple[str, tuple[int, ...], int, int]
"""Name, shape (rows first), type id, offset in the data part."""


def padded(n_bytes: int) -> int:
    """`n_bytes` rounded up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def place(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Offsets of tensors of these sizes, one after the other, and the size of the data part."""
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at = padded(at + size)
    return offsets, at


def encode_header(metadata: Metadata, tensors: Sequence[TensorEntry], *, whole_shapes: bool = False) -> bytes:
    """The file up to its data part, padding included.

    `whole_shapes` is whether dimensions of 1 at the end are written.
    """
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), value.encode()]
    for name, shape, type_id, offset in tensors:
        dims = ((shape or (1,)) if whole_shapes else written_shape(shape))[::-1]
        parts += [_string(name), struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)]
    header = b"".join(parts)
    return header.ljust(padded(len(header)), b"\0")


def written_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (rows first) that llama-quantize writes for this one: without leading dimensions of 1."""
    first = next((k for k, extent in enumerate(shape) if extent != 1), len(shape) - 1)
    return shape[first:] or (1,)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw
