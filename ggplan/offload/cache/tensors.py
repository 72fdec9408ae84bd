"""The tensors of a cache, and those of plain attention, which every kind of memory is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ggplan.ggml_types import F32, GgmlType
from ggplan.offload.dimensions import Dimensions
from ggplan.offload.settings import Settings


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """One tensor of the context.

    Attributes
    ----------
    role
        `k`, `v`, `indexer k`, `indexer v`, `r` (last inputs of a convolution), `s` (state), ...
    block
        The block that it belongs to.
    type, shape
        ggml type; ggml's order, the row's length first.
    """

    role: str
    block: int
    type: GgmlType
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows of a cache: cells of a stream, and streams."""

    n: int
    streams: int


def attention_tensors(
    dimensions: Dimensions, settings: Settings, blocks: Iterable[int], cells: Cells
) -> Iterator[CacheTensor]:
    """Keys and values of some blocks; keys alone with latent attention.

    Without flash attention V is transposed, and its rows are as long as those of the block that has most.
    """
    transposed = settings.flash_attention == "off"
    longest = max((dimensions.value_size(i) * n for i, n in enumerate(dimensions.kv_heads)), default=0)
    for block in blocks:
        n_heads = dimensions.kv_heads[block]
        keys, values = dimensions.key_size(block) * n_heads, dimensions.value_size(block) * n_heads
        yield CacheTensor("k", block, settings.cache_k, (keys, cells.n, cells.streams))
        if not dimensions.is_mla:
            row = longest if transposed else values
            yield CacheTensor("v", block, settings.cache_v, (row, cells.n, cells.streams))


def key_tensors(
    role: str, row: int, settings: Settings, blocks: Iterable[int], cells: Cells
) -> Iterator[CacheTensor]:
    """A cache of keys alone, `row` weights a cell."""
    for block in blocks:
        yield CacheTensor(role, block, settings.cache_k, (row, cells.n, cells.streams))


def state_tensor(role: str, block: int, row: int, n_rows: int, planes: int = 1) -> CacheTensor:
    """A float32 tensor of `n_rows` rows."""
    return CacheTensor(role, block, F32, (row, n_rows, planes))
