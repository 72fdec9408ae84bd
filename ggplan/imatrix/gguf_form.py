"""The GGUF form of an imatrix, which llama-imatrix writes since July 2025.

It has the keys `imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size`, and for a weight NAME two
f32 tensors: `NAME.in_sum2`, sums of squares with a row for each matrix, and `NAME.counts`, the tokens each
matrix saw. Tensors with other suffixes (`.in_sum`, `.stats`) hold statistics for display. A stacked weight
that is not used as experts (`attn_k_b`) has all its sums in one row and a single count.

llama.cpp b11434: writer `tools/imatrix/imatrix.cpp`, reader `common/imatrix-loader.cpp`, normalising
`tools/quantize/quantize.cpp`: one float32 division by the count as float32; ones where the count is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ggplan.errors import ImatrixError
from ggplan.ggml_types import F32
from ggplan.imatrix.entries import (
    Imatrix,
    ImatrixEntry,
    ReadOnDemand,
    checked_entry,
    read_floats,
)
from ggplan.imatrix.sums import ImatrixSums, Sums
from ggplan.metadata import MetadataType, array, string, uint32
from ggplan.sources.files import shown
from ggplan.sources.gguf_header import GgufHeader, TensorRecord, read_header
from ggplan.sources.gguf_writing import TensorEntry, encode_header, padded, place

_SUMS, _COUNTS = ".in_sum2", ".counts"
_UNSEEN = "ggplan.imatrix.unseen"
_COUNT_LIMIT = 2.0**48
_DATASET_LIMIT = 1024


def open_gguf_form(path: Path) -> Imatrix:
    """Open an imatrix that is a GGUF file; the values are read entry by entry, when asked for."""
    header, pairs = _read_pairs(path)
    datasets, chunk_count, _ = _description(header)
    readers = {name: partial(_read_entry, path, name, *pair) for name, pair in pairs.items()}
    return Imatrix(path, datasets, chunk_count, ReadOnDemand(readers))


def open_gguf_sums(path: Path) -> ImatrixSums:
    """The sums of an imatrix that is a GGUF file, read entry by entry, when asked for."""
    header, pairs = _read_pairs(path)
    datasets, _, chunk_size = _description(header)
    readers = {name: partial(_read_sums, path, name, *pair) for name, pair in pairs.items()}
    unseen = header.metadata.get(_UNSEEN)
    policy: tuple[str, ...] = ()
    if unseen is not None and unseen.item_type is MetadataType.STRING:
        policy = tuple(str(text) for text in unseen.decode_items(unseen.length))
    suffixes = {f".{r.name.rpartition('.')[2]}" for r in header.tensors} - {_SUMS, _COUNTS}
    return ImatrixSums(datasets, chunk_size, ReadOnDemand(readers), policy, tuple(sorted(suffixes)))


def _read_pairs(path: Path) -> tuple[GgufHeader, dict[str, tuple[TensorRecord, TensorRecord]]]:
    """The header, and the sums and counts of each weight."""
    header = read_header(path)
    sums: dict[str, TensorRecord] = {}
    counts: dict[str, TensorRecord] = {}
    for record in header.tensors:
        for suffix, found in ((_SUMS, sums), (_COUNTS, counts)):
            if record.name.endswith(suffix):
                found[record.name.removesuffix(suffix)] = record
    if not sums:
        raise ImatrixError(
            f"{shown(path)} is a GGUF file but not an imatrix: it has no tensor NAME.in_sum2",
            hint="make one with llama-imatrix",
        )
    for name in sums.keys() ^ counts.keys():
        lacking = _COUNTS if name in sums else _SUMS
        raise ImatrixError(f"{shown(path)}: '{shown(name)}' has no tensor '{shown(name)}{lacking}'")
    for name in sums:
        _check_pair(path, name, sums[name], counts[name])
    return header, {name: (sums[name], counts[name]) for name in sorted(sums)}


def _check_pair(path: Path, name: str, sums: TensorRecord, counts: TensorRecord) -> None:
    where = f"{shown(path)}: '{shown(name)}'"
    if sums.type is not F32 or counts.type is not F32:
        raise ImatrixError(f"{where} has sums of {sums.type} and counts of {counts.type}; both must be f32")
    if counts.n_bytes == 0 or sums.n_bytes % counts.n_bytes:
        raise ImatrixError(f"{where} has {sums.n_bytes // 4:,} sums for {counts.n_bytes // 4:,} counts")


def _read_sums(path: Path, name: str, sums: TensorRecord, counts: TensorRecord) -> Sums:
    stated = read_floats(path, counts.offset, counts.n_bytes // 4)
    if not np.isfinite(stated).all() or (np.abs(stated) > _COUNT_LIMIT).any():
        raise ImatrixError(f"{shown(path)}: the counts of '{shown(name)}' are not numbers of tokens")
    # C's lround: to the nearest whole number, halves away from zero (which float64 adds without rounding).
    tokens = np.trunc(stated + np.copysign(0.5, stated.astype(np.float64))).astype(np.int64)
    values = read_floats(path, sums.offset, sums.n_bytes // 4).reshape(len(tokens), -1)
    return Sums(values, tokens)


def _read_entry(path: Path, name: str, sums: TensorRecord, counts: TensorRecord) -> ImatrixEntry:
    found = _read_sums(path, name, sums, counts)
    return checked_entry(path, name, found.means(), found.counts)


def _description(header: GgufHeader) -> tuple[tuple[str, ...], int, int]:
    """The datasets, the number of chunks and the tokens of one; llama-quantize takes no file without them."""
    where = shown(header.path)
    for key in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        if key not in header.metadata:
            raise ImatrixError(f"{where} is an incomplete imatrix: it lacks the key {key}")
    datasets = header.metadata["imatrix.datasets"]
    if datasets.item_type is not MetadataType.STRING:
        raise ImatrixError(f"{where}: imatrix.datasets is not an array of strings")
    numbers = []
    for key in ("imatrix.chunk_count", "imatrix.chunk_size"):
        value = header.metadata[key]
        number = value.decode() if value.item_type is None else None
        if not isinstance(number, int):
            raise ImatrixError(f"{where}: {key} is not a number")
        numbers.append(number)
    return tuple(str(name) for name in datasets.decode_items(_DATASET_LIMIT)), numbers[0], numbers[1]


def gguf_pieces(imatrix: ImatrixSums, chunk_count: int) -> Iterator[bytes]:
    """The file that llama-imatrix writes for these sums, piece by piece."""
    metadata = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(MetadataType.STRING, imatrix.datasets),
        "imatrix.chunk_count": uint32(chunk_count),
        "imatrix.chunk_size": uint32(imatrix.chunk_size),
    }
    if imatrix.unseen:
        metadata[_UNSEEN] = array(MetadataType.STRING, imatrix.unseen)
    names = imatrix.names
    shapes = [shape for name in names for shape in _shapes(name, imatrix.entries[name])]
    offsets, _ = place(4 * rows * columns for _, (rows, columns) in shapes)
    records: list[TensorEntry] = [
        (name, shape, F32.id, offset) for (name, shape), offset in zip(shapes, offsets, strict=True)
    ]
    yield encode_header(metadata, records)
    for name in names:
        found = imatrix.entries[name]
        for values in (found.squares, found.counts):
            raw = np.ascontiguousarray(values, "<f4").tobytes()
            yield raw.ljust(padded(len(raw)), b"\0")


def _shapes(name: str, sums: Sums) -> list[tuple[str, tuple[int, int]]]:
    n_matrices, n_columns = sums.squares.shape
    return [(name + _SUMS, (n_matrices, n_columns)), (name + _COUNTS, (n_matrices, 1))]
