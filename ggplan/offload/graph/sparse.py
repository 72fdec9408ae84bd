"""Latent attention (MLA), dense and sparse: DeepSeek, Kimi, GLM-4.7-Flash, GLM-5.

    queries        a_q, a norm and b_q, or one matrix; their part without rotation goes into the space of keys
    keys           one compressed key and one rotated part a token, joined
    indexer (DSA)  its own queries and keys score all cells; the best `top_k` are let through a mask

Old files hold one matrix for keys and values (`attn_kv_b`) and run as attention of all heads.

Source: llama.cpp b11434, `src/models/deepseek2.cpp`, `src/models/deepseek32.cpp`, `src/models/glm-dsa.cpp`,
`src/llama-graph.cpp` (build_attn with llm_graph_input_attn_k_dsa).
"""

from __future__ import annotations

from dataclasses import dataclass

from ggplan.ggml_types import F32
from ggplan.offload.graph.attention import (
    KERNEL_TYPES,
    Attention,
    attention_inputs,
    cache_of,
    grouped,
    latent,
    store_indexer_keys,
    store_latent,
)
from ggplan.offload.graph.maker import I32, I64, Maker
from ggplan.offload.graph.tensors import Tensor


@dataclass(slots=True)
class SparseAttention(Attention):
    """Inputs of attention with an indexer.

    Attributes
    ----------
    ids, sees, matrix
        Cells that the indexer's keys are written to; which cells a token may see; the Hadamard matrix.
    chosen
        Cells that the last indexer chose: blocks without an indexer of their own take them.
    """

    ids: Tensor | None = None
    sees: Tensor | None = None
    matrix: Tensor | None = None
    chosen: Tensor | None = None


def sparse_inputs(maker: Maker) -> SparseAttention:
    """Inputs for all blocks."""
    plain = attention_inputs(maker, k_only=True)
    indexer = maker.dims.indexer
    assert indexer is not None
    n = 64
    while indexer.size % (2 * n) == 0:
        n *= 2
    return SparseAttention(
        maker,
        plain.full,
        ids=maker.graph.input(I64, maker.n_tokens),
        sees=maker.mask(maker.job.holding.n_cells, half=True),
        matrix=maker.graph.input(F32, n, n),
    )


def latent_block(attention: Attention, x: Tensor, positions: Tensor | None, block: int) -> Tensor:
    """Attention of one block, without the sum."""
    maker, g, dims = attention.maker, attention.maker.graph, attention.maker.dims
    p, n, heads = f"blk.{block}.", maker.n_tokens, dims.heads[block]
    rotated = dims.n_rope
    plain = dims.head_k_mla - rotated
    low = x
    if maker.has(f"{p}attn_q_a.weight"):
        low = g.mul_mat(maker.need(f"{p}attn_q_a.weight"), x)
        low = maker.norm(low, f"{p}attn_q_a_norm.weight")
        name = f"{p}attn_q_b.weight"
    else:
        name = f"{p}attn_q.weight"
    chosen = None
    if isinstance(attention, SparseAttention) and positions is not None:
        chosen = _chosen(attention, x, low, positions, block)
    q = g.mul_mat(maker.need(name), low)
    strides = (dims.head_k_mla * 4, dims.head_k_mla * 4 * heads)
    if not isinstance(attention, SparseAttention):
        q = g.reshape(q, dims.head_k_mla, heads, n)
    q_plain = g.slice(q, (plain, heads, n), *strides)
    q_rotated = g.slice(q, (rotated, heads, n), *strides)
    joined = g.mul_mat(maker.need(f"{p}attn_kv_a_mqa.weight"), x)
    row = (dims.kv_rank + rotated) * 4
    compressed = g.slice(joined, (dims.kv_rank, n), row)
    k_rotated = g.slice(joined, (rotated, 1, n), row, row)
    if positions is not None:
        q_rotated = maker.rope(q_rotated, positions)
        k_rotated = maker.rope(k_rotated, positions)
    compressed = maker.norm(compressed, f"{p}attn_kv_a_norm.weight")
    absorbed = g.mul_mat(maker.need(f"{p}attn_k_b.weight"), g.permute(q_plain, 0, 2, 1, 3))
    q = g.concat(g.permute(absorbed, 0, 2, 1, 3), q_rotated, 0)
    values = g.reshape(compressed, dims.kv_rank, 1, n)
    k = g.concat(values, k_rotated, 0)
    mask = None
    if chosen is not None and isinstance(attention, SparseAttention):
        store_latent(attention, block, q, values, k)
        mask = _mask_of(attention, block, chosen)
    out = latent(attention, block, q, k, values, mask)
    return maker.project(out, f"{p}attn_output")


def _chosen(attention: SparseAttention, x: Tensor, low: Tensor, positions: Tensor, block: int) -> Tensor:
    """Cells that are let through: `[top_k, tokens]`."""
    maker, g, dims = attention.maker, attention.maker.graph, attention.maker.dims
    indexer, holding = dims.indexer, maker.job.holding
    assert indexer is not None
    assert attention.matrix is not None
    assert attention.ids is not None
    assert attention.sees is not None
    if not indexer.is_full[block] and attention.chosen is not None:
        return attention.chosen
    p, n, streams = f"blk.{block}.indexer.", maker.n_tokens, maker.n_streams
    q = g.mul_mat(maker.need(f"{p}attn_q_b.weight"), low)
    q = maker.rope(g.reshape(q, indexer.size, indexer.heads, n), positions)
    k = g.mul_mat(maker.need(f"{p}attn_k.weight"), x)
    k = maker.norm(k, f"{p}k_norm.weight", op="norm", bias=f"{p}k_norm.bias")
    k = maker.rope(g.reshape(k, indexer.size, 1, n), positions)
    q, k = g.mul_mat(attention.matrix, q), g.mul_mat(attention.matrix, k)
    settings = maker.job.settings
    device = maker.job.blocks[block] if settings.cache_on_gpu else maker.job.cpu
    cache = g.given(settings.cache_k, (indexer.size, holding.n_cells, streams), device)
    keys = store_indexer_keys(maker, cache, k, attention.ids)
    weights = g.mul_mat(maker.need(f"{p}proj.weight"), x)
    per = n // streams
    q = g.view(
        q, (q.shape[0], q.shape[1], per, streams), (4, q.strides[1], q.strides[2], q.strides[3] // streams)
    )
    weights = g.view(
        weights,
        (weights.shape[0], per, 1, streams),
        (4, weights.strides[1], weights.strides[2] // streams, weights.strides[3] // streams),
    )
    weights = g.like("scale", weights)
    scores = g.op("indexer", (holding.n_cells, per, 1, streams), q, keys, weights, attention.sees)
    scores.runs_on_gpu = (
        indexer.size == 128 and indexer.heads in (32, 64) and settings.cache_k.name in KERNEL_TYPES
    )
    k_best = min(indexer.top_k, holding.n_cells)
    best = g.op("top k", (k_best, per, 1, streams), scores, kind=I32)
    attention.chosen = g.contiguous(best)
    return attention.chosen


def _mask_of(attention: Attention, block: int, chosen: Tensor) -> Tensor:
    """The mask of attention with all cells shut but those that were chosen."""
    g = attention.maker.graph
    mask = attention.inputs(block).mask
    shut = g.like("fill", mask)
    n_cells, per, _, streams = mask.shape
    cells = g.view(shut, (1, n_cells, per, streams), (shut.strides[0], *shut.strides[:3]))
    ids = g.view(
        chosen,
        (chosen.shape[0], per, streams, 1),
        (4, chosen.strides[1], chosen.strides[2], streams * chosen.strides[3]),
    )
    zeros = g.like("fill", g.fresh(F32, 1, chosen.shape[0], per, streams))
    opened = g.set_rows(cells, zeros, ids)
    strides = (opened.strides[2], opened.strides[3], opened.strides[3])
    opened = g.slice(opened, (n_cells, per, 1, streams), *strides)
    return g.like("add", opened, mask)


__all__ = ["SparseAttention", "cache_of", "grouped", "latent_block", "sparse_inputs"]
