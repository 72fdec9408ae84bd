"""The places of the members in an uncompressed zip archive, the container of PyTorch's checkpoints.

    member*      local header "PK 3 4", name, extra, data, perhaps a data descriptor
    directory    a header "PK 1 2" for each member: name, sizes, where its local header is
    end          for large archives "PK 6 6" and its locator "PK 6 7"; always "PK 5 6", 22 bytes

A zip is read from its end, so two programs may read one file as two different things. Here the archive must
begin with its first member and end with its end record. Members must be uncompressed, must not overlap, must
lie before the directory, and must have one name each, the same in both headers. Format: PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from ggplan.errors import CheckpointError
from ggplan.sources.files import file_size, read_at, shown

_LOCAL, _ENTRY, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
_LOCAL_STRUCT = struct.Struct("<4s5H3I2H")
_ENTRY_STRUCT = struct.Struct("<4s6H3I5H2I")
_END_STRUCT = struct.Struct("<4s4H2IH")
_END64_STRUCT = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64_STRUCT = struct.Struct("<4sIQI")
_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 1
_RECORD_LIMIT = 1 << 18
_DIRECTORY_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """A member: its name, and the place of its bytes in the file."""

    name: str
    offset: int
    n_bytes: int


def is_zip(path: Path) -> bool:
    """Whether a file begins like such an archive."""
    return read_at(path, 0, min(4, file_size(path))) == _LOCAL


def read_records(path: Path) -> dict[str, ZipRecord]:
    """The members of an archive, by name, in the order of their data.

    Raises
    ------
    CheckpointError
        If the file breaks a rule above, or is truncated.
    """
    where = shown(path)
    size = file_size(path)
    count, directory_at, directory_bytes, end_at = _read_end(path, where, size)
    if directory_at + directory_bytes != end_at:
        raise CheckpointError(f"{where}: its directory does not lie right before its end; it is damaged")
    directory = read_at(path, directory_at, directory_bytes)
    records: dict[str, ZipRecord] = {}
    at = 0
    for _ in range(count):
        record, at = _read_entry(path, where, directory, at, directory_at)
        if record.name in records:
            raise CheckpointError(f"{where}: the member '{shown(record.name)}' is there twice")
        records[record.name] = record
    if at != len(directory):
        raise CheckpointError(f"{where}: its directory has {len(directory) - at:,} bytes too many")
    ordered = sorted(records.values(), key=lambda record: record.offset)
    end = 0
    for record in ordered:
        if record.offset < end + _LOCAL_STRUCT.size:
            raise CheckpointError(f"{where}: the member '{shown(record.name)}' overlaps the one before it")
        end = record.offset + record.n_bytes
    return {record.name: record for record in ordered}


def _read_end(path: Path, where: str, size: int) -> tuple[int, int, int, int]:
    """How many members there are, where the directory begins, its bytes, and where the end records begin."""
    if size < _END_STRUCT.size or not is_zip(path):
        raise CheckpointError(f"{where} is not a zip archive")
    at = size - _END_STRUCT.size
    mark, disk, first_disk, here, count, n_bytes, offset, comment = _END_STRUCT.unpack(
        read_at(path, at, _END_STRUCT.size)
    )
    if mark != _END or comment or disk or first_disk or here != count:
        raise CheckpointError(
            f"{where} does not end as a zip archive does; it is truncated or has something behind it",
            hint="download the file again",
        )
    end_at = at
    locator_at = at - _LOCATOR64_STRUCT.size
    if locator_at >= 0 and read_at(path, locator_at, 4) == _LOCATOR64:
        _, _, end_at, _ = _LOCATOR64_STRUCT.unpack(read_at(path, locator_at, _LOCATOR64_STRUCT.size))
        if end_at + _END64_STRUCT.size != locator_at:
            raise CheckpointError(f"{where}: its end records do not lie side by side; it is damaged")
        mark, _, _, _, _, _, here, count64, n_bytes64, offset64 = _END64_STRUCT.unpack(
            read_at(path, end_at, _END64_STRUCT.size)
        )
        agree = (
            count in (count64, _U16)
            and n_bytes in (n_bytes64, _U32)
            and offset in (offset64, _U32)
            and here == count64
        )
        if mark != _END64 or not agree:
            raise CheckpointError(f"{where}: its two end records differ; it is damaged")
        count, n_bytes, offset = count64, n_bytes64, offset64
    if count > _RECORD_LIMIT or n_bytes > _DIRECTORY_LIMIT or n_bytes > size:
        raise CheckpointError(
            f"{where}: a directory of {count:,} members and {n_bytes:,} bytes is impossible"
        )
    return count, offset, n_bytes, end_at


def _read_entry(path: Path, where: str, directory: bytes, at: int, limit: int) -> tuple[ZipRecord, int]:
    """One entry of the directory, and where the next begins."""
    if at + _ENTRY_STRUCT.size > len(directory):
        raise CheckpointError(f"{where}: its directory is cut short")
    fields = _ENTRY_STRUCT.unpack_from(directory, at)
    mark, flags, method = fields[0], fields[3], fields[4]
    stored, whole, n_name, n_extra, n_comment = fields[8:13]
    local_at = fields[16]
    name_at = at + _ENTRY_STRUCT.size
    end = name_at + n_name + n_extra + n_comment
    if mark != _ENTRY or end > len(directory):
        raise CheckpointError(f"{where}: its directory is damaged")
    raw_name = directory[name_at : name_at + n_name]
    extra = directory[name_at + n_name : name_at + n_name + n_extra]
    whole, stored, local_at = _widened(where, extra, whole, stored, local_at)
    name = raw_name.decode("utf-8", "backslashreplace")
    what = f"{where}: the member '{shown(name)}'"
    if method or flags & _ENCRYPTED or stored != whole:
        raise CheckpointError(f"{what} is compressed or encrypted, which PyTorch never writes")
    if local_at + _LOCAL_STRUCT.size > limit:
        raise CheckpointError(f"{what} lies outside the file")
    local = _LOCAL_STRUCT.unpack(read_at(path, local_at, _LOCAL_STRUCT.size))
    begin = local_at + _LOCAL_STRUCT.size + local[9] + local[10]
    if local[0] != _LOCAL or local[9] != n_name or begin + whole > limit:
        raise CheckpointError(f"{what} lies outside the file, or not where the directory has it")
    if read_at(path, local_at + _LOCAL_STRUCT.size, n_name) != raw_name:
        raise CheckpointError(f"{what} has another name where it lies")
    return ZipRecord(name, begin, whole), end


def _widened(where: str, extra: bytes, *sizes: int) -> tuple[int, ...]:
    """Sizes of 32 bits; those that do not fit are in the extra field 1, in this order, with 64 bits."""
    if _U32 not in sizes:
        return sizes
    at = 0
    while at + 4 <= len(extra):
        kind, n_bytes = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(n_bytes, len(extra) - at - 4) // 8}Q", extra, at + 4))
            return tuple(next(wide, size) if size == _U32 else size for size in sizes)
        at += 4 + n_bytes
    raise CheckpointError(f"{where}: its directory lacks the sizes of a large member")
