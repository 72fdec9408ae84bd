"""The legacy form of an imatrix (`imatrix.dat`), little-endian:

    n_entries:i32
    n_entries times  length:i32 name  n_batches:i32 n_values:i32 values:f32[n_values]
    and perhaps      n_chunks:i32 length:i32 dataset

The values are means of squares times n_batches. Experts stand one after another in one row of values;
one that saw no token has ones (times n_batches). llama.cpp b11434: `common/imatrix-loader.cpp`; normalising
`tools/quantize/quantize.cpp`: one float32 division by n_batches as float32, none where it is not positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ggplan.errors import ImatrixError
from ggplan.imatrix.entries import EntriesOnDisk, Imatrix, ImatrixEntry, checked_entry, read_floats
from ggplan.sources.files import file_size, read_at, shown

# A model has some hundreds of entries; names have 63 bytes, names of datasets are paths.
_ENTRY_LIMIT = 1 << 16
_TEXT_LIMIT = 1 << 16


def open_legacy_form(path: Path) -> Imatrix:
    """Open a legacy imatrix; the values are read entry by entry, when asked for."""
    cursor = _Cursor(path, file_size(path))
    n_entries = cursor.integer("the number of entries")
    if not 0 < n_entries <= _ENTRY_LIMIT:
        raise cursor.error(f"it would have {n_entries:,} entries")
    readers = {}
    for number in range(1, n_entries + 1):
        name = cursor.text(f"the name of entry {number}")
        where = f"entry {number}, '{shown(name)}',"
        if not name or name in readers:
            raise cursor.error(f"{where} {'is there twice' if name else 'has no name'}")
        n_batches = cursor.integer(where)
        n_values = cursor.integer(where)
        if n_values < 1:
            raise cursor.error(f"{where} has {n_values:,} values")
        offset = cursor.skip(4 * n_values, where)
        readers[name] = partial(_read_entry, path, name, offset, n_values, n_batches)
    chunk_count = 0
    datasets: tuple[str, ...] = ()
    if not cursor.at_end:
        chunk_count = cursor.integer("the number of chunks")
        if not cursor.at_end and (dataset := cursor.text("the name of the dataset")):
            datasets = (dataset,)
    return Imatrix(path, datasets, chunk_count, EntriesOnDisk(readers))


def _read_entry(path: Path, name: str, offset: int, n_values: int, n_batches: int) -> ImatrixEntry:
    values = read_floats(path, offset, n_values).reshape(1, n_values)
    if n_batches > 0:
        with np.errstate(invalid="ignore"):
            values /= np.float32(n_batches)
    return checked_entry(path, name, values, np.array([n_batches], np.int64))


@dataclass(slots=True)
class _Cursor:
    """A position in the file; refuses to pass its end."""

    path: Path
    size: int
    position: int = 0

    @property
    def at_end(self) -> bool:
        return self.position == self.size

    def skip(self, n_bytes: int, what: str) -> int:
        """Pass over `n_bytes` and return where they begin."""
        left = self.size - self.position
        if not 0 <= n_bytes <= left:
            raise self.error(f"{what} would have {n_bytes:,} bytes, and {left:,} are left")
        start = self.position
        self.position += n_bytes
        return start

    def integer(self, what: str) -> int:
        return int.from_bytes(read_at(self.path, self.skip(4, what), 4), "little", signed=True)

    def text(self, what: str) -> str:
        length = self.integer(what)
        if length > _TEXT_LIMIT:
            raise self.error(f"{what} would have {length:,} bytes")
        return read_at(self.path, self.skip(length, what), length).decode("utf-8", "replace")

    def error(self, message: str) -> ImatrixError:
        return ImatrixError(f"{shown(self.path)} is not an imatrix, or is damaged: {message}")
