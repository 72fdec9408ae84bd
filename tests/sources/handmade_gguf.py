"""GGUF files byte by byte, sound or broken as a test wants them."""

from __future__ import annotations

import struct
from collections.abc import Iterable

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(raw: bytes | str, length: int | None = None) -> bytes:
    """A GGUF string, with a false length on request."""
    data = raw.encode() if isinstance(raw, str) else raw
    return struct.pack("<Q", len(data) if length is None else length) + data


def pair(key: bytes | str, kind: int, data: bytes) -> bytes:
    """A key-value pair."""
    return text(key) + struct.pack("<I", kind) + data


def array(key: str, item_type: int, length: int, data: bytes) -> bytes:
    """A key-value pair whose value is an array."""
    return pair(key, ARRAY, struct.pack("<IQ", item_type, length) + data)


def record(
    name: bytes | str, dims: Iterable[int], type_id: int, offset: int, n_dims: int | None = None
) -> bytes:
    """A tensor record; `dims` has ne0 first, as in the file."""
    dims = list(dims)
    count = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, type_id, offset)


def gguf(
    pairs: Iterable[bytes] = (),
    records: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    alignment: int = 32,
    version: int = 3,
    n_pairs: int | None = None,
    n_records: int | None = None,
    magic: bytes = b"GGUF",
) -> bytes:
    """A whole file: header, padding, data."""
    pairs, records = list(pairs), list(records)
    counts = (len(records) if n_records is None else n_records, len(pairs) if n_pairs is None else n_pairs)
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(records)
    return header + bytes(-len(header) % alignment) + data


def small_model() -> bytes:
    """A sound file with every kind of value and four tensors of different types."""
    pairs = [
        pair("general.architecture", STRING, text("llama")),
        pair("llama.block_count", U32, struct.pack("<I", 2)),
        pair("a.bool", BOOL, b"\x01"),
        pair("a.double", F64, struct.pack("<d", 0.1)),
        array("tokens", STRING, 3, text("a") + text("") + text("ccc")),
        array("scores", F32, 3, struct.pack("<3f", 1, 2, 3)),
        pair("general.alignment", U32, struct.pack("<I", 32)),
    ]
    records = [
        record("a", (64, 2), 0, 0),
        record("b", (32, 3), 8, 512),
        record("c", (256, 2, 2), 12, 640),
        record("d", (5,), 1, 1216),
    ]
    return gguf(pairs, records, bytes(range(256)) * 4 + bytes(224))
