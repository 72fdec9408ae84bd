"""Command R7B, Command A and Aya of the second generation: the GGUF architecture `cohere2`.

Attention and the feed-forward part stand side by side, behind one norm. The embedding is the output too, and
there are no biases: llama.cpp has a place for neither. Three of four layers attend to a sliding window;
llama.cpp knows which.

`Cohere2Model` in `conversion/command_r.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, base_keys
from ggplan.arch.tensors import DENSE, Table


def _table(config: Config, names: Collection[str]) -> Table:
    head = _head(config)
    n_q, n_k = config.count("num_attention_heads") * head, heads_kv(config) * head
    layout = Layout("cohere2", config, Q=n_q, K=n_k)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm"),
            *layout.layer("input_layernorm", bias=False),
            *layout.layer("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj", bias=False),
            *layout.layer("mlp.gate_proj mlp.up_proj mlp.down_proj", bias=False),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
    )


def _head(config: Config) -> int:
    """Columns of a head, which transformers takes from nothing else."""
    return max(1, config.count("hidden_size") // config.count("num_attention_heads"))


def _write_keys(keys: Keys, config: Config) -> None:
    head = _head(config)
    n_blocks = config.count("num_hidden_layers")
    base_keys(keys, config, n_blocks=n_blocks, head_dim=head, n_heads_kv=heads_kv(config))
    keys.number("logit_scale", config.optional_number("logit_scale"))
    keys.count("attention.sliding_window", config.count("sliding_window"))
    keys.count("vocab_size", config.count("vocab_size"))
    rotated = config.optional_number("rotary_pct")
    if rotated is None or not 0 <= rotated <= 1:
        raise config.wrong("rotary_pct", "is not a part of one")
    keys.count("rope.dimension_count", int(rotated * head))
    keys.text("rope.scaling.type", "none")


CLASSES = {
    "Cohere2ForCausalLM": Architecture(
        "cohere2",
        _table,
        _write_keys,
        {
            "layer_norm_eps": 1e-5,
            "logit_scale": 0.0625,
            "max_position_embeddings": 8192,
            "rope_theta": 10000.0,
            "rotary_pct": 1.0,
            "sliding_window": 4096,
        },
    )
}
