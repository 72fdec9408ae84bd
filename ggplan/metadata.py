"""The typed key-value pairs of a GGUF header, kept as the bytes they have in the file.

A value is a type and its little-endian encoding; arrays hold their item type, their length and the
encoded items. Keeping the bytes means that a tokenizer with 150,000 tokens is copied from one file to
another without ever becoming Python objects, and that the written bytes are the bytes that were read.

Format: the GGUF specification (ggml, `docs/gguf.md`), version 3:

    value  = type:u32 data
    data   = number | bool:u8 | string | array
    string = length:u64 bytes            (UTF-8 by the specification, not by every writer)
    array  = item_type:u32 length:u64 data*length
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from ggplan.errors import CheckpointError

Scalar = bool | int | float | str


class MetadataType(IntEnum):
    """The value types of GGUF, by their number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_FORMATS = {
    MetadataType.UINT8: "<B",
    MetadataType.INT8: "<b",
    MetadataType.UINT16: "<H",
    MetadataType.INT16: "<h",
    MetadataType.UINT32: "<I",
    MetadataType.INT32: "<i",
    MetadataType.FLOAT32: "<f",
    MetadataType.BOOL: "<?",
    MetadataType.UINT64: "<Q",
    MetadataType.INT64: "<q",
    MetadataType.FLOAT64: "<d",
}
FIXED_SIZES = {kind: struct.calcsize(fmt) for kind, fmt in _FORMATS.items()}


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """One value: its type, its bytes, and for an array the type and number of its items.

    `data` of an array is its items alone, without the item type and the length.
    """

    type: MetadataType
    data: bytes
    item_type: MetadataType | None = None
    length: int = 0

    def encode(self) -> bytes:
        """The value as in a GGUF header: type, then data."""
        if self.item_type is None:
            return struct.pack("<I", self.type) + self.data
        return struct.pack("<IIQ", self.type, self.item_type, self.length) + self.data

    def decode(self) -> Scalar | list[Scalar]:
        """The value as Python objects; bytes that are not UTF-8 become U+FFFD."""
        if self.item_type is not None:
            return self.decode_items(self.length)
        return _decode_one(self.type, self.data, 0)[0]

    def decode_items(self, limit: int) -> list[Scalar]:
        """The first `limit` items of an array."""
        if self.item_type is None:
            raise TypeError("not an array")
        count = min(limit, self.length)
        if self.item_type in _FORMATS:
            fmt = _FORMATS[self.item_type]
            return [item[0] for item in struct.iter_unpack(fmt, self.data[: count * struct.calcsize(fmt)])]
        items: list[Scalar] = []
        at = 0
        for _ in range(count):
            item, at = _decode_one(self.item_type, self.data, at)
            items.append(item)
        return items


Metadata = dict[str, MetadataValue]


def _decode_one(kind: MetadataType, data: bytes, at: int) -> tuple[Scalar, int]:
    if kind is MetadataType.STRING:
        (length,) = struct.unpack_from("<Q", data, at)
        start = at + 8
        return data[start : start + length].decode("utf-8", "replace"), start + length
    value: Scalar = struct.unpack_from(_FORMATS[kind], data, at)[0]
    return value, at + FIXED_SIZES[kind]


def _encode_one(kind: MetadataType, value: Scalar) -> bytes:
    if kind is MetadataType.STRING:
        raw = str(value).encode("utf-8")
        return struct.pack("<Q", len(raw)) + raw
    try:
        return struct.pack(_FORMATS[kind], value)
    except (struct.error, OverflowError) as error:
        raise CheckpointError(f"the metadata value {value!r} is not a valid {kind.name.lower()}") from error


def scalar(kind: MetadataType, value: Scalar) -> MetadataValue:
    """A number, bool or string of the given type.

    Raises
    ------
    CheckpointError
        If the number does not fit the type.
    """
    return MetadataValue(kind, _encode_one(kind, value))


def array(item_type: MetadataType, values: Sequence[Scalar]) -> MetadataValue:
    """An array of numbers, bools or strings, all of the given type."""
    data = b"".join(_encode_one(item_type, value) for value in values)
    return MetadataValue(MetadataType.ARRAY, data, item_type, len(values))


def uint32(value: int) -> MetadataValue:
    """An unsigned 32-bit integer, GGUF's usual integer."""
    return scalar(MetadataType.UINT32, value)


def float32(value: float) -> MetadataValue:
    """A 32-bit float, GGUF's usual float."""
    return scalar(MetadataType.FLOAT32, value)


def boolean(value: bool) -> MetadataValue:
    """A bool."""
    return scalar(MetadataType.BOOL, value)


def string(value: str) -> MetadataValue:
    """A UTF-8 string."""
    return scalar(MetadataType.STRING, value)
