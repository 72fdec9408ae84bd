"""The legacy form of an imatrix (`imatrix.dat`), little-endian:

    n_entries:i32
    n_entries times  length:i32 name  n_batches:i32 n_values:i32 values:f32[n_values]
    and perhaps      n_chunks:i32 length:i32 dataset

The values are means of squares times n_batches. Experts stand one after another in one row of values;
one that saw no token has ones (times n_batches). llama.cpp b11434: `common/imatrix-loader.cpp`; normalising
`tools/quantize/quantize.cpp`: one float32 division by n_batches as float32, none where it is not positive.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ggplan.errors import ImatrixError
from ggplan.imatrix.entries import Imatrix, ImatrixEntry, ReadOnDemand, checked_entry, read_floats
from ggplan.imatrix.sums import ImatrixSums, Sums
from ggplan.sources.files import file_size, read_at, shown

# A model has some hundreds of entries; names have 63 bytes, names of datasets are paths.
_ENTRY_LIMIT = 1 << 16
_TEXT_LIMIT = 1 << 16


def open_legacy_form(path: Path) -> Imatrix:
    """Open a legacy imatrix; the values are read entry by entry, when asked for."""
    places, datasets, chunk_count = _read_places(path)
    readers = {name: partial(_read_entry, path, name, *place) for name, place in places.items()}
    return Imatrix(path, datasets, chunk_count, ReadOnDemand(readers))


def open_legacy_sums(path: Path, chunk_size: int) -> ImatrixSums:
    """The sums of a legacy imatrix, as llama-imatrix takes them up: every batch was of `chunk_size` tokens.

    The file has neither the sums nor the tokens of single experts: all of an entry have one count.
    """
    places, datasets, _ = _read_places(path)
    readers = {name: partial(_read_sums, path, chunk_size, *place) for name, place in places.items()}
    return ImatrixSums(datasets, chunk_size, ReadOnDemand(readers))


def _read_places(path: Path) -> tuple[dict[str, tuple[int, int, int]], tuple[str, ...], int]:
    """The offset, the number of values and of batches of each entry; the datasets; the number of chunks."""
    cursor = _Cursor(path, file_size(path))
    n_entries = cursor.integer("the number of entries")
    if not 0 < n_entries <= _ENTRY_LIMIT:
        raise cursor.error(f"read as one, it would have {n_entries:,} entries")
    places: dict[str, tuple[int, int, int]] = {}
    for number in range(1, n_entries + 1):
        name = cursor.text(f"the name of entry {number}")
        where = f"entry {number}, '{shown(name)}',"
        if not name or name in places:
            raise cursor.error(f"{where} {'is there twice' if name else 'has no name'}")
        n_batches = cursor.integer(where)
        n_values = cursor.integer(where)
        if n_values < 1:
            raise cursor.error(f"{where} has {n_values:,} values")
        offset = cursor.skip(4 * n_values, where)
        places[name] = (offset, n_values, n_batches)
    chunk_count = 0
    datasets: tuple[str, ...] = ()
    if not cursor.at_end:
        chunk_count = cursor.integer("the number of chunks")
        if not cursor.at_end and (dataset := cursor.text("the name of the dataset")):
            datasets = (dataset,)
    return places, datasets, chunk_count


def _read_entry(path: Path, name: str, offset: int, n_values: int, n_batches: int) -> ImatrixEntry:
    values = read_floats(path, offset, n_values).reshape(1, n_values)
    if n_batches > 0:
        with np.errstate(invalid="ignore"):
            values /= np.float32(n_batches)
    return checked_entry(path, name, values, np.array([n_batches], np.int64))


def _read_sums(path: Path, chunk_size: int, offset: int, n_values: int, n_batches: int) -> Sums:
    values = read_floats(path, offset, n_values).reshape(1, n_values)
    tokens = max(n_batches, 1) * chunk_size  # as `_read_entry`: values of no batch are taken as they are
    return Sums(values * np.float32(chunk_size), np.array([tokens], np.int64))


def legacy_pieces(imatrix: ImatrixSums, chunk_count: int) -> Iterator[bytes]:
    """The file that llama-imatrix writes in the legacy form, piece by piece.

    An entry without any data is left out. Experts have one count: that of the one that saw most tokens, in
    chunks, rounded up; one that saw no token gets the mean square 1.
    """
    kept = [name for name in imatrix.names if imatrix.entries[name].counts.any()]
    yield struct.pack("<i", len(kept))
    for name in kept:
        found, raw = imatrix.entries[name], name.encode("utf-8")
        n_batches = -(-int(found.counts.max()) // imatrix.chunk_size)
        means = found.means() * np.float32(n_batches)
        yield struct.pack("<i", len(raw)) + raw + struct.pack("<ii", n_batches, means.size)
        yield means.astype("<f4").tobytes()
    dataset = (imatrix.datasets[-1] if imatrix.datasets else "").encode("utf-8")
    yield struct.pack("<ii", chunk_count, len(dataset)) + dataset


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
        return ImatrixError(
            f"{shown(self.path)} is not an imatrix, or is damaged: {message}",
            hint="`ggplan calibrate --imatrix-only` and llama-imatrix make one",
        )
