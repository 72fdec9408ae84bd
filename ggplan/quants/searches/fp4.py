"""Scales of mxfp4 and nvfp4: ggml's, and those with less error.

ggml's scale follows from the largest magnitude alone. In mxfp4 it is the power of two that puts that weight
at 8 to 16; in nvfp4 a sixth of it, rounded to UE4M3, and 448 from 256 on. Then each weight takes the level of
the smallest error, the first of equals. Where weights lie far beyond the largest scale, or near the end of
float32, errors are equal by rounding or infinite: so they are worked out and compared as in ggml, not the
weights with thresholds.

A scale is one byte, so the search for less error is to try the bytes around ggml's, which are the scales
around it in order, and to keep the one that gives the least. A smaller scale cuts off the largest weights and
is finer for all the others.

From llama.cpp b11434, `quantize_row_mxfp4_ref` and `quantize_row_nvfp4_ref` in `ggml/src/ggml-quants.c` and
`ggml_fp32_to_ue4m3` in `ggml-impl.h`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.formats.fields import Blocks, F32Array
from ggplan.quants.formats.levels import E8M0_HALVES, FP4_LEVELS, UE4M3_HALVES
from ggplan.quants.kernels import I64, F32s, U8s, Weights, inline, kernel, scratch
from ggplan.quants.memory import floats_at, integers_at, load, load_weights, store
from ggplan.quants.searches.best import to_beat, weigh_blocks
from ggplan.quants.searches.blocks import GROUP, Weighted, load_blocks
from ggplan.quants.vector import (
    absolute,
    bits_of,
    lane,
    largest_lane,
    minimum,
    select,
    splat,
)

_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_6 = np.float32(6)
_512 = np.float32(512)
_MAGNITUDES = FP4_LEVELS[:8]
_NINE_BITS = 0x7FC000

LARGEST_UE4M3 = 0x7E  # 448; 0x7F is a nan
LARGEST_E8M0 = 254  # 255 is a nan to most readers


@inline
def mxfp4(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """The scale and codes of ggml's block of 32."""
    start = 32 * (first + k)
    largest = largest_lane(absolute(load_weights(given.weights, start, 32)))
    exponent = 0
    if largest > _ZERO:
        # In C, a negative number becomes a byte as x86-64 has it: its lowest eight bits.
        exponent = (_floor_log2(largest) - 2 + 127) & 0xFF
    scales[0] = exponent
    for i in range(0, 32, 16):
        store(codes, i, _nearest_code(load_weights(given.weights, start + i, 16), E8M0_HALVES[exponent]))


@inline
def nvfp4(given: Any, first: Any, k: Any, scales: Any, codes: Any) -> None:
    """The scales and codes of ggml's block of four times 16."""
    for part in range(4):
        x = load_weights(given.weights, 64 * (first + k) + 16 * part, 16)
        byte = _ue4m3(np.float32(largest_lane(absolute(x)) / _6))
        scales[part] = byte
        store(codes, 16 * part, _nearest_code(x, UE4M3_HALVES[byte]))


@inline
def _floor_log2(value: Any) -> Any:
    """C's floorf(log2f(value)) of a positive float32: nearly always its exponent.

    log2f rounds to float32, so just below a power of two it gives that power. How near that has to be depends
    on the power, but nine bits of the fraction are ones there.
    """
    bits = lane(bits_of(splat(value, 1)), 0)
    if bits < 1 << 23 or bits & _NINE_BITS == _NINE_BITS:
        return int(np.floor(np.float32(np.log2(np.float64(value)))))
    return int(bits >> 23) - 127


@inline
def _ue4m3(value: Any) -> Any:
    """The byte of a non-negative float32."""
    bits = lane(bits_of(splat(value, 1)), 0)
    if bits < 121 << 23:  # below 2^-6: denormal, in steps of 2^-9
        return min(int(value * _512 + _HALF), 7)
    rounded = (bits >> 20) + ((bits >> 19) & 1) - (120 << 3)
    return rounded if rounded < 15 << 3 else LARGEST_UE4M3


@inline
def _nearest_code(weights: Any, scale: Any) -> Any:
    """The four bits of each lane, as int32."""
    magnitude = absolute(weights)
    error = magnitude
    index = bits_of(magnitude) & 0
    for i in range(1, 8):
        other = absolute(np.float32(_MAGNITUDES[i] * scale) - magnitude)
        index = select(other < error, i, index)
        error = select(other < error, other, error)
    return select((weights < _ZERO) & (index > 0), index | 8, index)


def improve(given: Weighted, found: Blocks, table: F32Array, largest: int, reach: int) -> None:
    """Make fields better, by scales from `reach` bytes less to as many more, up to byte `largest`."""
    parts = found.scales.shape[1]
    size = found.codes.shape[1] // parts
    room = scratch((2 * size + 5) * GROUP)
    _refine(
        given.weights, parts * given.n_blocks, given.columns, parts * given.per_row, room, size, table,
        largest, reach, found.scales.copy(), found.scales, found.codes,
    )  # fmt: skip


@kernel
def _refine(
    weights: Weights, count: I64, columns: F32s, per_row: I64, room: F32s,
    size: I64, table: F32s, largest: I64, reach: I64, defaults: U8s, scales: U8s, codes: U8s,
) -> None:  # fmt: skip
    tile = room
    weight = floats_at(tile, size * GROUP)
    scale = floats_at(weight, size * GROUP)
    errors = floats_at(scale, GROUP)
    least = floats_at(errors, GROUP)
    best = integers_at(least, GROUP)
    done = -1
    for number in range((count + GROUP - 1) // GROUP):
        first = min(number * GROUP, count - GROUP)
        load_blocks(weights, first, size, tile)
        done = weigh_blocks(columns, per_row, first, size, weight, done)
        for trial in range(2 * reach + 1):
            # The default's first; then those before and behind it.
            step = 0 if trial == 0 else trial - reach - (1 if trial <= reach else 0)
            for r in range(GROUP):
                scale[r] = table[min(max(defaults[first + r] + step, 0), largest if step else 255)]
            error = _error(tile, weight, size, load(scale, 0, GROUP))
            store(errors, 0, error)
            if step == 0:
                store(least, 0, to_beat(error))
                store(best, 0, load(defaults, first, GROUP))
            for r in range(GROUP):
                if errors[r] < least[r]:
                    least[r] = errors[r]
                    best[r] = min(max(defaults[first + r] + step, 0), largest)
        for r in range(GROUP):
            block = first + r
            if best[r] != defaults[block]:
                scales[block] = best[r]
                for i in range(block * size, (block + 1) * size, 16):
                    store(codes, i, _nearest_code(load_weights(weights, i, 16), table[best[r]]))


@inline
def _error(tile: Any, weight: Any, size: Any, scale: Any) -> Any:
    """The error of blocks: each weight's distance from the nearest level."""
    total = splat(_ZERO, GROUP)
    for at in range(0, size * GROUP, GROUP):
        magnitude = absolute(load(tile, at, GROUP))
        nearest = magnitude
        for i in range(1, 8):
            nearest = minimum(absolute(scale * _MAGNITUDES[i] - magnitude), nearest)
        total = total + load(weight, at, GROUP) * nearest * nearest
    return total
