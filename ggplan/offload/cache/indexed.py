"""A sparse indexer's keys, beside the cache it chooses cells of.

    DSA      latent attention, and of blocks with an indexer of their own one key of the indexer's size a cell
    MSA      plain attention, and of blocks beyond the dense ones an indexer's key; a V of the model's own
             head size is allocated with it
    hybrid   of the blocks with attention one key, three (key, gate, pooled) where keys are pooled

Source: llama.cpp b11434, `src/llama-kv-cache-dsa.cpp`, `src/llama-kv-cache-dsa-iswa.cpp`,
`src/llama-kv-cache-msa.cpp`, `src/llama-memory-hybrid-idx.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.offload.cache.attention import trunk_with_cache
from ggplan.offload.cache.recurrent import attention_blocks, hybrid
from ggplan.offload.cache.tensors import CacheTensor, Cells, attention_tensors, key_tensors
from ggplan.offload.cache.window import windowed_blocks
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.holding import Holding
from ggplan.offload.settings import Settings


def sparse_latent(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """DSA: DeepSeek-V3.2, GLM-5, Hunyuan 4; with windows, dots3note."""
    blocks = trunk_with_cache(dimensions)
    yield from windowed_blocks(dimensions, settings, holding, blocks)
    if dimensions.indexer is not None and dimensions.indexer.top_k:
        own = [i for i in blocks if dimensions.indexer.is_full[i] and not dimensions.slides[i]]
        cells = Cells(holding.n_cells, holding.n_streams)
        yield from key_tensors("indexer k", dimensions.indexer.size, settings, own, cells)


def sparse_grouped(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """MSA: MiniMax-M3."""
    cells = Cells(holding.n_cells, holding.n_streams)
    yield from attention_tensors(dimensions, settings, range(dimensions.n_blocks), cells)
    if dimensions.indexer is not None:
        blocks = range(dimensions.n_dense, dimensions.n_blocks)
        yield from key_tensors("indexer k", dimensions.indexer.size, settings, blocks, cells)
        for block in blocks:
            row = dimensions.value_size(block)
            yield CacheTensor("indexer v", block, settings.cache_v, (row, cells.n, cells.streams))


def sparse_hybrid(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """A hybrid whose blocks with attention have an indexer: GLM-5-Next, Qwen3.8 (qwen4exp)."""
    yield from hybrid(dimensions, settings, holding)
    if dimensions.indexer is not None:
        row = dimensions.indexer.size * (3 if dimensions.indexer.pool else 1)
        own = [i for i in attention_blocks(dimensions) if dimensions.indexer.is_full[i]]
        cells = Cells(holding.n_cells, holding.n_streams)
        yield from key_tensors("indexer k", row, settings, own, cells)
