"""Ling 2 and Ring 2: the GGUF architecture `bailingmoe2`.

The first layers are dense, the others have routed experts and shared ones. Q, K and V are one matrix and stay
one. Layers that predict further tokens follow the others; they have a norm of their own at the end.

`BailingMoeV2Model` in `conversion/bailingmoe.py` of llama.cpp b11434. The class is code in the checkpoint's
folder, so transformers fills nothing in.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, head_width, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout, n_next_tokens
from ggplan.arch.metadata import Keys, rotated_columns, text_keys
from ggplan.arch.tensors import DENSE, MOE, MTP, Table


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("bailingmoe2", config, S=_shared_columns(config))
    n_dense = config.count("first_k_dense_replace", least=0)
    layers = [DENSE if k < n_dense else MOE for k in range(config.layers("num_hidden_layers"))]
    head, width = head_width(config), config.count("hidden_size")
    n_heads = config.count("num_attention_heads") + 2 * heads_kv(config)
    return Table(
        [
            *layout.outside("model.word_embeddings model.norm lm_head?"),
            *layout.layer("input_layernorm post_attention_layernorm"),
            *layout.layer("attention.query_key_value", shape=(n_heads * head, width)),
            *layout.layer("attention.query_layernorm? attention.key_layernorm? attention.dense"),
            *layout.layer("mlp.down_proj mlp.gate_proj mlp.up_proj", "dense"),
            *layout.layer("mlp.gate", "moe"),
            *layout.parameter("mlp.gate.expert_bias?", "moe", like="mlp.gate.expert_bias.bias"),
            *layout.experts(()),
            *layout.shared_experts(),
            *layout.next_tokens(),
            *layout.layer("final_layernorm", "mtp", shape=(width,)),
        ],
        [*layers, *[MTP] * n_next_tokens(config)],
        layout.sizes["X"] or 0,
    )


def _shared_columns(config: Config) -> int:
    stated = config.optional_count("moe_shared_expert_intermediate_size")
    if stated is not None:
        return stated
    return config.count("moe_intermediate_size") * config.count("num_shared_experts", least=0)


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config, n_blocks=config.count("num_hidden_layers") + n_next_tokens(config))
    keys.count("rope.dimension_count", rotated_columns(config, head_width(config), 0.5))
    keys.count("leading_dense_block_count", config.count("first_k_dense_replace", least=0))
    keys.count("vocab_size", config.count("vocab_size"))
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    keys.count("expert_shared_feed_forward_length", _shared_columns(config))
    keys.number("expert_weights_scale", config.optional_number("routed_scaling_factor"))
    keys.count("expert_shared_count", config.count("num_shared_experts", least=0))
    keys.flag("expert_weights_norm", config.optional_flag("norm_topk_prob"))
    keys.count("nextn_predict_layers", config.optional_count("num_nextn_predict_layers", least=0))


CLASSES = {"BailingMoeV2ForCausalLM": Architecture("bailingmoe2", _table, _write_keys, {})}
