"""The GGUF form of an imatrix, which llama-imatrix writes since July 2025.

It has the keys `imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size`, and for a weight NAME two
f32 tensors: `NAME.in_sum2`, sums of squares with a row for each matrix, and `NAME.counts`, the tokens each
matrix saw. Tensors with other suffixes (`.in_sum`, `.stats`) hold statistics for display. A stacked weight
that is not used as experts (`attn_k_b`) has all its sums in one row and a single count.

llama.cpp b11434: writer `tools/imatrix/imatrix.cpp`, reader `common/imatrix-loader.cpp`, normalising
`tools/quantize/quantize.cpp`: one float32 division by the count as float32; ones where the count is 0.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ggplan.errors import ImatrixError
from ggplan.ggml_types import F32
from ggplan.imatrix.entries import EntriesOnDisk, Imatrix, ImatrixEntry, checked_entry, read_floats
from ggplan.metadata import MetadataType
from ggplan.sources.files import shown
from ggplan.sources.gguf_header import GgufHeader, TensorRecord, read_header

_SUMS, _COUNTS = ".in_sum2", ".counts"
_COUNT_LIMIT = 2.0**48
_DATASET_LIMIT = 1024


def open_gguf_form(path: Path) -> Imatrix:
    """Open an imatrix that is a GGUF file; the values are read entry by entry, when asked for."""
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
    readers = {}
    for name in sorted(sums):
        _check_pair(path, name, sums[name], counts[name])
        readers[name] = partial(_read_gguf_entry, path, name, sums[name], counts[name])
    datasets, chunk_count = _description(header)
    return Imatrix(path, datasets, chunk_count, EntriesOnDisk(readers))


def _check_pair(path: Path, name: str, sums: TensorRecord, counts: TensorRecord) -> None:
    where = f"{shown(path)}: '{shown(name)}'"
    if sums.type is not F32 or counts.type is not F32:
        raise ImatrixError(f"{where} has sums of {sums.type} and counts of {counts.type}; both must be f32")
    if counts.n_bytes == 0 or sums.n_bytes % counts.n_bytes:
        raise ImatrixError(f"{where} has {sums.n_bytes // 4:,} sums for {counts.n_bytes // 4:,} counts")


def _read_gguf_entry(path: Path, name: str, sums: TensorRecord, counts: TensorRecord) -> ImatrixEntry:
    stated = read_floats(path, counts.offset, counts.n_bytes // 4)
    if not np.isfinite(stated).all() or (np.abs(stated) > _COUNT_LIMIT).any():
        raise ImatrixError(f"{shown(path)}: the counts of '{shown(name)}' are not numbers of tokens")
    # C's lround: to the nearest whole number, halves away from zero (which float64 adds without rounding).
    tokens = np.trunc(stated + np.copysign(0.5, stated.astype(np.float64))).astype(np.int64)
    values = read_floats(path, sums.offset, sums.n_bytes // 4).reshape(len(tokens), -1)
    measured = tokens > 0
    with np.errstate(invalid="ignore"):
        values[measured] /= tokens[measured].astype(np.float32)[:, None]
    values[~measured] = 1
    return checked_entry(path, name, values, tokens)


def _description(header: GgufHeader) -> tuple[tuple[str, ...], int]:
    """The datasets and the number of chunks; llama-quantize takes no file that lacks their keys."""
    where = shown(header.path)
    for key in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        if key not in header.metadata:
            raise ImatrixError(f"{where} is an incomplete imatrix: it lacks the key {key}")
    datasets, chunk_count = header.metadata["imatrix.datasets"], header.metadata["imatrix.chunk_count"]
    if datasets.item_type is not MetadataType.STRING:
        raise ImatrixError(f"{where}: imatrix.datasets is not an array of strings")
    count = chunk_count.decode() if chunk_count.item_type is None else None
    if not isinstance(count, int):
        raise ImatrixError(f"{where}: imatrix.chunk_count is not a number")
    return tuple(str(name) for name in datasets.decode_items(_DATASET_LIMIT)), count
