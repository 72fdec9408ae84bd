"""ggml's search for the scales of q4_0, q4_1, q5_0 and q5_1 with an importance matrix.

Instead of taking the scale from the extreme weights (`direct`), ggml tries scales around that one (`ggml`)
and keeps the one of the least error, in which a weight x counts

    importance of its column * sqrt(sum(x^2) / columns + x^2)

The sum runs over the whole row: of all ggml's types, only these have blocks that depend on the rest of their
row. From llama.cpp b11434, `quantize_row_q4_0_impl` and similar functions in `ggml/src/ggml-quants.c`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggplan.quants.half import halves_of
from ggplan.quants.kernels import inline
from ggplan.quants.memory import floats_at, integers_at, load, shorts_at, store, transpose
from ggplan.quants.searches.blocks import GROUP, load_blocks
from ggplan.quants.searches.ggml import affine_search, symmetric_search
from ggplan.quants.searches.superblock import nearest
from ggplan.quants.vector import maximum, minimum, square_root

_TILE = 32 * GROUP

# The trials of affine_search: (highest - 0.9 + 0.05 k) / range, for k from 0 to 36.
_FIRST = np.float32(-0.9)
_STEP = np.float32(0.05)
_TRIALS = 37


@inline
def symmetric(given: Any, first: Any, scales: Any, codes: Any) -> None:
    """Scales and codes of q4_0 and q5_0."""
    tile = given.room
    errors = floats_at(tile, _TILE)
    middle = (given.highest + 1) // 2
    _load(given, first, tile, errors)
    scale, kept_scale, kept_offset = symmetric_search(
        tile, 0, 32, GROUP, errors, floats_at(tile, 2 * _TILE), np.float32(middle), True
    )
    store(shorts_at(scales, 0), 0, halves_of(scale))
    _store_codes(tile, kept_scale, kept_offset, -middle, middle - 1, codes)


@inline
def affine(given: Any, first: Any, scales: Any, codes: Any) -> None:
    """Scales, minimums and codes of q4_1 and q5_1."""
    tile = given.room
    errors = floats_at(tile, _TILE)
    _load(given, first, tile, errors)
    scale, offset, kept_scale, kept_offset, _ = affine_search(
        tile, 0, 32, errors, floats_at(tile, 2 * _TILE), np.float32(given.highest), _FIRST, _STEP, _TRIALS,
        False,
    )  # fmt: skip
    store(integers_at(scales, 0), 0, halves_of(scale) | (halves_of(-offset) << 16))
    _store_codes(tile, kept_scale, kept_offset, 0, given.highest, codes)


@inline
def _load(given: Any, first: Any, tile: Any, errors: Any) -> None:
    """Lay blocks into a tile and weigh their errors."""
    load_blocks(given.weights, first, 32, tile)
    load_blocks(given.columns, first % given.per_row, 32, errors)
    of_rows = floats_at(tile, 2 * _TILE)
    for lane in range(GROUP):
        of_rows[lane] = given.energies[(first + lane) // given.per_row]
    energy = load(of_rows, 0, GROUP)
    for at in range(0, _TILE, GROUP):
        x = load(tile, at, GROUP)
        store(errors, at, load(errors, at, GROUP) * square_root(energy + x * x))


@inline
def _store_codes(tile: Any, scale: Any, offset: Any, lowest: Any, highest: Any, codes: Any) -> None:
    """Write the levels that a search ended with, `lowest` as code 0."""
    turned = integers_at(tile, 2 * _TILE)
    for at in range(0, _TILE, GROUP):
        level = nearest((load(tile, at, GROUP) + offset) * scale)
        store(turned, at, maximum(minimum(level, highest), lowest) - lowest)
    for block in range(0, GROUP, 16):
        for i in range(0, 32, 16):
            transpose(turned, GROUP * i + block, GROUP, codes, 32 * block + i, 32)
