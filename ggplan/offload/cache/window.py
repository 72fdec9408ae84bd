"""Sliding windows: blocks that slide keep `window × slots of a stream + micro-batch` cells, the others all.

Source: llama.cpp b11434, `src/llama-kv-cache-iswa.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ggplan.offload.cache.attention import trunk_with_cache
from ggplan.offload.cache.tensors import CacheTensor, Cells, attention_tensors
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.holding import Holding
from ggplan.offload.settings import Settings


def windowed(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """Keys and values of the trunk, in two caches."""
    yield from windowed_blocks(dimensions, settings, holding, trunk_with_cache(dimensions))


def windowed_blocks(
    dimensions: Dimensions, settings: Settings, holding: Holding, blocks: Iterable[int]
) -> Iterator[CacheTensor]:
    """Keys and values of some blocks, in two caches."""
    chosen = list(blocks)
    full = [i for i in chosen if not dimensions.slides[i]]
    slides = [i for i in chosen if dimensions.slides[i]]
    yield from attention_tensors(dimensions, settings, full, Cells(holding.n_cells, holding.n_streams))
    yield from attention_tensors(
        dimensions, settings, slides, Cells(holding.n_window_cells, holding.n_streams)
    )
