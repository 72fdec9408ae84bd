"""Families: what an architecture's graph is, where it is not the plain decoder's.

Source: llama.cpp b11434, `src/models/*.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ggplan.ggml_types import F32
from ggplan.offload.graph.attention import Attention, attention_inputs
from ggplan.offload.graph.blockwise import block_inputs
from ggplan.offload.graph.decoder import Model, Traits, decoder_block, head
from ggplan.offload.graph.gemma import gemma4_block, per_block_inputs
from ggplan.offload.graph.hybrids import delta_block, kda_block, mamba_block, parallel_block, single_block
from ggplan.offload.graph.maker import I32, Maker
from ggplan.offload.graph.recurrent import states
from ggplan.offload.graph.sparse import sparse_inputs
from ggplan.offload.graph.tensors import Tensor

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
    "kimi-linear": Traits(normalizes=True, rotates=False),
    "llama4": Traits(gating="sigmoid", normalizes=False, weighs_input=True, tempers=True),
    "mamba": Traits(rotates=False),
    "mamba2": Traits(rotates=False),
    "step35": Traits(rows="before norm"),
    "cohere2moe": Traits(rows="after norm"),
}


def build(maker: Maker, blocks: Iterable[int]) -> dict[int, Tensor]:
    """The graph of a micro-batch, of some blocks; returns what comes out of each."""
    dims = maker.dims
    traits = _TRAITS.get(dims.architecture, Traits())
    x = maker.embedding()
    if traits.scales_embedding:
        x = maker.graph.like("scale", x)
    model = _inputs(maker, traits)
    last = dims.n_trunk - 1
    block_of = _BLOCKS.get(dims.architecture, decoder_block)
    if dims.architecture == "gemma4":
        model.per_block = per_block_inputs(model, x)
    ends: dict[int, Tensor] = {}
    for block in blocks:
        ends[block] = x = block_of(model, x, block, block == last)
    head(model, x)
    return ends


def build_draft(maker: Maker) -> None:
    """The graph of the draft context: the first block for multi-token prediction, behind the last state."""
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
    x = _BLOCKS.get(dims.architecture, decoder_block)(model, x, block, True)
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
    attention: Attention | None = None
    if any(dims.kv_heads) and (not all(dims.recurrent) or dims.architecture == "falcon-h1"):
        if dims.architecture in ("deepseek32", "glm-dsa"):
            attention = sparse_inputs(maker)
        elif dims.architecture == "minimax-m3":
            attention = block_inputs(maker)
        else:
            attention = attention_inputs(maker, k_only=dims.is_mla)
    positions = maker.positions() if traits.rotates else None
    model = Model(maker, traits, positions, attention, found, maker.output_ids())
    if traits.tempers:
        model.temperatures = maker.graph.input(F32, 1, 1, maker.n_tokens)
    return model


_Block = Callable[[Model, Tensor, int, bool], Tensor]
_BLOCKS: dict[str, _Block] = {
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), delta_block),
    **dict.fromkeys(("mamba", "mamba2"), mamba_block),
    "falcon-h1": parallel_block,
    "gemma4": gemma4_block,
    "kimi-linear": kda_block,
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), single_block),
}
