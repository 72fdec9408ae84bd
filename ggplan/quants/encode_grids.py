"""Encoders of iq2_* and iq3_*: a search (see `grid_search`), then the packing of what it found.

Blocks, their indices and their weights are laid out as `decode_grids` tells. Here is what differs between
the searches:

    type      sub-block   error of x weighs                        highest value     searched again
    iq3_s     32          qw sqrt(2 ms + x^2), or x^2              15 +- 1.8         with neighbours
    iq3_xxs   32          qw sqrt(2 ms + x^2), or x^2              15 +- 3           neighbours
    iq2_s     16          qw sqrt(2 ms + x^2), or ms / 2 + x^2      5 +- 0.9         neighbours
    iq2_xs    16          qw sqrt(ms + x^2)                         5 +- 0.9         neighbours
    iq2_xxs   32          qw sqrt(ms + x^2)                         5 +- 0.6         all

qw is the importance of the column, ms the mean square of a superblock's 256 weights. Trial scales give the
largest magnitude a value about the highest of a point; in iq2_xxs it is not the largest magnitude, but three
times the scale that `quantize_scales` finds for levels from 0 to 4. Some types store d a little larger or
smaller than it was found. The last two are never written without importance.

From llama.cpp b11434, `ggml/src/ggml-quants.c`: quantize_row_iq3_s_impl, quantize_row_iq3_xxs_impl,
quantize_row_iq2_s_impl, quantize_row_iq2_xs_impl, quantize_row_iq2_xxs_impl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.grid_search import (
    ALL,
    NEIGHBOURS,
    ROOM,
    WITH_NEIGHBOURS,
    Found,
    Rules,
    load_superblocks,
    memory_in,
    search_scales,
    search_superblocks,
    split_signs,
    weigh,
    write_found,
)
from ggplan.quants.grid_table import search_table
from ggplan.quants.memory import floats_at, load, new_floats, pointers, store
from ggplan.quants.search import NOTHING, quantize_scales
from ggplan.quants.superblock import SUPERBLOCK, TILE, encode_superblocks, first_superblock
from ggplan.quants.vector import WIDTH

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Superblocks that are searched before they are packed.
_PIECE = 256

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_THREE = np.float32(3)
_QUARTER = np.float32(0.25)
_TENTH = np.float32(0.1)
_FIFTH = np.float32(0.2)
_SMALL = np.float32(1e-8)
_SMALLEST = np.float32(1e-45)  # only zeros are below

_RULES = {
    "iq3_s": Rules(False, _TWO, _ZERO, _SMALLEST, _FIFTH, 9, WITH_NEIGHBOURS),
    "iq3_xxs": Rules(True, _TWO, _ZERO, _SMALL, _FIFTH, 15, NEIGHBOURS),
    "iq2_s": Rules(False, _TWO, _QUARTER, _SMALL, _TENTH, 9, NEIGHBOURS),
    "iq2_xs": Rules(True, _ONE, _ZERO, NOTHING, _TENTH, 9, NEIGHBOURS),
    "iq2_xxs": Rules(True, _ONE, _ZERO, NOTHING, _TENTH, 6, ALL),
}

# How much larger than found d is stored.
_STORED = {"iq3_s": np.float32(1.033), "iq3_xxs": np.float32(1.0125), "iq2_s": np.float32(0.9875)}


def encode_iq3_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 110 bytes for 256 weights; the arguments of all encoders are those of `encode_superblocks`."""
    _encode("iq3_s", _search_fours, pack_iq3_s, rows, importance, out)


def encode_iq3_xxs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 98 bytes for 256 weights."""
    _encode("iq3_xxs", _search_fours, pack_iq3_xxs, rows, importance, out)


def encode_iq2_s(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 82 bytes for 256 weights."""
    _encode("iq2_s", _search_eights, pack_iq2_s, rows, importance, out)


def encode_iq2_xs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 74 bytes for 256 weights."""
    _encode("iq2_xs", _search_eights, pack_iq2_xs, rows, importance, out)


def encode_iq2_xxs(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Write 66 bytes for 256 weights."""
    _encode("iq2_xxs", _search_fitted_eights, pack_iq2_xxs, rows, importance, out)


def _encode(
    name: str,
    search: Callable[..., None],
    pack: Callable[[Found, Bytes], None],
    rows: Rows,
    importance: F32Array | None,
    out: Bytes,
) -> None:
    table, rules = search_table(name), _RULES[name]
    group = 4 if search is _search_fours else 8
    size = 16 if search is _search_eights else 32

    def encode(weights: F32Array, columns: F32Array, blocks: Bytes) -> None:
        count = weights.size // SUPERBLOCK
        blocks = blocks.reshape(count, -1)
        for first in range(0, count, _PIECE):
            end = min(first + _PIECE, count)
            first = min(first, end - TILE)
            found = Found(
                np.empty((end - first, SUPERBLOCK // group), np.uint16),
                np.empty((end - first, SUPERBLOCK // 8), np.uint8),
                np.empty((end - first, SUPERBLOCK // size), np.int8),
                np.empty(end - first, np.float32),
            )
            search(weights[first * SUPERBLOCK : end * SUPERBLOCK], columns, first, table, rules, found)
            with np.errstate(all="ignore"):  # a scale too large for a half becomes infinite, as in ggml
                scales = found.scales * _STORED.get(name, _ONE)
                pack(found._replace(scales=scales), blocks[first:end])

    encode_superblocks(encode, rows, importance, out)


@kernel
def _search_fours(source: Any, importance: Any, skipped: Any, table: Any, rules: Any, found: Any) -> None:
    highest = np.float32(15)
    search_superblocks(source, importance, skipped, table, rules, found, 32, 4, highest)


@kernel
def _search_eights(source: Any, importance: Any, skipped: Any, table: Any, rules: Any, found: Any) -> None:
    highest = np.float32(5)
    search_superblocks(source, importance, skipped, table, rules, found, 16, 8, highest)


@kernel
def _search_fitted_eights(
    source: Any, importance: Any, skipped: Any, table: Any, rules: Any, found: Any
) -> None:
    table = pointers(table)
    found = pointers(found)
    room = new_floats(ROOM)
    room_to_fit = new_floats((2 * 32 + 2) * TILE)
    count = source.size // SUPERBLOCK
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        memory = memory_in(room)
        values = floats_at(room_to_fit, 0)
        weight = floats_at(room_to_fit, 32 * TILE)
        scales = floats_at(room_to_fit, 2 * 32 * TILE)
        energy = load_superblocks(source, importance, skipped, first, 32, memory)
        for at in range(0, SUPERBLOCK // 32 * TILE, WIDTH):
            weigh(importance, energy, rules, at, 32, memory)
            largest = split_signs(rules, at, 32, memory)
            scale = _fit(memory, values, weight, scales)
            nothing = (largest < rules.nothing) | (scale * _THREE <= _ZERO)
            search_scales(table, rules, at, 32, 8, nothing, scale, scale * _THREE, np.float32(5), memory)
        write_found(table, rules, first, 32, 8, memory, found)


@inline
def _fit(memory: Any, values: Any, weight: Any, scales: Any) -> Any:
    """The scales of sub-blocks, were there no grid but all levels from 0 to 4."""
    for part in range(0, WIDTH, TILE):
        for i in range(32):
            store(values, TILE * i, load(memory.sub_blocks, WIDTH * i + part, TILE))
            store(weight, TILE * i, load(memory.sub_blocks, WIDTH * (32 + i) + part, TILE))
        store(scales, part, quantize_scales(values, weight, 32, np.float32(4), memory.points))
    return load(scales, 0, WIDTH)


def pack_iq3_s(found: Found, blocks: Bytes) -> None:
    """Write blocks. As ggml, leave no room for a sub-block of nothing: what comes after it moves up.

    Its indices and signs are read with the wrong scales and ninth bits, but bytes are a contract.
    """
    _store(found.scales, blocks, 0)
    _store(found.indices.astype(np.uint8), blocks, 2)
    _store(np.packbits((found.indices >> 8).astype(np.uint8), axis=1, bitorder="little"), blocks, 66)
    _store(found.signs, blocks, 74)
    _store(_pairs(found.levels), blocks, 106)
    empty = found.levels < 0
    for n in np.flatnonzero(empty.any(axis=1)):
        order = empty[n].argsort(kind="stable")  # empty ones last: they are zero
        blocks[n, 2:66] = blocks[n, 2:66].reshape(8, 8)[order].reshape(-1)
        blocks[n, 74:106] = blocks[n, 74:106].reshape(8, 4)[order].reshape(-1)


def pack_iq3_xxs(found: Found, blocks: Bytes) -> None:
    """Write blocks."""
    _store(found.scales, blocks, 0)
    _store(found.indices.astype(np.uint8), blocks, 2)
    _store(_signs_and_scales(found), blocks, 66)


def pack_iq2_s(found: Found, blocks: Bytes) -> None:
    """Write blocks."""
    _store(found.scales, blocks, 0)
    _store(found.indices.astype(np.uint8), blocks, 2)
    _store(found.signs, blocks, 34)
    fours = (found.indices >> 8).reshape(-1, 8, 4) << (2 * np.arange(4, dtype=np.uint16))
    _store(np.bitwise_or.reduce(fours, axis=2).astype(np.uint8), blocks, 66)
    _store(_pairs(found.levels), blocks, 74)


def pack_iq2_xs(found: Found, blocks: Bytes) -> None:
    """Write blocks."""
    _store(found.scales, blocks, 0)
    _store(found.indices | (found.signs & 127).astype(np.uint16) << 9, blocks, 2)
    _store(_pairs(found.levels), blocks, 66)


def pack_iq2_xxs(found: Found, blocks: Bytes) -> None:
    """Write blocks."""
    _store(found.scales, blocks, 0)
    indices = found.indices.astype(np.uint8).view("<u4")
    _store(np.stack([indices, _signs_and_scales(found)], axis=2).reshape(-1, 16), blocks, 2)


def _store(values: NDArray[Any], blocks: Bytes, at: int) -> None:
    """Write each row of `values`, lowest byte first, into a block from byte `at` on; float32 as halves."""
    if values.dtype == np.float32:
        values = values.astype(np.float16)[:, np.newaxis]
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8)
    blocks[:, at : at + data.shape[1]] = data


def _pairs(levels: NDArray[np.int8]) -> Bytes:
    """Four bits for each scale, the even one's the lower."""
    stored = levels.clip(0).astype(np.uint8)
    pairs: Bytes = stored[:, ::2] | stored[:, 1::2] << np.uint8(4)
    return pairs


def _signs_and_scales(found: Found) -> NDArray[np.uint32]:
    """For each sub-block four times seven signs, above them the scale's four bits: (n, 8)."""
    words: NDArray[np.uint32] = found.levels.clip(0).astype(np.uint32) << np.uint32(28)
    for n in range(4):
        words |= (found.signs[:, n::4] & 127).astype(np.uint32) << (7 * n)
    return words
