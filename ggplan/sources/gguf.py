"""GGUF files as models: one file, or the files of a split set taken together.

A split set (`llama-gguf-split`, `--split-max-size`) is files named `NAME-00001-of-00003.gguf` that carry
`split.no` (from 0), `split.count` and `split.tensors.count`; the first holds the model's metadata. Any of
them opens the set. The keys of the split are the files', not the model's, and are dropped.

Every type of the table has rows of a fixed number of bytes, so rows are found by multiplication.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggplan.errors import CheckpointError
from ggplan.ggml_types import BF16, F16, F32, GgmlType
from ggplan.metadata import MetadataType
from ggplan.model import Model, TensorInfo
from ggplan.sources.files import listed, read_array, read_at, shown
from ggplan.sources.gguf_header import GgufHeader, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL | re.ASCII)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor's rows lie, and how to read them."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    type: GgmlType

    def read_bytes(self, start: int, stop: int) -> bytes:
        """Rows `start` up to `stop` as they are stored."""
        row_bytes = self._row_bytes(start, stop)
        return read_at(self.file, self.offset + start * row_bytes, (stop - start) * row_bytes)

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` up to `stop`, decoded, as a (stop - start, n_columns) float32 array."""
        import numpy as np

        rows = self._read_array(start, stop)
        if self.type is F32:
            return rows.view("<f4")
        if self.type is F16:
            return rows.view("<f2").astype(np.float32)
        if self.type is BF16:
            from ggplan.quants.floats import widened

            return widened(rows.view("<u2"))
        from ggplan.quants import dequantize

        return dequantize(rows, self.type)

    def read_bf16(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Rows `start` up to `stop` of a bf16 tensor as the bits they are stored in."""
        return self._read_array(start, stop).view("<u2")

    def _read_array(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows as they are stored, (stop - start, bytes of a row)."""
        row_bytes = self._row_bytes(start, stop)
        raw = read_array(self.file, self.offset + start * row_bytes, (stop - start) * row_bytes)
        return raw.reshape(stop - start, row_bytes)

    def _row_bytes(self, start: int, stop: int) -> int:
        n_rows = math.prod(self.shape[:-1])
        if not 0 <= start <= stop <= n_rows:
            raise ValueError(f"rows {start} to {stop} of {n_rows}")
        return self.type.row_bytes(self.shape[-1])


def open_gguf(path: Path) -> Model:
    """Open a GGUF file, or the split set it belongs to. No weights are read.

    Raises
    ------
    CheckpointError
        If a file is damaged, of another version, or missing from its set.
    """
    headers = read_set(path)
    metadata = {key: value for key, value in headers[0].metadata.items() if not key.startswith("split.")}
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for record in header.tensors:
            if record.name in tensors:
                raise CheckpointError(
                    f"{shown(header.path)}: tensor '{shown(record.name)}' is also in "
                    f"{shown(tensors[record.name].origin)}"
                )
            rows = GgufTensor(header.path, record.offset, record.shape, record.type)
            tensors[record.name] = TensorInfo(
                record.name,
                record.shape,
                record.type,
                origin=header.path.name,
                stored_as=record.type.name,
                read_rows=rows.read_rows if record.type.decodable else None,
                read_bytes=rows.read_bytes,
                read_bf16=rows.read_bf16 if record.type is BF16 else None,
            )
    _check_total(headers[0], len(headers), len(tensors))
    files = tuple(header.path for header in headers)
    return Model(path, "gguf", _architecture(headers[0]), metadata, tuple(tensors.values()), files)


def read_set(path: Path) -> list[GgufHeader]:
    """The headers of all files of the set that `path` belongs to, in order.

    Raises
    ------
    CheckpointError
        As `open_gguf`.
    """
    header = read_header(path)
    count = _integer(header, "split.count", 1)
    if count <= 1:
        return [header]
    named = _SPLIT_NAME.fullmatch(path.name)
    if named is None or int(named[3]) != count:
        raise CheckpointError(
            f"{shown(path)} is one of {count:,} files of a split model, but its name does not end in "
            f"-00001-of-{count:05d}.gguf",
            hint="give the files of the set back the names they were made with",
        )
    paths = [path.with_name(f"{named[1]}-{number:05d}-of-{named[3]}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in paths if not part.exists()]:
        raise CheckpointError(
            f"{shown(path)}: {len(missing)} of {count} files of the set are missing: {listed(missing)}",
            hint="download them into the same folder",
        )
    headers = [read_header(part) for part in paths]
    for number, part in enumerate(headers):
        stated = (_integer(part, "split.no", -1), _integer(part, "split.count", -1))
        if stated != (number, count):
            raise CheckpointError(
                f"{shown(part.path)}: its metadata makes it file {stated[0] + 1} of {stated[1]}, "
                f"its name file {number + 1} of {count}"
            )
    return headers


def _check_total(first: GgufHeader, n_files: int, n_tensors: int) -> None:
    stated = _integer(first, "split.tensors.count", n_tensors)
    if n_files > 1 and stated != n_tensors:
        raise CheckpointError(
            f"{shown(first.path)}: the set has {n_tensors:,} tensors, not the stated {stated:,}"
        )


def _integer(header: GgufHeader, key: str, default: int) -> int:
    value = header.metadata.get(key)
    if value is None:
        return default
    number = value.decode() if value.item_type is None else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise CheckpointError(f"{shown(header.path)}: {key} is no integer")
    return number


def _architecture(header: GgufHeader) -> str:
    value = header.metadata.get("general.architecture")
    if value is None:
        return ""
    if value.type is not MetadataType.STRING:
        raise CheckpointError(f"{shown(header.path)}: general.architecture is no string")
    return str(value.decode())
