"""What is in blocks, taken apart; and the bits that small integers are packed into.

The arrays of fields have a row for each of n blocks or superblocks. Scales are kept as halves, which is what
blocks have; sub-blocks' scales and minimums are small integers, in units of them. A code is what is stored of
a weight: an index from 0 up, which a format gives a level.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]
F16Array = NDArray[np.float16]
Bytes = NDArray[np.uint8]
Signed = NDArray[np.int8]

Fields = TypeVar("Fields", bound=tuple[Any, ...])


class Affine(NamedTuple):
    """Superblocks of scales and minimums: weight = (d * scale) * code - (dmin * min).

    Attributes
    ----------
    d, dmin
        float16 (n,).
    scales, mins
        uint8 (n, sub-blocks).
    codes
        uint8 (n, 256).
    """

    d: F16Array
    dmin: F16Array
    scales: Bytes
    mins: Bytes
    codes: Bytes


class Symmetric(NamedTuple):
    """Superblocks of scales: weight = (d * scale) * level, and the level follows from the code.

    Attributes
    ----------
    d
        float16 (n,).
    scales
        int8 (n, sub-blocks).
    codes
        uint8 (n, 256).
    """

    d: F16Array
    scales: Signed
    codes: Bytes


class Blocks(NamedTuple):
    """Blocks of up to 256 weights, with no sub-blocks: weight = scale * level, in some types + minimum.

    Attributes
    ----------
    scales
        float16 (n, 1), the scale, or (n, 2), scale and minimum; of four-bit floats uint8 (n, k), one for each
        of k equal parts.
    codes
        uint8 (n, weights).
    """

    scales: NDArray[Any]
    codes: Bytes


class Grid(NamedTuple):
    """Superblocks of points of a grid: weight = scale * (sign * point), or scale * (point +- 1/8).

    Attributes
    ----------
    d
        float16 (n,).
    scales
        uint8 (n, sub-blocks).
    indices
        uint16 (n, groups): points, by their numbers.
    signs
        uint8 (n, 32): of eight weights each a bit, the lowest first, set where the weight is negative. Or,
        where points are shifted by 1/8, one (n, shifts) for each shift: 1 where it is down.
    """

    d: F16Array
    scales: Bytes
    indices: NDArray[np.uint16]
    signs: Bytes


def empty_affine(n: int, sub_blocks: int) -> Affine:
    """Room for n superblocks."""
    halves = np.empty((2, n), np.float16)
    small = np.empty((2, n, sub_blocks), np.uint8)
    return Affine(halves[0], halves[1], small[0], small[1], np.empty((n, 256), np.uint8))


def empty_symmetric(n: int, sub_blocks: int) -> Symmetric:
    """Room for n superblocks."""
    return Symmetric(
        np.empty(n, np.float16), np.empty((n, sub_blocks), np.int8), np.empty((n, 256), np.uint8)
    )


def first_of(fields: Fields, count: int) -> Fields:
    """The fields of the first `count` blocks."""
    return type(fields)(*(array[:count] for array in fields))


def memory_of(fields: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
    """The arrays as kernels take them: halves as their bits in uint16, small signed integers as uint8."""
    return tuple(np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}") for array in fields)


def affine_weights(fields: Affine, out: F32Array) -> None:
    """What a reader makes of superblocks: `(d * scale) * code - (dmin * min)`, in float32, into (n, 256)."""
    scale = fields.d.astype(np.float32)[:, np.newaxis] * fields.scales
    minimum = fields.dmin.astype(np.float32)[:, np.newaxis] * fields.mins
    weights = _scale(fields.codes, scale, out)
    weights -= minimum[:, :, np.newaxis]


def symmetric_weights(fields: Symmetric, levels: NDArray[Any], out: F32Array) -> None:
    """What a reader makes of superblocks: `(d * scale) * level`, in float32, into (n, 256)."""
    _scale(levels, fields.d.astype(np.float32)[:, np.newaxis] * fields.scales, out)


def _scale(levels: NDArray[Any], scale: F32Array, out: F32Array) -> F32Array:
    """Multiply by one scale (n, k) for each of k equal parts of a superblock."""
    parts = (*scale.shape, -1)
    weights = out.reshape(parts)
    np.multiply(levels.reshape(parts), scale[:, :, np.newaxis], out=weights)
    return weights


def block_weights(levels: NDArray[Any], scales: NDArray[Any], out: F32Array) -> None:
    """What a reader makes of blocks: `scale * level`, or with two halves `scale * level + minimum`."""
    numbers = scales.astype(np.float32)
    if scales.shape[1] == 1:
        np.multiply(levels, numbers, out=out)
    else:
        np.multiply(levels, numbers[:, :1], out=out)
        out += numbers[:, 1:]


def halves_at(blocks: Bytes, start: int, count: int = 1) -> F16Array:
    """The half-precision numbers from byte `start` of each block on: (n, count)."""
    return np.ascontiguousarray(blocks[:, start : start + 2 * count]).view(np.float16)


def half_at(blocks: Bytes, at: int) -> F16Array:
    """The half-precision number at byte `at` of each block: (n,)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).reshape(-1)


def put_half(blocks: Bytes, at: int, halves: F16Array) -> None:
    """Write a half-precision number to byte `at` of each block."""
    blocks[:, at : at + 2] = np.ascontiguousarray(halves).view(np.uint8).reshape(-1, 2)


def split_bits(packed: Bytes, stride: int, bits: int) -> Bytes:
    """Unpack small integers: of each `stride` bytes first all lowest fields, then all next ones, ..."""
    n, size = packed.shape
    per_byte = 8 // bits
    unpacked = np.empty((n, size // stride, per_byte, stride), np.uint8)
    groups = packed.reshape(n, size // stride, stride)
    for i in range(per_byte):
        np.right_shift(groups, i * bits, out=unpacked[:, :, i])
    unpacked &= (1 << bits) - 1
    return unpacked.reshape(n, size * per_byte)


def join_bits(values: Bytes, stride: int, bits: int) -> Bytes:
    """Pack small integers, which must fit into `bits`, as `split_bits` unpacks them."""
    n, size = values.shape
    per_byte = 8 // bits
    groups = values.reshape(n, size // (stride * per_byte), per_byte, stride)
    packed = groups[:, :, per_byte - 1] << np.uint8((per_byte - 1) * bits)
    for i in range(per_byte - 2, 0, -1):
        packed |= groups[:, :, i] << np.uint8(i * bits)
    packed |= groups[:, :, 0]
    return packed.reshape(n, size // per_byte)


def split_single_bits(packed: Bytes) -> Bytes:
    """Unpack single bits in order, the lowest of each byte first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def join_single_bits(values: Bytes) -> Bytes:
    """Pack single bits in order, the lowest of each byte first."""
    return np.packbits(values, axis=1, bitorder="little")
