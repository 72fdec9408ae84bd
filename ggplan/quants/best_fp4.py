"""mxfp4 and nvfp4 with less error than ggml's: four-bit floats under a scale from a table.

Blocks are those of `fp4`: 32 weights and a power of two, or 16 weights and a UE4M3. A scale is one byte, so
the search is to try the bytes around ggml's, which are the scales around it in order, and to keep the one
that gives the least error. A smaller scale cuts off the largest weights and is finer for all the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggplan.quants import fp4
from ggplan.quants.accelerate import inline, kernel
from ggplan.quants.best import gather_block_weights, gather_blocks, to_beat
from ggplan.quants.codecs import Rows
from ggplan.quants.decode import E8M0_HALVES, FP4_LEVELS, UE4M3_HALVES
from ggplan.quants.layout32 import flat
from ggplan.quants.memory import load, load_weights, new_floats, store
from ggplan.quants.vector import WIDTH, absolute, minimum, splat

F32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO = np.float32(0)
_ONE = np.float32(1)
_MAGNITUDES = np.array(FP4_LEVELS[:8], np.float32)
_LARGEST_E8M0 = 254  # 255 is a nan to most readers
_LARGEST_UE4M3 = 126


def encode_mxfp4(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 32 * 17)."""
    fp4.encode_mxfp4(rows, importance, out)
    columns = np.empty(0, np.float32) if importance is None else importance
    _refine(flat(rows), flat(columns), out.reshape(-1), 32, E8M0_HALVES, _LARGEST_E8M0, 2, 2)


def encode_nvfp4(rows: Rows, importance: F32Array | None, out: Bytes) -> None:
    """Encode `rows` (n, columns) to `out` (n, columns / 64 * 36)."""
    fp4.encode_nvfp4(rows, importance, out)
    columns = np.empty(0, np.float32) if importance is None else importance
    _refine(flat(rows), flat(columns), out.reshape(-1), 16, UE4M3_HALVES, _LARGEST_UE4M3, 6, 6)


@kernel
def _refine(
    weights: Any,
    importance: Any,
    out: Any,
    size: Any,
    scales: Any,
    largest: Any,
    below: Any,
    above: Any,
) -> None:
    """Improve all blocks of `size` weights by bytes from `below` less than theirs to `above` more."""
    tile = new_floats(size * WIDTH)
    weight = new_floats(size * WIDTH)
    scratch = new_floats(size * WIDTH)
    scale = new_floats(WIDTH)
    errors = new_floats(WIDTH)
    least = new_floats(WIDTH)
    default = np.empty(WIDTH, np.int64)
    best = np.empty(WIDTH, np.int64)
    total = weights.size // size
    for at in range(0, size * WIDTH, WIDTH):
        store(weight, at, splat(_ONE, WIDTH))
    for first in range(0, total, WIDTH):
        count = min(WIDTH, total - first)
        gather_blocks(weights, first, count, total, scratch, size, tile)
        if importance.size > 0:
            gather_block_weights(importance, first, count, scratch, size, weight)
        for r in range(WIDTH):
            default[r] = best[r] = out[_scale_at(first + min(r, count - 1), size)]
        for trial in range(below + above + 1):
            # The default's first; then those before and behind it.
            step = 0 if trial == 0 else trial - below - (1 if trial <= below else 0)
            for r in range(WIDTH):
                scale[r] = scales[min(max(default[r] + step, 0), largest if step else 255)]
            error = _error(tile, weight, size, load(scale, 0, WIDTH))
            store(errors, 0, error)
            if step == 0:
                store(least, 0, to_beat(error))
            for r in range(WIDTH):
                if errors[r] < least[r]:
                    least[r] = errors[r]
                    best[r] = min(max(default[r] + step, 0), largest)
        for r in range(count):
            if best[r] != default[r]:
                _write_block(weights, first + r, size, best[r], scales[best[r]], out)


@inline
def _scale_at(block: Any, size: Any) -> Any:
    """Where a block's scale stands."""
    return block * 17 if size == 32 else block // 4 * 36 + block % 4


@inline
def _write_block(weights: Any, block: Any, size: Any, byte: Any, scale: Any, out: Any) -> None:
    start = block * size
    out[_scale_at(block, size)] = byte
    if size == 32:
        low = fp4.nearest_level(load_weights(weights, start, 16), scale)
        high = fp4.nearest_level(load_weights(weights, start + 16, 16), scale)
        store(out, block * 17 + 1, low | (high << 4))
    else:
        low = fp4.nearest_level(load_weights(weights, start, 8), scale)
        high = fp4.nearest_level(load_weights(weights, start + 8, 8), scale)
        store(out, block // 4 * 36 + 4 + block % 4 * 8, low | (high << 4))


@inline
def _error(tile: Any, weight: Any, size: Any, scale: Any) -> Any:
    """The error of blocks: each weight's distance from the nearest level."""
    total = splat(_ZERO, WIDTH)
    for at in range(0, size * WIDTH, WIDTH):
        magnitude = absolute(load(tile, at, WIDTH))
        nearest = magnitude
        for i in range(1, 8):
            nearest = minimum(absolute(scale * _MAGNITUDES[i] - magnitude), nearest)
        total = total + load(weight, at, WIDTH) * nearest * nearest
    return total
