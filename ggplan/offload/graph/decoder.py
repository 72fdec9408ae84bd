"""The decoder that most families are: attention and a feed-forward, each behind a norm.

Its variants show in the names of the weights: a norm of queries and keys, norms behind attention and the
feed-forward, biases, shared experts. What does not show is in `Traits`.

Source: llama.cpp b11434, `src/models/*.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggplan.offload.graph.attention import Attention, grouped, queries_keys_values
from ggplan.offload.graph.blockwise import BlockAttention, over_blocks
from ggplan.offload.graph.experts import Routing, experts
from ggplan.offload.graph.maker import Maker
from ggplan.offload.graph.recurrent import States, mamba, mamba2, short_convolution
from ggplan.offload.graph.sparse import latent_block
from ggplan.offload.graph.tensors import Tensor

_MAVERICK = 128  # experts of the Llama 4 that does not norm queries and keys
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
    weighs_input
        Experts get tokens that are multiplied by their weights.
    tempers
        Blocks that see everything are not rotated, and their queries multiplied by a temperature (Llama 4).
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
    weighs_input: bool = False
    tempers: bool = False


@dataclass(slots=True)
class Model:
    """A graph's inputs, shared by its blocks."""

    maker: Maker
    traits: Traits
    positions: Tensor | None
    attention: Attention | None
    states: States | None
    outputs: Tensor
    temperatures: Tensor | None = None
    per_block: Tensor | None = None


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
    keeps = maker.job.profile.is_general
    if traits.rows == "before norm":
        x.is_output = keeps  # what a draft head would start from
        x = maker.rows(x, model.outputs)
    if not maker.has(norm):
        norm = "token_embd_norm.weight"
    x = maker.norm(x, norm, op=_norm_op(maker, norm), bias=norm.replace(".weight", ".bias"))
    x.is_output = keeps
    if traits.rows == "after norm":
        x = maker.rows(x, model.outputs)
        x.is_output = keeps and not is_draft
    logits = g.mul_mat(maker.need(matrix), x)
    if traits.squashes_logits:
        logits = g.like("scale", g.like("unary", g.like("scale", logits)))
    logits.is_output = True
    g.expand(logits)


def _norm_op(maker: Maker, name: str) -> str:
    """Norms with a bias take the mean away, which cannot be done in place."""
    return "norm" if maker.has(name.replace(".weight", ".bias")) else "rms norm"


def normed_by(maker: Maker, x: Tensor, block: int, name: str) -> Tensor:
    """A block's norm of that name."""
    full = f"blk.{block}.{name}.weight"
    return maker.norm(x, full, op=_norm_op(maker, full), bias=f"blk.{block}.{name}.bias")


# --- The decoder -------------------------------------------------------------------------------------


def decoder_block(model: Model, x: Tensor, block: int, is_last: bool) -> Tensor:
    """One block; of the last one, only the tokens that are wanted go on."""
    maker, traits = model.maker, model.traits
    p = f"blk.{block}."
    before = x
    normed = normed_by(maker, x, block, "attn_norm") if maker.has(f"{p}attn_norm.weight") else x
    if maker.dims.recurrent[block]:
        out = _recurrent(model, normed, block)
    elif maker.dims.is_mla:
        assert model.attention is not None
        assert model.positions is not None
        out = latent_block(model.attention, normed, model.positions, block)
    else:
        out = attention_of(model, normed, block)
    if is_last and traits.rows == "block":
        out, before = maker.rows(out, model.outputs), maker.rows(before, model.outputs)
        normed = normed if maker.has(f"{p}ffn_norm.weight") else out
    has_ffn_norm = maker.has(f"{p}ffn_norm.weight")
    if has_ffn_norm and maker.has(f"{p}post_attention_norm.weight"):
        out = normed_by(maker, out, block, "post_attention_norm")
    summed = _sum(model, out, before)
    if has_ffn_norm:
        inner = normed_by(maker, summed, block, "ffn_norm")
    elif maker.has(f"{p}post_attention_norm.weight"):
        inner = normed_by(maker, summed, block, "post_attention_norm")
    else:
        inner = normed  # attention and feed-forward side by side
    has_post_norm = maker.has(f"{p}post_ffw_norm.weight")
    if maker.job.profile.adds_experts_first and not has_post_norm and maker.has(f"{p}ffn_gate_inp.weight"):
        return feed_forward(model, inner, block, summed)
    y = feed_forward(model, inner, block)
    if has_post_norm:
        y = maker.norm(y, f"{p}post_ffw_norm.weight")
    return _sum(model, y, summed)


def _sum(model: Model, new: Tensor, before: Tensor) -> Tensor:
    pair = (before, new) if model.traits.residual_first else (new, before)
    return model.maker.graph.like("add", *pair)


def attention_of(model: Model, x: Tensor, block: int) -> Tensor:
    """Attention with keys and values, and its output matrix."""
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
    if model.temperatures is not None and not dims.slides[block] and any(dims.slides):
        q = g.like("mul", q, model.temperatures)
    elif traits.rotates and model.positions is not None:
        factors = maker.rope_factors(block)
        q = maker.rope(q, model.positions, factors)
        k = maker.rope(k, model.positions, factors)
        if traits.tempers and dims.n_experts != _MAVERICK:
            q, k = g.like("rms norm", q), g.like("rms norm", k)
    if traits.scales_queries:
        q = g.like("scale", q)
    sinks = maker.weight(f"{p}attn_sinks.weight")
    if isinstance(attention, BlockAttention) and block >= dims.n_dense and model.positions is not None:
        out = over_blocks(attention, x, model.positions, block, q, k, v)
        return maker.project(out, f"{p}attn_output")
    out = grouped(attention, block, q, k, v, sinks=sinks, capped=dims.architecture == "gemma2")
    return maker.biased(maker.project(out, f"{p}attn_output"), f"{p}attn_output")


def feed_forward(model: Model, x: Tensor, block: int, before: Tensor | None = None) -> Tensor:
    """A dense feed-forward, or experts and what all tokens share; `before` is added to the experts."""
    maker, g, traits = model.maker, model.maker.graph, model.traits
    p, dims = f"blk.{block}.", maker.dims
    if not maker.has(f"{p}ffn_gate_inp.weight"):
        return maker.feed_forward(x, p, kind=_kind(maker, p, traits))
    gating = traits.gating or _GATINGS.get(dims.gating, "softmax")
    normalizes = dims.normalizes if traits.normalizes is None else traits.normalizes
    routing = Routing(gating, normalizes, dims.scales_experts, traits.activation, traits.weighs_input)
    y = experts(maker, x, block, routing)
    if before is not None:
        y = g.like("add", y, before)
        g.expand(y)
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


def _recurrent(model: Model, x: Tensor, block: int) -> Tensor:
    maker, found = model.maker, model.states
    assert found is not None
    if maker.has(f"blk.{block}.shortconv.in_proj.weight"):
        return short_convolution(found, x, block)
    if maker.dims.state.groups:
        return mamba2(found, x, block)
    return mamba(found, x, block)
