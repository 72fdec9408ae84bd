"""Attention over chosen blocks of positions (MSA): MiniMax-M3.

    indexer        queries of one head a group of heads, one key a cell; scores by position, the largest of a
                   block of positions is the block's
    mask           what the best blocks hold is let through, for each group of heads a mask of its own
    attention      all groups at once, as sequences

It needs flash attention, and slots with caches of their own; without, attention is over all cells. Positions
are counted up to the highest that is cached: when buffers are made, there is none.

Source: llama.cpp b11434, `src/models/minimax-m3.cpp`, `src/llama-kv-cache-msa.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggplan.ggml_types import F16, F32
from ggplan.offload.graph.attention import (
    Attention,
    attention_inputs,
    read_flash,
    rotated,
    store_and_view,
    store_indexer_keys,
)
from ggplan.offload.graph.maker import I32, I64, Maker
from ggplan.offload.graph.tensors import Tensor
from ggplan.offload.holding import padded

_POSITIONS = 256  # of an empty cache


@dataclass(slots=True)
class BlockAttention(Attention):
    """Inputs of attention over chosen blocks.

    Attributes
    ----------
    ids
        Cells that the indexer's keys are written to.
    bias, sees
        What lifts the nearest blocks; which positions a token may see.
    cells, blocks
        The cell of each position, and the block of each cell.
    mask
        The mask as f32.
    """

    ids: Tensor | None = None
    bias: Tensor | None = None
    sees: Tensor | None = None
    cells: Tensor | None = None
    blocks: Tensor | None = None
    mask: Tensor | None = None


def block_inputs(maker: Maker) -> Attention:
    """Inputs for all blocks; plain ones where blocks are not chosen."""
    plain, holding, g = attention_inputs(maker), maker.job.holding, maker.graph
    indexer = maker.dims.indexer
    is_shared = holding.n_slots > 1 and holding.n_streams == 1
    if not maker.job.flash or is_shared or indexer is None or plain.full is None:
        return plain
    n, streams, size = maker.n_tokens, maker.n_streams, indexer.block_size
    n_positions = padded(_POSITIONS, size)
    return BlockAttention(
        maker,
        plain.full,
        ids=g.input(I64, n),
        bias=g.input(F32, n_positions // size, n),
        sees=g.input(F32, n_positions, n),
        cells=g.input(I32, n_positions, streams),
        blocks=g.input(I32, holding.n_cells, streams),
        mask=g.op("cpy", plain.full.mask.shape, plain.full.mask, kind=F32),
    )


def over_blocks(
    attention: BlockAttention, x: Tensor, positions: Tensor, block: int, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Attention of one block of the model: `[values of all heads, tokens]`."""
    maker, g, inputs = attention.maker, attention.maker.graph, attention.inputs(block)
    indexer, holding, settings = maker.dims.indexer, maker.job.holding, maker.job.settings
    assert indexer is not None
    assert attention.ids is not None
    p, n, streams = f"blk.{block}.indexer.", maker.n_tokens, maker.n_streams
    iq = g.mul_mat(maker.need(f"{p}q_proj.weight"), x)
    ik = g.mul_mat(maker.need(f"{p}k_proj.weight"), x)
    iq = maker.norm(g.reshape(iq, indexer.size, indexer.heads, n), f"{p}q_norm.weight")
    ik = maker.norm(g.reshape(ik, indexer.size, 1, n), f"{p}k_norm.weight")
    iq, ik = maker.rope(iq, positions), maker.rope(ik, positions)
    device = maker.job.blocks[block] if settings.cache_on_gpu else maker.job.cpu
    cache = g.given(settings.cache_k, (indexer.size, holding.n_cells, streams), device)
    found = store_indexer_keys(maker, cache, ik, attention.ids)
    q, keys, values = store_and_view(attention, block, q, k, v, k_first=True)
    per = n // streams
    outs = []
    for _ in range(streams):
        mask = _mask(attention, g.slice(iq, (*iq.shape[:2], per), *iq.strides[1:3]), found)
        outs.append(_read(maker, g.slice(q, (*q.shape[:2], per), *q.strides[1:3]), keys, values, mask))
    out = outs[0]
    for other in outs[1:]:
        out = g.concat(out, other, 1)
    return out if inputs.v_rotation is None else rotated(maker, out, inputs.v_rotation)


def _mask(attention: BlockAttention, iq: Tensor, found: Tensor) -> Tensor:
    """One stream's mask: `[cells, tokens, 1, heads of the indexer]`, f16."""
    maker, g = attention.maker, attention.maker.graph
    indexer, n_cells = maker.dims.indexer, maker.job.holding.n_cells
    assert indexer is not None
    assert attention.bias is not None
    assert attention.sees is not None
    assert attention.cells is not None
    assert attention.blocks is not None
    assert attention.mask is not None
    size, heads, n = iq.shape[0], iq.shape[1], iq.shape[2]
    n_positions, n_blocks = attention.sees.shape[0], attention.bias.shape[0]
    keys = g.slice(found, (size, n_cells), found.strides[2])
    keys = g.get_rows(keys, g.view(attention.cells, (n_positions,)))
    scores = g.mul_mat(keys, g.reshape(iq, size, heads * n))
    scores = g.reshape(scores, n_positions, heads, n)
    sees = g.slice(attention.sees, (n_positions, 1, n), n_positions * 4, n_positions * 4)
    scores = g.in_place("add", scores, sees)
    best = g.op("pool", (n_positions // indexer.block_size, heads, n), scores)
    bias = g.slice(attention.bias, (n_blocks, 1, n), n_blocks * 4, n_blocks * 4)
    best = g.like("add", best, bias)
    k = min(indexer.top_k, n_blocks)
    ids = g.op("top k", (k, heads, n), best, kind=I32)
    shut = g.op("cpy", bias.shape, g.like("scale", bias), kind=F16)
    shut = g.op("repeat", (n_blocks, heads, n), shut, kind=F16)
    zeros = g.like("scale", g.op("cpy", ids.shape, ids, kind=F32))
    opened = g.set_rows(
        g.reshape(shut, 1, n_blocks, heads * n),
        g.reshape(zeros, 1, k, heads * n),
        g.reshape(ids, k, heads * n),
    )
    opened = g.contiguous(g.permute(g.reshape(opened, n_blocks, heads, n), 0, 2, 1, 3))
    by_block = g.contiguous(g.transpose(g.reshape(opened, n_blocks, n * heads)))
    by_cell = g.get_rows(by_block, g.view(attention.blocks, (n_cells,)))
    wide = g.reshape(g.contiguous(g.transpose(by_cell)), n_cells, n, heads)
    row = n_cells * 4
    wide = g.in_place("add", wide, g.slice(attention.mask, (n_cells, n, 1), row, row * n))
    return g.op("cpy", (n_cells, n, 1, heads), g.reshape(wide, n_cells, n, 1, heads), kind=F16)


def _read(maker: Maker, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Flash attention with groups of heads as sequences."""
    g = maker.graph
    size, n_heads, n = q.shape[:3]
    groups = keys.shape[1]
    q = g.permute(g.reshape(q, size, n_heads // groups, groups, n), 0, 2, 3, 1)
    k, v = (
        g.permute(g.slice(one, (*one.shape[:3], 1), *one.strides[1:]), 0, 3, 1, 2) for one in (keys, values)
    )
    out = read_flash(maker, q, k, v, mask)
    out = g.permute(out, 0, 1, 3, 2)
    if not out.is_contiguous:
        out = g.contiguous(out)
    return g.reshape(out, size * n_heads, n)
