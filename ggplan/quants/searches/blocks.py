"""Blocks of 16 to 256 weights, each with scales of its own: how they are searched and packed.

Blocks know nothing of each other, so a search takes rows as one run of blocks, a group of them at a time, and
the last group may reach back to be whole. What a search finds goes to memory for the fields of a group
(`formats.fields.Blocks`):

    scales    for each block a half, two halves, or a few bytes
    codes     a byte for each weight

The same kernel serves two ends. By default it packs each group as soon as it is found: memory sets the speed
of most of these types, and what is found stays in the cache. Or it keeps the fields of all groups, for a
search that improves them.

A search that sums along blocks in ggml's order works on a tile, a group turned on its side: weight i of block
k stands at `tile[GROUP * i + k]`, and each step is one operation on the i-th weights of all blocks.

A format (`Format`) is a value here, and `encode`, `encode_best`, `decode` and `pack` are functions of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ggplan.quants.codecs import Decode, Encode, Rows
from ggplan.quants.formats.fields import Blocks, Bytes, F32Array
from ggplan.quants.kernels import I64, F32s, U8s, Weights, inline, kernel, scratch
from ggplan.quants.memory import bytes_at, load, load_weights, prefetch, store, transpose
from ggplan.quants.vector import WIDTH, splat

GROUP = WIDTH

_LARGEST_BLOCK = 256
_ROOM = 8 * 32 * GROUP
_BATCH = 1 << 18  # weights whose fields are kept to be improved
_ROWS = 16  # rows whose squares are summed side by side
_ZERO = np.float32(0)


class Given(NamedTuple):
    """What a step of a search is given.

    Attributes
    ----------
    weights
        All blocks' weights.
    columns, per_row
        The importance of a row's columns, beginning again after the last; the blocks in a row. 0 without.
    energies
        float32: the mean square of each row.
    room
        float32 (8 * 32 * GROUP,) to work in.
    highest
        The highest code.
    """

    weights: Any
    columns: Any
    per_row: Any
    energies: Any
    room: Any
    highest: Any


@inline
def no_group_step(given: Any, first: Any, scales: Any, codes: Any) -> None:
    """For searches that look at one block at a time."""


@inline
def no_block_step(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """For searches that find all of a group at once."""


def finder(
    group_step: Callable[..., None],
    block_step: Callable[..., None],
    pack: Callable[..., None],
    size: int,
    scale_bytes: int,
    group: int = GROUP,
) -> Callable[..., None]:
    """The kernel of a search, which finds scales and codes.

    Parameters
    ----------
    group_step
        A step that takes (Given, the number of a group's first block, the group's scales, its codes).
    block_step
        A step that follows for each block k of the group: takes (Given, the number of the group's first
        block, k, the block's scales, its codes). Scales and codes are written by one of both.
    pack
        A step that packs a block: takes (highest, scales, codes, out). It reads codes before it writes, so
        that LLVM sees that they are those of `block_step`, and does not load what it has at hand.
    size, scale_bytes
        The weights of a block, and the bytes of its scales.
    group
        How many blocks make a group, at most `GROUP`.
    """
    looks_ahead = group_step is not no_group_step

    def find(
        weights: Weights, count: I64, columns: F32s, per_row: I64, energies: F32s, room: F32s, highest: I64,
        scales: U8s, codes: U8s, block_bytes: I64, out: U8s,
    ) -> None:  # fmt: skip
        """Pack all blocks to `out`, or, where `block_bytes` is 0, keep their fields."""
        given = Given(weights, columns, per_row, energies, room, highest)
        for number in range((count + group - 1) // group):
            first = min(number * group, count - group)
            if block_bytes:
                group_scales = bytes_at(room, _ROOM)
                group_codes = bytes_at(room, _ROOM + GROUP)
            else:
                group_scales = bytes_at(scales, first * scale_bytes)
                group_codes = bytes_at(codes, first * size)
            group_step(given, first, group_scales, group_codes)
            for k in range(group):
                # A group step waits for memory, and a block step does not: let one begin under the other.
                if looks_ahead:
                    prefetch(weights, (first + group + k) * size, size)
                block_scales = bytes_at(group_scales, k * scale_bytes)
                block_codes = bytes_at(group_codes, k * size)
                block_step(given, first, k, block_scales, block_codes)
                if block_bytes:
                    pack(highest, block_scales, block_codes, bytes_at(out, (first + k) * block_bytes))

    main_step = block_step if group_step is no_group_step else group_step
    find.__qualname__ = f"find_{main_step.__qualname__}"
    return kernel(find)


def packer(pack: Callable[..., None], size: int, scale_bytes: int) -> Callable[..., None]:
    """The kernel of a step that packs a block; the parameters are those of `finder`."""

    def pack_all(count: I64, highest: I64, scales: U8s, codes: U8s, block_bytes: I64, out: U8s) -> None:
        for k in range(count):
            from_scales, from_codes = bytes_at(scales, k * scale_bytes), bytes_at(codes, k * size)
            pack(highest, from_scales, from_codes, bytes_at(out, k * block_bytes))

    pack_all.__qualname__ = pack.__qualname__.lstrip("_")
    return kernel(pack_all)


class Weighted(NamedTuple):
    """The weights of at least `GROUP` blocks, and the importance of their columns.

    Attributes
    ----------
    weights
        Flat.
    n_blocks
        The number of blocks.
    columns
        float32, or None: the importance of the columns of a row, from the first on again for `GROUP` - 1
        blocks more.
    per_row
        The number of blocks in a row; 0 without importance.
    """

    weights: Rows
    n_blocks: int
    columns: F32Array | None
    per_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A type's blocks, and how they are found.

    Attributes
    ----------
    size, n_bytes
        The weights and the bytes of a block.
    scale
        The type of its scales, and how many.
    highest
        The highest code.
    plain, with_importance
        Kernels of `finder`. Without the second, ggml ignores importance.
    by_row
        Whether the mean square of a row weighs errors, with importance.
    pack
        The kernel of `packer`.
    improve, plain_is_best
        What makes better fields of those that ggml's search found; whether it is for importance alone.
    unpack
        Takes blocks to fields.
    weights
        Writes the weights that a reader makes of fields.
    """

    size: int
    n_bytes: int
    scale: tuple[type, int]
    highest: int
    plain: Callable[..., None]
    with_importance: Callable[..., None] | None = None
    by_row: bool = False
    pack: Callable[..., None]
    improve: Callable[[Weighted, Blocks], None]
    plain_is_best: bool = False
    unpack: Callable[[Bytes], Blocks]
    weights: Callable[[Blocks, F32Array], None]


def functions_of(format: Format) -> tuple[Encode, Encode, Decode]:
    """`encode`, `encode_best` and `decode` of a format."""
    return partial(encode, format), partial(encode_best, format), partial(decode, format)


def encode(format: Format, rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode as ggml does.

    Parameters
    ----------
    rows
        float32 or the bits of bfloat16, (n_rows, n_columns), whole blocks, C-contiguous.
    importance
        float32 (n_columns,), or None.
    out
        uint8 (n_rows, row bytes), C-contiguous.
    """
    if rows.size == 0:
        return
    if format.with_importance is None:
        importance = None
    given = _weighted(rows, importance, format.size)
    blocks = out.reshape(-1)
    n_bytes = given.n_blocks * format.n_bytes
    whole = blocks if blocks.size == n_bytes else np.empty(n_bytes, np.uint8)
    _find(format, given, rows, None, whole)
    if whole is not blocks:
        blocks[:] = whole[: blocks.size]


def encode_best(format: Format, rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode with less error than ggml does; the parameters are those of `encode`."""
    if importance is None and format.plain_is_best:
        return encode(format, rows, importance, out)
    for some, blocks in _batches(rows, out):
        given = _weighted(some, importance, format.size)
        found = empty_blocks(given.n_blocks, format)
        weighed = given if format.with_importance else given._replace(columns=None, per_row=0)
        _find(format, weighed, some, found, None)
        format.improve(given, found)
        pack(format, found, blocks)


def decode(format: Format, blocks: Bytes, out: F32Array) -> None:
    """Write the weights (n, weights) of blocks (n, bytes)."""
    format.weights(format.unpack(blocks), out)


def pack(format: Format, fields: Blocks, blocks: Bytes) -> None:
    """Write as many blocks as there is room for."""
    scales, codes = map(np.ascontiguousarray, fields)
    count = blocks.size // format.n_bytes
    format.pack(count, format.highest, scales.view(np.uint8), codes, format.n_bytes, blocks)


def empty_blocks(count: int, format: Format) -> Blocks:
    """Room for the fields of blocks."""
    dtype, n_scales = format.scale
    return Blocks(np.empty((count, n_scales), dtype), np.empty((count, format.size), np.uint8))


def _find(format: Format, given: Weighted, rows: Rows, found: Blocks | None, out: Bytes | None) -> None:
    """Find the fields of blocks, or pack them to `out` at once."""
    find, energies = format.plain, None
    if given.columns is not None:
        assert format.with_importance is not None
        find = format.with_importance
        if format.by_row:
            n_rows, columns = rows.shape
            energies = np.zeros(n_rows + GROUP, np.float32)
            _row_energies(rows, n_rows, columns, scratch(48 * _ROWS), energies)
    scales, codes, n_bytes = None, None, format.n_bytes
    if found is not None:
        scales, codes, n_bytes = found.scales.view(np.uint8), found.codes, 0
    room = scratch(_ROOM + GROUP + _LARGEST_BLOCK * GROUP // 4)
    find(
        given.weights, given.n_blocks, given.columns, given.per_row, energies, room, format.highest,
        scales, codes, n_bytes, out,
    )  # fmt: skip


def _weighted(rows: Rows, importance: F32Array | None, size: int) -> Weighted:
    """Rows as blocks, filled up with zeros to a group."""
    weights = rows.reshape(-1)
    count = rows.size // size
    if count < GROUP:
        weights = np.zeros(GROUP * size, rows.dtype)
        weights[: rows.size] = rows.reshape(-1)
        count = GROUP
    if importance is None:
        return Weighted(weights, count, None, 0)
    columns = np.resize(importance, importance.size + (GROUP - 1) * size)
    return Weighted(weights, count, columns, importance.size // size)


def _batches(rows: Rows, out: Bytes) -> Iterator[tuple[Rows, Bytes]]:
    """Some rows, and the bytes for them."""
    n_rows, columns = rows.shape
    step = max(1, _BATCH // max(columns, 1))
    for start in range(0, n_rows if columns else 0, step):
        yield rows[start : start + step], out[start : start + step]


@kernel
def _row_energies(weights: Weights, rows: I64, columns: I64, room: F32s, energies: F32s) -> None:
    """The mean square of each row, summed in the order of the columns; sixteen rows at once, in lanes.

    By way of a copy: rows are often a power of two apart, where the cache has room for few of them.
    """
    turned = _ROWS * 32
    for first in range(0, rows, _ROWS):
        total = splat(_ZERO, _ROWS)
        for column in range(0, columns, 32):
            for i in range(_ROWS):
                row = min(first + i, rows - 1)
                store(room, 32 * i, load_weights(weights, row * columns + column, 32))
            for half in range(0, 32, 16):
                transpose(room, half, 32, room, turned, _ROWS)
                for i in range(0, _ROWS * 16, _ROWS):
                    x = load(room, turned + i, _ROWS)
                    total = total + x * x
        store(energies, first, total / np.float32(columns))


@inline
def load_blocks(source: Any, first: Any, size: Any, tile: Any) -> None:
    """Lay a group of blocks of `size` numbers, a multiple of 16, from number `first` on, into a tile."""
    for block in range(0, GROUP, 16):
        for i in range(0, size, 16):
            transpose(source, (first + block) * size + i, size, tile, GROUP * i + block, GROUP)
