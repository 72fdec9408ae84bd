"""OLMoE: the GGUF architecture `olmoe`.

Q and K are normed as a whole, not head by head. The converter writes one epsilon for all models.

`OlmoeModel` in `conversion/olmo.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import MOE, Table


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("olmoe", config, M=config.count("intermediate_size"))
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("input_layernorm post_attention_layernorm mlp.gate"),
            *layout.layer("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"),
            *layout.layer("self_attn.q_norm", shape=(layout.sizes["Q"],)),
            *layout.layer("self_attn.k_norm", shape=(layout.sizes["K"],)),
            *layout.experts(names),
        ],
        [MOE] * config.layers("num_hidden_layers"),
        layout.sizes["X"] or 0,
    )


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.number("attention.layer_norm_rms_epsilon", 1e-5)


CLASSES = {
    "OlmoeForCausalLM": Architecture(
        "olmoe",
        _table,
        _write_keys,
        {
            "intermediate_size": 2048,
            "max_position_embeddings": 4096,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
        },
    )
}
