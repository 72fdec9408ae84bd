"""Families: how blocks are put together, by architecture.

Most are one decoder, whose variants show in the names of the weights: a norm of queries and keys, norms behind
attention and the feed-forward, biases, shared experts. What does not show is in `Traits`; what is another
structure has a function of its own.

Source: llama.cpp b11434, `src/models/*.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ggplan.ggml_types import F32
from ggplan.offload.graph.attention import Attention, attention_inputs, grouped, queries_keys_values
from ggplan.offload.graph.experts import Routing, experts
from ggplan.offload.graph.maker import I32, Maker
from ggplan.offload.graph.recurrent import States, delta_net, mamba, mamba2, short_convolution, states
from ggplan.offload.graph.sparse import latent_block, sparse_inputs
from ggplan.offload.graph.tensors import Tensor

_GATINGS = {0: "softmax", 1: "softmax", 2: "sigmoid", 3: "softmax of the chosen", 4: "sqrt softplus"}


@dataclass(frozen=True, slots=True)
class Traits:
    """What the names of the weights do not say.

    Attributes
    ----------
    rows
        Where the tokens whose logits are wanted are picked: in the last block, before or after the last norm.
    gating, normalizes
        Of the router, where not the metadata's.
    rotates
        Queries and keys are rotated.
    scales_embedding, scales_queries
        Gemma multiplies them by a constant.
    squashes_logits
        The logits are kept small by a tanh.
    residual_first
        The sum is `before + new`, not `new + before`.
    activation
        See `Maker.activation`.
    """

    rows: str = "block"
    gating: str = ""
    normalizes: bool | None = None
    rotates: bool = True
    scales_embedding: bool = False
    scales_queries: bool = False
    squashes_logits: bool = False
    residual_first: bool = False
    activation: str = "glu"


_SOFTMAX = Traits(gating="softmax", normalizes=True)
_TRAITS = {
    "qwen3moe": _SOFTMAX,
    "qwen3vlmoe": _SOFTMAX,
    "llama": _SOFTMAX,
    "mistral3": _SOFTMAX,
    "olmoe": Traits(gating="softmax", normalizes=False),
    "qwen2moe": Traits(gating="softmax", normalizes=False),
    "minimax-m2": Traits(normalizes=True),
    "gpt-oss": Traits(rows="before norm", gating="softmax of the chosen", normalizes=False),
    "gemma": Traits(scales_embedding=True, scales_queries=True),
    "gemma2": Traits(scales_embedding=True, scales_queries=True, squashes_logits=True),
    "gemma3": Traits(scales_embedding=True, scales_queries=True),
    "jamba": Traits(gating="softmax", normalizes=False, rotates=False, residual_first=True),
    "lfm2": Traits(normalizes=True, residual_first=True),
    "lfm2moe": Traits(normalizes=True, residual_first=True),
    "qwen3next": Traits(rows="after norm", gating="softmax", normalizes=True),
    "qwen35": Traits(rows="after norm"),
    "qwen35moe": Traits(rows="after norm", gating="softmax", normalizes=True),
    "nemotron_h": Traits(rows="after norm", rotates=False, activation="relu squared"),
    "nemotron_h_moe": Traits(rows="after norm", gating="sigmoid", rotates=False, activation="relu squared"),
    "gemma4": Traits(rows="after norm", scales_embedding=True, squashes_logits=True),
    "hy_v3": Traits(rows="after norm"),
    "step35": Traits(rows="before norm"),
    "cohere2moe": Traits(rows="after norm"),
}


@dataclass(slots=True)
class Model:
    """A graph's inputs, shared by its blocks."""

    maker: Maker
    traits: Traits
    positions: Tensor | None
    attention: Attention | None
    states: States | None
    outputs: Tensor


def build(maker: Maker, blocks: Iterable[int]) -> dict[int, Tensor]:
    """The graph of a micro-batch, of some blocks; returns what comes out of each."""
    dims = maker.dims
    traits = _TRAITS.get(dims.architecture, Traits())
    x = maker.embedding()
    if traits.scales_embedding:
        x = maker.graph.like("scale", x)
    model = _inputs(maker, traits)
    last = dims.n_trunk - 1
    block_of = _BLOCKS.get(dims.architecture, _decoder_block)
    ends: dict[int, Tensor] = {}
    for block in blocks:
        ends[block] = x = block_of(model, x, block, block == last)
    head(model, x)
    return ends


def build_draft(maker: Maker) -> None:
    """The graph of the draft context: the first block for multi-token prediction, from the last hidden state."""
    g, dims = maker.graph, maker.dims
    block = dims.n_trunk
    p = f"blk.{block}.nextn."
    table = f"{p}embed_tokens.weight"
    tokens = g.input(I32, maker.n_tokens)
    rows = g.get_rows(maker.need(table if maker.has(table) else "token_embd.weight"), tokens)
    hidden = g.input(F32, dims.n_embd, maker.n_tokens)
    attention = attention_inputs(maker, k_only=dims.is_mla, mtp=True)
    traits = _TRAITS.get(dims.architecture, Traits())
    model = Model(
        maker, replace(traits, rows="after norm"), maker.positions(), attention, None, maker.output_ids()
    )
    hidden = maker.norm(hidden, f"{p}hnorm.weight")
    joined = g.concat(maker.norm(rows, f"{p}enorm.weight"), hidden, 0)
    x = maker.project(joined, f"{p}eh_proj")
    x = _BLOCKS.get(dims.architecture, _decoder_block)(model, x, block, True)
    norm, matrix = f"{p}shared_head_norm.weight", f"{p}shared_head_head.weight"
    head(
        model,
        x,
        norm=norm if maker.has(norm) else "output_norm.weight",
        matrix=matrix if maker.has(matrix) else "output.weight",
        is_draft=True,
    )


def _inputs(maker: Maker, traits: Traits) -> Model:
    """The inputs that a family has, in the order in which they are made; the graph's order decides."""
    dims = maker.dims
    found = states(maker) if any(dims.recurrent) else None
    attention = None
    if any(dims.kv_heads) and not all(dims.recurrent):
        if dims.architecture in ("deepseek32", "glm-dsa"):
            attention = sparse_inputs(maker)
        else:
            attention = attention_inputs(maker, k_only=dims.is_mla)
    positions = maker.positions() if traits.rotates else None
    return Model(maker, traits, positions, attention, found, maker.output_ids())


def head(
    model: Model,
    x: Tensor,
    *,
    norm: str = "output_norm.weight",
    matrix: str = "output.weight",
    is_draft: bool = False,
) -> None:
    """The last norm and the logits."""
    maker, g, traits = model.maker, model.maker.graph, model.traits
    if traits.rows == "before norm":
        x.is_output = True  # what a draft head would start from
        x = maker.rows(x, model.outputs)
    if not maker.has(norm):
        norm = "token_embd_norm.weight"
    x = maker.norm(x, norm, op=_norm_op(maker, norm), bias=norm.replace(".weight", ".bias"))
    x.is_output = True
    if traits.rows == "after norm":
        x = maker.rows(x, model.outputs)
        x.is_output = not is_draft
    logits = g.mul_mat(maker.need(matrix), x)
    if traits.squashes_logits:
        logits = g.like("scale", g.like("unary", g.like("scale", logits)))
    logits.is_output = True
    g.expand(logits)


def _norm_op(maker: Maker, name: str) -> str:
    """Norms with a bias take the mean away, which cannot be done in place."""
    return "norm" if maker.has(name.replace(".weight", ".bias")) else "rms norm"


def _normed(maker: Maker, x: Tensor, block: int, name: str) -> Tensor:
    full = f"blk.{block}.{name}.weight"
    return maker.norm(x, full, op=_norm_op(maker, full), bias=f"blk.{block}.{name}.bias")


# --- The decoder -------------------------------------------------------------------------------------


def _decoder_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    maker, g, traits = model.maker, model.maker.graph, model.traits
    p = f"blk.{block}."
    before = x
    normed = _normed(maker, x, block, "attn_norm") if maker.has(f"{p}attn_norm.weight") else x
    if maker.dims.recurrent[block]:
        out = _recurrent(model, normed, block)
    elif maker.dims.is_mla:
        assert model.attention is not None and model.positions is not None
        out = latent_block(model.attention, normed, model.positions, block)
    else:
        out = _attention(model, normed, block)
    if is_last and traits.rows == "block":
        out, before = maker.rows(out, model.outputs), maker.rows(before, model.outputs)
        normed = normed if maker.has(f"{p}ffn_norm.weight") else out
    has_ffn_norm = maker.has(f"{p}ffn_norm.weight")
    if has_ffn_norm and maker.has(f"{p}post_attention_norm.weight"):
        out = _normed(maker, out, block, "post_attention_norm")
    summed = _sum(model, out, before)
    if has_ffn_norm:
        inner = _normed(maker, summed, block, "ffn_norm")
    elif maker.has(f"{p}post_attention_norm.weight"):
        inner = _normed(maker, summed, block, "post_attention_norm")
    else:
        inner = normed  # attention and feed-forward side by side
    y = feed_forward(model, inner, block)
    if maker.has(f"{p}post_ffw_norm.weight"):
        y = maker.norm(y, f"{p}post_ffw_norm.weight")
    return _sum(model, y, summed)


def _sum(model: Model, new: Tensor, before: Tensor) -> Tensor:
    pair = (before, new) if model.traits.residual_first else (new, before)
    return model.maker.graph.like("add", *pair)


def _attention(model: Model, x: Tensor, block: int) -> Tensor:
    maker, g, traits = model.maker, model.maker.graph, model.traits
    attention, dims = model.attention, maker.dims
    assert attention is not None
    p = f"blk.{block}."
    norm = maker.weight(f"{p}attn_q_norm.weight")
    is_whole = norm is not None and norm.shape[0] != dims.key_size(block)
    q, k, v = queries_keys_values(maker, x, block, shaped=not is_whole)
    if norm is not None:
        op = _norm_op(maker, f"{p}attn_q_norm.weight")
        q = maker.norm(q, f"{p}attn_q_norm.weight", op=op, bias=f"{p}attn_q_norm.bias")
        if maker.has(f"{p}attn_k_norm.weight"):
            k = maker.norm(k, f"{p}attn_k_norm.weight", op=op, bias=f"{p}attn_k_norm.bias")
    if is_whole:
        n = maker.n_tokens
        q = g.reshape(q, dims.key_size(block), dims.heads[block], n)
        k = g.reshape(k, dims.key_size(block), dims.kv_heads[block], n)
        v = g.reshape(v, dims.value_size(block), dims.kv_heads[block], n)
    if traits.rotates and model.positions is not None:
        factors = maker.rope_factors(block)
        q = maker.rope(q, model.positions, factors)
        k = maker.rope(k, model.positions, factors)
    if traits.scales_queries:
        q = g.like("scale", q)
    sinks = maker.weight(f"{p}attn_sinks.weight")
    out = grouped(attention, block, q, k, v, sinks=sinks, capped=dims.architecture == "gemma2")
    return maker.biased(maker.project(out, f"{p}attn_output"), f"{p}attn_output")


def feed_forward(model: Model, x: Tensor, block: int) -> Tensor:
    """A dense feed-forward, or experts and what all tokens share."""
    maker, g, traits = model.maker, model.maker.graph, model.traits
    p, dims = f"blk.{block}.", maker.dims
    if not maker.has(f"{p}ffn_gate_inp.weight"):
        return maker.feed_forward(x, p, kind=_kind(maker, p, traits))
    gating = traits.gating or _GATINGS.get(dims.gating, "softmax")
    normalizes = dims.normalizes if traits.normalizes is None else traits.normalizes
    routing = Routing(gating, normalizes, dims.scales_experts, traits.activation)
    y = experts(maker, x, block, routing)
    if maker.has(f"{p}ffn_down_shexp.weight"):
        shared = maker.feed_forward(x, p, "_shexp", kind=traits.activation, bias=False)
        if maker.has(f"{p}ffn_gate_inp_shexp.weight"):
            gate = g.like("unary", maker.project(x, f"{p}ffn_gate_inp_shexp"))
            shared = g.like("mul", shared, gate)
        y = g.like("add", y, shared)
    return y


def _kind(maker: Maker, p: str, traits: Traits) -> str:
    """Two matrices in one are halves of a gate; one alone has an activation."""
    if traits.activation != "glu" or maker.has(f"{p}ffn_gate.weight"):
        return traits.activation
    up, down = maker.need(f"{p}ffn_up.weight"), maker.need(f"{p}ffn_down.weight")
    return "glu" if up.shape[1] == 2 * down.shape[0] else "unary"


# --- Hybrids -----------------------------------------------------------------------------------------


def _recurrent(model: Model, x: Tensor, block: int) -> Tensor:
    maker, found = model.maker, model.states
    assert found is not None
    if maker.has(f"blk.{block}.shortconv.in_proj.weight"):
        return short_convolution(found, x, block)
    if maker.dims.state.groups:
        return mamba2(found, x, block)
    return mamba(found, x, block)


def _delta_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    """Qwen3-Next and Qwen3.5: DeltaNet, or attention whose queries come with gates."""
    maker, g = model.maker, model.maker.graph
    normed = _normed(maker, x, block, "attn_norm")
    g.expand(normed)
    if maker.dims.recurrent[block]:
        assert model.states is not None
        out = delta_net(model.states, normed, block)
    else:
        out = gated_attention(model, normed, block)
    summed = g.like("add", out, x)
    inner = _normed(maker, summed, block, "post_attention_norm")
    return g.like("add", feed_forward(model, inner, block), summed)


def gated_attention(model: Model, x: Tensor, block: int) -> Tensor:
    """Attention whose result is multiplied by gates that come with the queries."""
    maker, g, dims = model.maker, model.maker.graph, model.maker.dims
    assert model.attention is not None and model.positions is not None
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


def _single_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    """Nemotron-H: a block is Mamba, attention, or a feed-forward."""
    maker, g, dims = model.maker, model.maker.graph, model.maker.dims
    normed = _normed(maker, x, block, "attn_norm")
    if dims.recurrent[block]:
        assert model.states is not None
        out = mamba2(model.states, normed, block)
    elif dims.n_ff[block] == 0:
        out = _attention(model, normed, block)
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


_Block = Callable[[Model, Tensor, int, bool], Tensor]
_BLOCKS: dict[str, _Block] = {
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), _delta_block),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _single_block),
}
