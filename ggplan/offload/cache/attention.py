"""Plain attention: keys and values of every block for every cell.

    bytes = cells × streams × Σ over blocks (row(K, key size × heads) + row(V, value size × heads))

With latent attention (`key_length_mla` in the file) a token has one compressed key and no value. Blocks for
multi-token prediction keep nothing here: the draft context holds theirs. In Gemma 3n and 4 the last blocks
read the cache of an earlier one.

Source: llama.cpp b11434, `src/llama-kv-cache.cpp`; `src/llama-model.cpp`, create_memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from ggplan.offload.cache.tensors import CacheTensor, Cells, attention_tensors, key_tensors
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.holding import Holding
from ggplan.offload.settings import Settings


def trunk_with_cache(dimensions: Dimensions) -> range:
    """The blocks that have a cache of their own in the main context."""
    # A file may be a draft model alone, without a trunk; graniteswitch attends its router's block.
    if dimensions.n_trunk == 0 or dimensions.architecture == "graniteswitch":
        return range(dimensions.n_own_cache)
    return range(min(dimensions.n_trunk, dimensions.n_own_cache))


def plain(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """Keys and values of all blocks of the trunk."""
    cells = Cells(holding.n_cells, holding.n_streams)
    yield from attention_tensors(dimensions, settings, trunk_with_cache(dimensions), cells)


def draft(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """The draft context of multi-token prediction: plain attention of the blocks beyond the trunk."""
    blocks = range(dimensions.n_trunk, dimensions.n_blocks)
    slides = [i for i in blocks if dimensions.slides[i]]
    full = [i for i in blocks if not dimensions.slides[i]]
    yield from attention_tensors(dimensions, settings, full, Cells(holding.n_cells, holding.n_streams))
    yield from attention_tensors(
        dimensions, settings, slides, Cells(holding.n_window_cells, holding.n_streams)
    )
    if dimensions.architecture == "glm5-next" and dimensions.indexer is not None:
        row = dimensions.indexer.size * (3 if dimensions.indexer.pool else 1)
        cells = Cells(holding.n_cells, holding.n_streams)
        yield from key_tensors("indexer k", row, settings, blocks, cells)


def none(dimensions: Dimensions, settings: Settings, holding: Holding) -> Iterator[CacheTensor]:
    """An encoder, or a model that predicts all tokens at once: nothing is kept."""
    yield from ()
