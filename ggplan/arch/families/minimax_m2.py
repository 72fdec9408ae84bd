"""MiniMax-M2 and its successors up to M2.5: the GGUF architecture `minimax-m2`.

All layers have experts, called as Mixtral's: `block_sparse_moe.experts.N.w1` (gate), `w2` (down), `w3` (up).
The norms of Q and K are over all heads at once. Of each head `rotary_dim` columns are rotated.

`MiniMaxM2Model` in `conversion/minimax.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, head_width
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, rotated_columns, text_keys
from ggplan.arch.tensors import MOE, Table

_MOE = "block_sparse_moe."


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("minimax-m2", config, M=config.count("intermediate_size"))
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm"),
            *layout.layer("self_attn.{q,k,v,o}_proj"),
            *layout.layer("self_attn.q_norm", shape=(layout.sizes["Q"],)),
            *layout.layer("self_attn.k_norm", shape=(layout.sizes["K"],)),
            *layout.layer(_MOE + "gate"),
            *layout.parameter(
                _MOE + "e_score_correction_bias",
                like=_MOE + "e_score_correction.bias",
                shape=(layout.sizes["X"],),
            ),
            *layout.experts((), _MOE + "experts.{w1,w2,w3}"),
        ],
        [MOE] * config.layers("num_hidden_layers"),
        layout.sizes["X"] or 0,
    )


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.count("expert_feed_forward_length", config.count("intermediate_size"))
    stated = config.optional_count("rotary_dim")
    keys.count("rope.dimension_count", stated or rotated_columns(config, head_width(config), 1.0))


CLASSES = {
    "MiniMaxM2ForCausalLM": Architecture(
        "minimax-m2",
        _table,
        _write_keys,
        {
            "head_dim": 128,
            "max_position_embeddings": 196608,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 8,
            "num_local_experts": 256,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5000000.0,
        },
    )
}
