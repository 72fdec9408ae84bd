"""Qwen1.5-MoE and Qwen2-MoE: the GGUF architecture `qwen2moe`.

Every layer has routed experts and a shared one, which has a gate of its own.

`Qwen2MoeModel` in `conversion/qwen.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.families.qwen3 import require_experts_everywhere
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import MOE, Table


def _table(config: Config, names: Collection[str]) -> Table:
    require_experts_everywhere(config, "qwen2moe")
    layout = Layout("qwen2moe", config)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm"),
            *layout.layer("self_attn.{q,k,v,o}_proj"),
            *layout.layer("mlp.gate mlp.shared_expert_gate"),
            *layout.shared_experts("mlp.shared_expert.", ""),
            *layout.experts(names),
        ],
        [MOE] * config.layers("num_hidden_layers"),
        layout.sizes["X"] or 0,
    )


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.count("expert_feed_forward_length", config.optional_count("moe_intermediate_size"))
    keys.count(
        "expert_shared_feed_forward_length", config.optional_count("shared_expert_intermediate_size", least=0)
    )


CLASSES = {
    "Qwen2MoeForCausalLM": Architecture(
        "qwen2moe",
        _table,
        _write_keys,
        {
            "max_position_embeddings": 32768,
            "moe_intermediate_size": 1408,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "num_key_value_heads": 16,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "shared_expert_intermediate_size": 5632,
        },
    )
}
