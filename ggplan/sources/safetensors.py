"""The header of a safetensors file, read with the Rust library's own rules.

    length:u64 header:JSON[length] data

The header maps names to `{"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}`, with
offsets that count from the first byte of the data, and may hold one object of strings, `__metadata__`. The
tensors must cover the data exactly, without a hole, an overlap or a byte left over, so that nothing can be
hidden in the file, and no tensor can read another's bytes.

Rules: safetensors 0.8.0, `safetensors/src/tensor.rs` (`SafeTensors::read_metadata`, `Metadata::validate`).
Stricter here: a name may not occur twice, not even with the same contents.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ggplan.errors import CheckpointError, TruncatedError
from ggplan.sources.files import file_size, read_at, shown
from ggplan.sources.json_files import parse_object
from ggplan.sources.tensors import DTYPE_BITS, StoredTensor

__all__ = ["HEADER_LIMIT", "StoredTensor", "library_io_errors", "read_file", "read_tensors"]

HEADER_LIMIT = 100_000_000
# NumPy's own limit; and it keeps the product of a shape from becoming a number of a million digits.
_MAX_DIMENSIONS = 64
# The limit of a dimension: a tensor without weights could claim any number of rows.
_EMPTY_LIMIT = 1 << 31


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name, in the order of their names.

    Raises
    ------
    TruncatedError
        If the file ends before its data does.
    CheckpointError
        As `read_file`.
    """
    tensors, truncated = read_file(path)
    if truncated is not None:
        raise truncated
    return tensors


def read_file(path: Path) -> tuple[dict[str, StoredTensor], TruncatedError | None]:
    """The tensors, and the error of a file that ends before its data does.

    Raises
    ------
    CheckpointError
        If the header breaks a rule of the format or the file is larger than it says.
    """
    where, size = shown(path), file_size(path)
    header, data_at = _read_header(path, where, size)
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, data_at) for name, entry in sorted(header.items())]
    truncated = _truncation(tensors, where, size)
    try:
        _check_coverage(tensors, where, data_at, size)
    except CheckpointError as error:
        raise truncated or error from None
    return {tensor.name: tensor for tensor in tensors}, truncated


def read_metadata(path: Path) -> dict[str, str]:
    """The strings of `__metadata__`; empty if there are none.

    Raises
    ------
    CheckpointError
        As `read_file`.
    """
    header, _ = _read_header(path, shown(path), file_size(path))
    metadata = header.get("__metadata__")
    return dict(metadata) if isinstance(metadata, dict) else {}


def _read_header(path: Path, where: str, size: int) -> tuple[dict[str, object], int]:
    """The header, parsed, and where the data begins."""
    if size < 8:
        raise CheckpointError(f"{where} is not a safetensors file: it has {size} bytes")
    length = int.from_bytes(read_at(path, 0, 8), "little")
    if length > HEADER_LIMIT:
        raise CheckpointError(f"{where} is not a safetensors file: its header would have {length:,} bytes")
    if 8 + length > size:
        raise CheckpointError(
            f"{where} is truncated: its header has {length:,} bytes, the file has {size:,}",
            hint="download the file again",
        )
    header = parse_object(read_at(path, 8, length), f"the header of {where}")
    _check_metadata(header.get("__metadata__"), where)
    return header, 8 + length


def _truncation(tensors: list[StoredTensor], where: str, size: int) -> TruncatedError | None:
    """The error of a file that ends before one of its tensors does."""
    cut = [tensor for tensor in tensors if tensor.offset + tensor.n_bytes > size]
    if not cut:
        return None
    end = max(tensor.offset + tensor.n_bytes for tensor in cut)
    first = min(cut, key=lambda tensor: tensor.offset)
    return TruncatedError(
        f"{where}: the file is truncated: it has {size:,} bytes and should have {end:,}; it ends within "
        f"tensor '{shown(first.name)}'",
        hint="download the file again",
    )


def _check_metadata(metadata: object, where: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"{where}: __metadata__ is not an object of strings")


def _tensor(path: Path, name: str, entry: object, data_at: int) -> StoredTensor:
    where = f"{shown(path)}: tensor '{shown(name)}'"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where} lacks its dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where} has the unknown dtype {shown(repr(dtype))}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(f"{where} has the impossible shape {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has the impossible data_offsets {shown(offsets)}")
    begin, end = offsets
    n_bits = math.prod(shape) * DTYPE_BITS[dtype]
    if n_bits != 8 * (end - begin):
        raise CheckpointError(
            f"{where} has {8 * (end - begin):,} bits, but {dtype} of shape {shown(shape)} "
            f"takes {shown(f'{n_bits:,}')}"
        )
    if n_bits == 0 and math.prod(max(extent, 1) for extent in shape) > _EMPTY_LIMIT:
        raise CheckpointError(f"{where} has no weights and the impossible shape {shown(shape)}")
    return StoredTensor(name, dtype, tuple(shape), path, data_at + begin, end - begin)


def _are_sizes(value: object) -> bool:
    """Whether a JSON value is a list of integers from 0 to 2^64 - 1 (`True` is not an integer here)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 64 for item in value)


def _check_coverage(tensors: list[StoredTensor], where: str, data_at: int, size: int) -> None:
    at = data_at
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.n_bytes)):
        if tensor.offset != at:
            what = "overlaps the tensor before it" if tensor.offset < at else "leaves a hole before it"
            raise CheckpointError(
                f"{where}: tensor '{shown(tensor.name)}' {what}: it begins at {tensor.offset:,}, not {at:,}"
            )
        at += tensor.n_bytes
    if at < size:
        raise CheckpointError(f"{where} has {size - at:,} bytes that belong to no tensor")


@contextmanager
def library_io_errors() -> Iterator[None]:
    """Inside the block a write that fails in the safetensors library raises OSError, as elsewhere.

    The library has an error of its own for it, which gives the number of the system's only in its text.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d{1,4})\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
