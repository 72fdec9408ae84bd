"""Blocks of another structure than the decoder's: DeltaNet, single parts, KDA, attention beside Mamba.

Source: llama.cpp b11434, `src/models/qwen3next.cpp`, `qwen35.cpp`, `nemotron-h.cpp`, `mamba.cpp`,
`falcon-h1.cpp`, `kimi-linear.cpp`.
"""

from __future__ import annotations

from ggplan.offload.graph.attention import grouped, queries_keys_values
from ggplan.offload.graph.decoder import Model, attention_of, feed_forward, normed_by
from ggplan.offload.graph.experts import Routing, experts
from ggplan.offload.graph.recurrent import delta_net, kda, mamba, mamba2
from ggplan.offload.graph.sparse import latent_block
from ggplan.offload.graph.tensors import Tensor


def delta_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    """Qwen3-Next and Qwen3.5: DeltaNet, or attention whose queries come with gates."""
    maker, g = model.maker, model.maker.graph
    normed = normed_by(maker, x, block, "attn_norm")
    g.expand(normed)
    if maker.dims.recurrent[block]:
        assert model.states is not None
        out = delta_net(model.states, normed, block)
    else:
        out = gated_attention(model, normed, block)
    summed = g.like("add", out, x)
    inner = normed_by(maker, summed, block, "post_attention_norm")
    return g.like("add", feed_forward(model, inner, block), summed)


def gated_attention(model: Model, x: Tensor, block: int) -> Tensor:
    """Attention whose result is multiplied by gates that come with the queries."""
    maker, g, dims = model.maker, model.maker.graph, model.maker.dims
    assert model.attention is not None
    assert model.positions is not None
    p, n = f"blk.{block}.", maker.n_tokens
    head_size, heads, kv_heads = dims.key_size(block), dims.heads[block], dims.kv_heads[block]
    both, k, v = queries_keys_values(maker, x, block, shaped=False, doubled=True)
    strides = (head_size * 8, head_size * 8 * heads)
    q = g.slice(both, (head_size, heads, n), *strides)
    gate = g.contiguous(g.slice(both, (head_size, heads, n), *strides), head_size * heads, n)
    q = maker.norm(q, f"{p}attn_q_norm.weight")
    k = maker.norm(g.reshape(k, head_size, kv_heads, n), f"{p}attn_k_norm.weight")
    v = g.reshape(v, head_size, kv_heads, n)
    q, k = maker.rope(q, model.positions), maker.rope(k, model.positions)
    out = grouped(model.attention, block, q, k, v)
    out = g.like("mul", out, g.like("unary", gate))
    return maker.project(out, f"{p}attn_output")


def single_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    """Nemotron-H: a block is Mamba, attention, or a feed-forward."""
    maker, g, dims = model.maker, model.maker.graph, model.maker.dims
    normed = normed_by(maker, x, block, "attn_norm")
    if dims.recurrent[block]:
        assert model.states is not None
        out = mamba2(model.states, normed, block)
    elif dims.n_ff[block] == 0:
        out = attention_of(model, normed, block)
    else:
        out = _latent_experts(model, normed, block)
    return g.like("add", out, x)


def _latent_experts(model: Model, x: Tensor, block: int) -> Tensor:
    """Experts that work in a smaller space, and one that all tokens share."""
    maker, g, traits = model.maker, model.maker.graph, model.traits
    p, dims = f"blk.{block}.", model.maker.dims
    if not maker.has(f"{p}ffn_gate_inp.weight"):
        return maker.feed_forward(x, p, kind=traits.activation)
    inner = (
        g.mul_mat(maker.need(f"{p}ffn_latent_down.weight"), x)
        if maker.has(f"{p}ffn_latent_down.weight")
        else x
    )
    logits = g.mul_mat(maker.need(f"{p}ffn_gate_inp.weight"), x)
    routing = Routing("sigmoid", dims.normalizes, dims.scales_experts, traits.activation, logits=logits)
    y = experts(maker, inner, block, routing)
    if maker.has(f"{p}ffn_latent_up.weight"):
        y = g.mul_mat(maker.need(f"{p}ffn_latent_up.weight"), y)
    shared = maker.feed_forward(x, p, "_shexp", kind=traits.activation, bias=False)
    return g.like("add", y, shared)


def mamba_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    """Mamba alone."""
    maker, g = model.maker, model.maker.graph
    assert model.states is not None
    normed = normed_by(maker, x, block, "attn_norm")
    layer = mamba2 if maker.dims.architecture == "mamba2" else mamba
    out = layer(model.states, normed, block)
    if is_last:
        out, x = maker.rows(out, model.outputs), maker.rows(x, model.outputs)
    return g.like("add", out, x)


def parallel_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    """Falcon-H1: attention and Mamba 2 read the same, and both are added."""
    maker, g = model.maker, model.maker.graph
    assert model.states is not None
    first = attention_of(model, normed_by(maker, x, block, "attn_norm"), block)
    second = mamba2(model.states, normed_by(maker, x, block, "attn_norm"), block)
    summed = g.like("add", g.like("add", first, second), x)
    if is_last:
        summed = maker.rows(summed, model.outputs)
    inner = normed_by(maker, summed, block, "ffn_norm")
    return g.like("add", feed_forward(model, inner, block), summed)


def kda_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    """Kimi-Linear: Kimi Delta Attention, or latent attention without rotation."""
    maker, g = model.maker, model.maker.graph
    assert model.attention is not None
    assert model.states is not None
    normed = normed_by(maker, x, block, "attn_norm")
    g.expand(normed)
    if maker.dims.recurrent[block]:
        out = kda(model.states, normed, block)
    else:
        out = latent_block(model.attention, normed, None, block)
    if is_last:
        out, x = maker.rows(out, model.outputs), maker.rows(x, model.outputs)
    summed = g.like("add", out, x)
    inner = normed_by(maker, summed, block, "ffn_norm")
    return g.like("add", feed_forward(model, inner, block), summed)
