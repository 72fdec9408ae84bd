"""Gemma 4: what it has that others have not.

Blocks read an embedding of their own; the norm of values has no weight; experts work beside a dense
feed-forward; the last blocks read an earlier one's cache.

Source: llama.cpp b11434, `src/models/gemma4.cpp`.
"""

from __future__ import annotations

from ggplan.offload.graph.attention import grouped
from ggplan.offload.graph.decoder import Model, normed_by
from ggplan.offload.graph.experts import Routing, experts
from ggplan.offload.graph.maker import I32
from ggplan.offload.graph.tensors import Tensor


def per_block_inputs(model: Model, x: Tensor) -> Tensor | None:
    """What each block adds by token: `[width, tokens, blocks]`; None where the model has none."""
    maker, g, dims = model.maker, model.maker.graph, model.maker.dims
    if not maker.has("per_layer_token_embd.weight"):
        return None
    table = maker.need("per_layer_token_embd.weight")
    n, blocks = maker.n_tokens, dims.n_trunk
    width = table.shape[0] // blocks
    rows = g.get_rows(table, g.input(I32, n))
    rows = g.like("scale", g.reshape(rows, width, blocks, n))
    g.expand(rows)
    projected = g.like("scale", g.mul_mat(maker.need("per_layer_model_proj.weight"), x))
    projected = maker.norm(g.reshape(projected, width, blocks, n), "per_layer_proj_norm.weight")
    both = g.like("scale", g.like("add", projected, rows))
    return g.contiguous(g.permute(both, 0, 2, 1, 3))


def gemma4_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    """One block."""
    maker, g = model.maker, model.maker.graph
    p = f"blk.{block}."
    out = _attention(model, normed_by(maker, x, block, "attn_norm"), block)
    summed = g.like("add", normed_by(maker, out, block, "post_attention_norm"), x)
    inner = normed_by(maker, summed, block, "ffn_norm")
    y = maker.feed_forward(inner, p, bias=False)
    if maker.has(f"{p}ffn_gate_inp.weight"):
        y = normed_by(maker, y, block, "post_ffw_norm_1")
        y = g.like("add", y, normed_by(maker, _experts(model, summed, block), block, "post_ffw_norm_2"))
    y = g.like("add", normed_by(maker, y, block, "post_ffw_norm"), summed)
    if model.per_block is not None:
        y = g.like("add", y, _own_input(model, y, block))
    scale = maker.weight(f"{p}layer_output_scale.weight")
    return y if scale is None else g.like("mul", y, scale)


def _attention(model: Model, x: Tensor, block: int) -> Tensor:
    maker, g, dims = model.maker, model.maker.graph, model.maker.dims
    assert model.attention is not None
    assert model.positions is not None
    p, n = f"blk.{block}.", maker.n_tokens
    size, heads, kv_heads = dims.key_size(block), dims.heads[block], dims.kv_heads[block]
    factors = None if dims.slides[block] else maker.rope_factors(block)
    parts = _parts(model, x, p, (size * heads, size * kv_heads, size * kv_heads))
    q = maker.norm(g.reshape(parts[0], size, heads, n), f"{p}attn_q_norm.weight")
    q = maker.rope(q, model.positions, factors)
    k = v = None
    if block < dims.n_own_cache:
        k, v = (g.reshape(one, size, kv_heads, n) for one in parts[1:])
        k = maker.norm(k, f"{p}attn_k_norm.weight")
        v = g.like("rms norm", v)
        k = maker.rope(k, model.positions, factors)
    out = grouped(model.attention, block, q, k, v)
    return maker.project(out, f"{p}attn_output")


def _parts(model: Model, x: Tensor, p: str, sizes: tuple[int, int, int]) -> list[Tensor]:
    """Queries, keys and values; keys are values too where no matrix makes these."""
    maker, g = model.maker, model.maker.graph
    if maker.has(f"{p}attn_qkv.weight"):
        joined = maker.project(x, f"{p}attn_qkv")
        return [g.contiguous(g.slice(joined, (n, x.shape[1]), joined.strides[1])) for n in sizes]
    q = maker.project(x, f"{p}attn_q")
    if not maker.has(f"{p}attn_k.weight"):
        return [q, q, q]
    k = maker.project(x, f"{p}attn_k")
    return [q, k, maker.project(x, f"{p}attn_v") if maker.has(f"{p}attn_v.weight") else k]


def _experts(model: Model, x: Tensor, block: int) -> Tensor:
    maker, g = model.maker, model.maker.graph
    p = f"blk.{block}."
    inner = normed_by(maker, x, block, "pre_ffw_norm_2")
    routed = g.like("mul", g.like("scale", g.like("rms norm", x)), maker.weight(f"{p}ffn_gate_inp.scale"))
    logits = g.mul_mat(maker.need(f"{p}ffn_gate_inp.weight"), routed)
    return experts(maker, inner, block, Routing("softmax", normalizes=True, logits=logits))


def _own_input(model: Model, x: Tensor, block: int) -> Tensor:
    maker, g = model.maker, model.maker.graph
    p, rows = f"blk.{block}.", model.per_block
    assert rows is not None
    gated = g.like("unary", maker.project(x, f"{p}inp_gate"))
    own = g.slice(rows, (rows.shape[0], rows.shape[1]), rows.strides[1])
    y = maker.project(g.like("mul", gated, own), f"{p}proj")
    return maker.norm(y, f"{p}post_norm.weight")
