"""DeepSeek-V4: every block keeps a window of keys, most also compressed keys of the whole context.

    raw         a window of keys, in every block, those for multi-token prediction too
    ratio 4     one key for each 4 tokens, in steps of 256, and an indexer's key for each
    ratio 128   one key for each 128 tokens
    state       float32, of the tokens that are not compressed yet, and their scores

Keys are as wide as a head and there are no values. Slots never share a stream, whatever `-kvu` says.

Source: llama.cpp b11434, `src/llama-kv-cache-dsv4.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.offload.cache.tensors import CacheTensor, Cells, key_tensors, state_tensor
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.holding import STEP, Holding, padded
from ggplan.offload.settings import Settings

FINE, COARSE = 4, 128  # tokens of a compressed key


def compressed(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """All that DeepSeek-V4 keeps."""
    head, slots = dimensions.head_k_window, holding.n_slots
    own_window = padded(min(holding.n_cells, dimensions.window + holding.n_tokens), STEP)
    raw = holding.n_cells if settings.full_window else own_window
    for block in range(dimensions.n_blocks):
        row = head * dimensions.kv_heads[block]
        yield from key_tensors("k", row, settings, (block,), Cells(raw, slots))
    ratios = dimensions.compress_ratios[: dimensions.n_blocks]
    fine = [i for i, ratio in enumerate(ratios) if ratio == FINE]
    coarse = [i for i, ratio in enumerate(ratios) if ratio == COARSE]
    for blocks, ratio in ((fine, FINE), (coarse, COARSE)):
        cells = Cells(compressed_cells(holding, ratio), slots)
        for block in blocks:
            row = head * dimensions.kv_heads[block]
            yield from key_tensors(f"k of {ratio}", row, settings, (block,), cells)
    size = dimensions.indexer.size if dimensions.indexer is not None else 0
    cells = Cells(compressed_cells(holding, FINE), slots)
    yield from key_tensors("indexer k", size, settings, fine, cells)
    planes = slots * holding.n_planes
    states = ((fine, 2 * FINE, 2 * head), (coarse, COARSE, head), (fine, 2 * FINE, 2 * size))
    for blocks, n_rows, row in states:
        for block in blocks:
            if block < dimensions.n_trunk:
                yield state_tensor("state", block, row, n_rows, planes)
                yield state_tensor("score", block, row, n_rows, planes)


def compressed_cells(holding: Holding, ratio: int) -> int:
    """Cells of one stream at a ratio."""
    return padded(max(1, -(-holding.n_cells // ratio)), STEP)
