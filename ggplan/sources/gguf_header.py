"""The header of a GGUF file: everything before the weights, checked as strictly as llama.cpp checks it.

    magic "GGUF"  version:u32  n_tensors:i64  n_pairs:i64
    n_pairs   times  key:string  value                        (values: see ggplan.metadata)
    n_tensors times  name:string n_dims:u32 dims:u64[n_dims] type:u32 offset:u64
    zeros up to the alignment (`general.alignment`, 32)
    data: the tensors in order, each padded to the alignment; offsets count from here

Versions 2 and 3 have this layout; 3 only allows big-endian files too, which ggplan does not read. The
reference is llama.cpp b11434, `ggml/src/gguf.cpp`: a file that it refuses is refused here. Added are checks
that it leaves to its callers (the tensors end inside the file) and limits far above any real file
(`_HEADER_LIMIT`, `_COUNT_LIMIT`). The padding after the last tensor may be missing, as in llama.cpp's loader.

Arrays are skipped by arithmetic, those of strings by their lengths alone, and kept as bytes, so a
tokenizer of 250,000 tokens costs milliseconds.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from ggplan.errors import CheckpointError, TruncatedError
from ggplan.ggml_types import GgmlType, type_by_id
from ggplan.metadata import FIXED_SIZES, Metadata, MetadataType, MetadataValue
from ggplan.sources.files import file_size, read_at, shown

MAX_NAME_BYTES = 63
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4
_INT64_MAX = (1 << 63) - 1
# A header of a large model has about 20 MB and a few thousand tensors.
_HEADER_LIMIT = 256 << 20
_COUNT_LIMIT = 1 << 18
# The limit of a dimension: a tensor without weights could claim any number of rows.
_EMPTY_LIMIT = 1 << 31
_MIN_PAIR_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8
_FIRST_WINDOW, _LARGEST_WINDOW = 1 << 16, 1 << 22
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor as in the header: shape with rows first, offset from the file's first byte."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A checked header: all tensors lie one after another, and inside the file unless it is `truncated`.

    `end` is where the last tensor's record ends, `data_at` where the data begins; between them is padding.
    `truncated` is the error of a file that ends before its data, which only a reader of headers accepts.
    """

    path: Path
    version: int
    metadata: Metadata
    tensors: tuple[TensorRecord, ...]
    alignment: int
    end: int
    data_at: int
    truncated: TruncatedError | None = None


def read_header(path: Path, *, header_only: bool = False) -> GgufHeader:
    """Read and check the header of one GGUF file.

    Parameters
    ----------
    header_only
        Accept a file that ends before its data does, such as the first megabytes of a download.

    Raises
    ------
    TruncatedError
        If the file ends before its data does.
    CheckpointError
        If the file is not a GGUF file of version 2 or 3, or breaks a rule of the format.
    """
    cursor = _Cursor(path)
    version, n_tensors, n_pairs = _read_start(cursor)
    metadata = _read_metadata(cursor, n_pairs)
    alignment = _alignment(metadata, cursor)
    stated = _read_tensors(cursor, n_tensors)
    end = cursor.position
    data_at = padded(end, alignment)
    tensors = []
    expected = 0
    cut = ""
    for name, shape, type_, offset in stated:
        n_bytes = type_.tensor_bytes(shape) if 0 not in shape else 0
        if offset != expected:
            raise cursor.error(
                f"tensor '{shown(name)}' has offset {offset:,} instead of {expected:,}: tensors follow one "
                f"another, each aligned to {alignment}"
            )
        if data_at + offset + n_bytes > cursor.size and not cut:
            cut = name
        tensors.append(TensorRecord(name, shape, type_, data_at + offset, n_bytes))
        expected = padded(expected + n_bytes, alignment)
    truncated = None
    if stated and (cut or data_at > cursor.size):
        truncated = _truncated(cursor, tensors, cut)
        if not header_only:
            raise truncated
    return GgufHeader(path, version, metadata, tuple(tensors), alignment, end, data_at, truncated)


def _truncated(cursor: _Cursor, tensors: list[TensorRecord], name: str) -> TruncatedError:
    """The error of a file that ends before its data, or within the data of the tensor `name`."""
    size, whole = cursor.size, tensors[-1].offset + tensors[-1].n_bytes
    where = "before its data begins" if size <= tensors[0].offset else f"within tensor '{shown(name)}'"
    return TruncatedError(
        f"{shown(cursor.path)}: the file ends {where}; it is truncated: it has {size:,} bytes and should "
        f"have {whole:,}",
        hint="download it again; --header-only reads what its header says",
    )


class _Cursor:
    """A position in a file's header; reads ahead in windows and never passes the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = file_size(path)
        self.position = 0
        self._window = b""
        self._window_at = 0
        self._window_size = _FIRST_WINDOW

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{shown(self.path)}: {message}")

    def ended(self, message: str, n_bytes: int) -> CheckpointError:
        """The error of a header that needs `n_bytes` more than are left; what no header needs is damage."""
        if n_bytes > _HEADER_LIMIT:
            return self.error(f"{message}; its header is damaged")
        return CheckpointError(
            f"{shown(self.path)}: the file ends within its header; it is truncated: {message}",
            hint="download more of it: even --header-only needs the whole header, mostly some megabytes",
        )

    @property
    def remaining(self) -> int:
        return self.size - self.position

    def require(self, n_bytes: int, what: str) -> None:
        """Refuse to read `n_bytes` more if the file or the limit of headers ends before."""
        if n_bytes > self.remaining:
            raise self.ended(
                f"{what} would take {n_bytes:,} bytes, but {self.remaining:,} are left of the file", n_bytes
            )
        if self.position + n_bytes > _HEADER_LIMIT:
            raise self.error(f"{what} makes its header larger than {_HEADER_LIMIT:,} bytes")

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next `n_bytes`."""
        self.require(n_bytes, what)
        start = self.position
        self.position += n_bytes
        if n_bytes > _LARGEST_WINDOW:
            return read_at(self.path, start, n_bytes)
        at = start - self._window_at
        if at + n_bytes > len(self._window):
            self._look_ahead(start, n_bytes)
            at = 0
        return self._window[at : at + n_bytes]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str) -> bytes:
        return self.take(self.u64(what), what)

    def skip_strings(self, count: int, what: str) -> None:
        """Skip `count` strings; the only loop over the items of an array."""
        unpack = _U64.unpack_from
        while count:
            self.require(8, what)
            start = self.position - self._window_at
            if not 0 <= start <= len(self._window) - 8:
                self._look_ahead(self.position, 8)
                start = 0
            window, at, last = self._window, start, len(self._window) - 8
            while count and at <= last:
                at += 8 + unpack(window, at)[0]
                count -= 1
            self.require(at - start, what)
            self.position += at - start

    def _look_ahead(self, start: int, at_least: int) -> None:
        """Make the window begin at `start`; the further the header goes, the larger the windows."""
        n_bytes = min(max(self._window_size, at_least), self.size - start)
        self._window, self._window_at = read_at(self.path, start, n_bytes), start
        self._window_size = min(4 * self._window_size, _LARGEST_WINDOW)


def _read_start(cursor: _Cursor) -> tuple[int, int, int]:
    """The version, the number of tensors and the number of key-value pairs."""
    magic = cursor.take(min(4, cursor.size), "the magic")
    if magic != b"GGUF":
        raise cursor.error(f"this is not a GGUF file: it begins with {shown(magic)}")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise cursor.error("this is a big-endian GGUF file, which ggplan does not read")
    if version not in (2, 3):
        raise CheckpointError(
            f"{shown(cursor.path)}: this is GGUF version {version}; ggplan reads versions 2 and 3",
            hint="make the file again from the original checkpoint" if version < 2 else "",
        )
    counts = []
    for what, least in (("tensors", _MIN_TENSOR_BYTES), ("key-value pairs", _MIN_PAIR_BYTES)):
        count = cursor.u64(f"the number of {what}")
        if count > _COUNT_LIMIT:
            raise cursor.error(f"{count:,} {what} are more than a file has; its header is damaged")
        if count * least > cursor.remaining:
            raise cursor.ended(f"{count:,} {what} cannot be in {cursor.size:,} bytes", count * least)
        counts.append(count)
    return version, counts[0], counts[1]


def _read_metadata(cursor: _Cursor, n_pairs: int) -> Metadata:
    metadata: Metadata = {}
    for number in range(n_pairs):
        key = _text(cursor, f"key {number}")
        if not key:
            raise cursor.error(f"key {number} is empty")
        if key in metadata:
            raise cursor.error(f"the key '{shown(key)}' occurs twice in the metadata")
        metadata[key] = _read_value(cursor, f"the value of '{shown(key)}'")
    return metadata


def _read_value(cursor: _Cursor, what: str) -> MetadataValue:
    kind = _value_type(cursor, what)
    if kind is MetadataType.ARRAY:
        item_type = _value_type(cursor, what)
        if item_type is MetadataType.ARRAY:
            raise cursor.error(f"{what} is an array of arrays")
        length = cursor.u64(what)
        if item_type is not MetadataType.STRING:
            return MetadataValue(kind, cursor.take(length * FIXED_SIZES[item_type], what), item_type, length)
        if length * 8 > cursor.remaining:
            raise cursor.ended(
                f"{what} cannot hold {length:,} strings: {cursor.remaining:,} bytes are left of the file",
                length * 8,
            )
        start = cursor.position
        cursor.skip_strings(length, what)
        return MetadataValue(kind, read_at(cursor.path, start, cursor.position - start), item_type, length)
    if kind is MetadataType.STRING:
        return MetadataValue(kind, _U64.pack(len(text := cursor.string(what))) + text)
    return MetadataValue(kind, cursor.take(FIXED_SIZES[kind], what))


def _value_type(cursor: _Cursor, what: str) -> MetadataType:
    number = cursor.u32(what)
    try:
        return MetadataType(number)
    except ValueError:
        raise cursor.error(f"{what} has the unknown type {number}") from None


def _text(cursor: _Cursor, what: str) -> str:
    raw = cursor.string(what)
    try:
        return raw.decode("utf-8")
    except UnicodeError:
        raise cursor.error(f"{what} is not UTF-8: {shown(raw)}") from None


def _alignment(metadata: Metadata, cursor: _Cursor) -> int:
    stated = metadata.get("general.alignment")
    if stated is None:
        return _DEFAULT_ALIGNMENT
    if stated.type is not MetadataType.UINT32:
        raise cursor.error(f"general.alignment is {stated.type.name.lower()}, not uint32")
    alignment = int.from_bytes(stated.data, "little")
    if alignment == 0 or alignment & (alignment - 1):
        raise cursor.error(f"general.alignment is {alignment}, not a power of two")
    return alignment


def padded(n_bytes: int, alignment: int) -> int:
    """`n_bytes` rounded up to the alignment."""
    return -(-n_bytes // alignment) * alignment


def _read_tensors(cursor: _Cursor, n_tensors: int) -> list[tuple[str, tuple[int, ...], GgmlType, int]]:
    """Name, shape, type and stated offset of each tensor; the offsets are still to be checked."""
    tensors: list[tuple[str, tuple[int, ...], GgmlType, int]] = []
    seen: set[str] = set()
    for number in range(n_tensors):
        name = _text(cursor, f"the name of tensor {number}")
        where = f"tensor '{shown(name)}'"
        if len(name.encode()) > MAX_NAME_BYTES:
            raise cursor.error(f"{where} has a name longer than {MAX_NAME_BYTES} bytes")
        if name in seen:
            raise cursor.error(f"{where} is there twice")
        seen.add(name)
        n_dims = cursor.u32(where)
        if n_dims > _MAX_DIMS:
            raise cursor.error(f"{where} has {n_dims:,} dimensions; the format allows {_MAX_DIMS}")
        dims: tuple[int, ...] = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims, where)) or (1,)
        type_id = cursor.u32(where)
        offset = cursor.u64(where)
        type_ = type_by_id(type_id)
        if type_ is None:
            raise cursor.error(f"{where} has type {type_id}, which neither llama.cpp nor ik_llama.cpp knows")
        if fault := shape_fault(dims[::-1], type_):
            raise cursor.error(f"{where} {fault}")
        tensors.append((name, dims[::-1], type_, offset))
    return tensors


def shape_fault(shape: tuple[int, ...], type_: GgmlType) -> str:
    """Why a tensor of this type cannot have a shape (rows first) in a GGUF file, or ""."""
    if len(shape) > _MAX_DIMS:
        return f"has {len(shape):,} dimensions; the format allows {_MAX_DIMS}"
    n_weights = math.prod(max(extent, 1) for extent in shape)
    if n_weights > _INT64_MAX:
        return f"has the impossible shape {shown(list(shape))}"
    if 0 in shape and n_weights > _EMPTY_LIMIT:
        return f"has no weights and the impossible shape {list(shape)}"
    if not type_.fits(shape[-1]):
        return (
            f"has rows of {shape[-1]:,} weights, which are not whole blocks of {type_.block_size} ({type_})"
        )
    return ""
