"""q4_K and q5_K: superblocks of eight sub-blocks of 32 weights, weight = d * scale * level - dmin * min.

Bytes of a q4_K block (144)                      q5_K (176)

    0   d       half                             the same
    2   dmin    half                             the same
    4   scales  eight scales and eight mins      the same
                of 6 bits, in 12 bytes
    16  qs      128 bytes of levels 0..15        qh   32 bytes: bit j of byte i is the fifth bit
    48                                           qs   of weight i of sub-block j; then as q4_K

Byte i of the k-th 32 bytes of qs has weight i of sub-block 2k in its lower half and of sub-block 2k + 1 in
its upper half. Of the 12 bytes of scales the first four have scales 0 to 3 and above them the upper two bits
of scales 4 to 7, the next four the same of the mins, the last four the lower four bits of scales 4 to 7 and
of mins 4 to 7.

Without an importance matrix the error of a weight x counts |x| + rms, the root mean square of its sub-block,
and the largest scale and min get the whole 6 bits. With one it counts importance * sqrt(2 ms + x^2), the mean
square of the superblock, and d and dmin are searched for too.

From llama.cpp's `ggml/src/ggml-quants.c`: quantize_row_q4_K_ref and _impl, quantize_row_q5_K_ref and _impl.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.codecs import Rows
from ggplan.quants.half import floats_of, halves_of
from ggplan.quants.memory import load, new_floats, new_integers, store
from ggplan.quants.search import affine_search, quantize_scales, scales_by_largest
from ggplan.quants.superblock import (
    SUPERBLOCK,
    TILE,
    encode_superblocks,
    first_superblock,
    load_tile,
    new_fit,
    requantize,
    store_blocks,
    store_fit,
    sum_of_squares,
    weigh_by_importance,
)
from ggplan.quants.vector import WIDTH, absolute, float_of, minimum, splat, square_root

_SIZE = 32
_COUNT = SUPERBLOCK // _SIZE

_Q4_BYTES = 144
_Q5_BYTES = 176
_ZERO = np.float32(0)
_TWO = np.float32(2)
_LARGEST_SCALE = np.float32(63)


def encode_q4_k(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 144 bytes for 256 weights; the arguments are those of `encode_superblocks`."""
    first, step, count = (-1.0, 0.1, 21) if importance is None else (-0.9, 0.05, 37)
    encode_superblocks(_encode, rows, importance, out, 15, np.float32(first), np.float32(step), count)


def encode_q5_k(rows: Rows, importance: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
    """Write 176 bytes for 256 weights; the arguments are those of `encode_superblocks`."""
    first, step, count = (-0.5, 0.1, 16) if importance is None else (-0.9, 0.05, 37)
    encode_superblocks(_encode, rows, importance, out, 31, np.float32(first), np.float32(step), count)


@kernel
def _encode(
    source: Any, importance: Any, out: Any, highest: Any, first_trial: Any, step: Any, trials: Any
) -> None:
    tile = new_floats(SUPERBLOCK * TILE)
    columns = new_floats(SUPERBLOCK * TILE)
    weight = new_floats(_SIZE * WIDTH)
    scratch = new_floats(_SIZE * WIDTH)
    scales = new_integers(_COUNT * TILE)
    mins = new_integers(_COUNT * TILE)
    levels = new_integers(SUPERBLOCK * TILE)
    block = new_integers(_Q5_BYTES * TILE)
    fit = new_fit()
    energy = splat(_ZERO, TILE)
    block_bytes = _Q4_BYTES if highest == 15 else _Q5_BYTES
    # ggml clamps scales but not in this case; a negative one, 255 in its byte, spills over into another.
    ceiling = 255 if highest == 15 and importance.size > 0 else 63
    count = source.size // SUPERBLOCK
    per_row = importance.size // SUPERBLOCK - (TILE - 1)
    for tile_number in range((count + TILE - 1) // TILE):
        first = first_superblock(tile_number, count)
        load_tile(source, first, _SIZE, tile)
        if importance.size > 0:
            load_tile(importance, first % per_row, _SIZE, columns)
            energy = _TWO * sum_of_squares(tile, _SIZE) / np.float32(SUPERBLOCK)
        for at in range(0, _COUNT * TILE, WIDTH):
            if importance.size > 0:
                weigh_by_importance(tile, columns, _SIZE * at, _SIZE, energy, weight)
            else:
                _weigh_by_size(tile, _SIZE * at, weight)
            top = np.float32(highest)
            found = affine_search(
                tile, _SIZE * at, _SIZE, weight, scratch, top, first_trial, step, trials, False
            )
            store_fit(fit, at, found)
        if importance.size > 0:
            d = quantize_scales(fit.scale, fit.weight, _COUNT, _LARGEST_SCALE, scales)
            dmin = quantize_scales(fit.offset, fit.weight, _COUNT, _LARGEST_SCALE, mins)
        else:
            d = scales_by_largest(fit.scale, _COUNT, _LARGEST_SCALE, scales)
            dmin = scales_by_largest(fit.offset, _COUNT, _LARGEST_SCALE, mins)
        pack_scales(d, dmin, scales, mins, ceiling, block, fit)
        for j in range(_COUNT):
            requantize(tile, tile, fit, j, _SIZE, 0, highest, levels)
        if highest == 31:
            pack_fifth_bits(levels, block)
        pack_levels(levels, block, block_bytes - SUPERBLOCK // 2)
        store_blocks(block, block_bytes, out, first)


@inline
def _weigh_by_size(tile: Any, start: Any, weight: Any) -> None:
    """Let an error weigh the weight's size and the root mean square of its sub-block."""
    total = splat(_ZERO, WIDTH)
    for i in range(_SIZE):
        x = load(tile, start + WIDTH * i, WIDTH)
        total = total + x * x
    rms = square_root(total / np.float32(_SIZE))
    for i in range(_SIZE):
        store(weight, WIDTH * i, rms + absolute(load(tile, start + WIDTH * i, WIDTH)))


@inline
def pack_scales(d: Any, dmin: Any, scales: Any, mins: Any, ceiling: Any, block: Any, fit: Any) -> None:
    """Write the first 16 bytes, and let `fit` have the scales and offsets that a reader will find in them."""
    d = halves_of(d)
    dmin = halves_of(dmin)
    store(block, 0 * TILE, d)
    store(block, 1 * TILE, d >> 8)
    store(block, 2 * TILE, dmin)
    store(block, 3 * TILE, dmin >> 8)
    d = floats_of(d)
    dmin = floats_of(dmin)
    for j in range(4):
        far_scale = _pack_pair(scales, j, ceiling, block, 4 + j, d, fit.scale)
        far_min = _pack_pair(mins, j, ceiling, block, 8 + j, dmin, fit.offset)
        store(block, (12 + j) * TILE, far_scale | (far_min << 4))


@inline
def _pack_pair(integers: Any, j: Any, ceiling: Any, block: Any, byte: Any, unit: Any, values: Any) -> Any:
    """Write integer j and the upper bits of integer j + 4 to `byte`; return the latter's lower four bits.

    `values` gets what a reader makes of the two, in units of `unit`.
    """
    near = minimum(load(integers, j * TILE, TILE), ceiling)
    far = minimum(load(integers, (j + 4) * TILE, TILE), ceiling)
    near = (near | ((far >> 4) << 6)) & 255
    far = far & 15
    store(block, byte * TILE, near)
    store(values, j * TILE, unit * float_of(near & 63))
    store(values, (j + 4) * TILE, unit * float_of(far | ((near >> 6) << 4)))
    return far


@inline
def pack_fifth_bits(levels: Any, block: Any) -> None:
    """Write q5_K's qh."""
    for i in range(_SIZE):
        bits = splat(0, TILE)
        for j in range(_COUNT):
            bits = bits | ((load(levels, (_SIZE * j + i) * TILE, TILE) >> 4) << j)
        store(block, (16 + i) * TILE, bits)


@inline
def pack_levels(levels: Any, block: Any, byte: Any) -> None:
    """Write the lower four bits of all levels from `byte` on."""
    for j in range(0, _COUNT, 2):
        for i in range(_SIZE):
            low = load(levels, (_SIZE * j + i) * TILE, TILE) & 15
            high = load(levels, (_SIZE * (j + 1) + i) * TILE, TILE)
            store(block, (byte + 16 * j + i) * TILE, low | (high << 4))
