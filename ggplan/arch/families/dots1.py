"""dots.llm1: the GGUF architecture `dots1`.

The first layers are dense, the others have routed experts and shared ones. The published config calls the
function from router logits to weights `noaux_tc`, which llama.cpp's converter refuses; it is the sigmoid.

`Dots1Model` in `conversion/dots1.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import DENSE, MOE, Table


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("dots1", config)
    n_layers = config.layers("num_hidden_layers")
    n_dense = config.count("first_k_dense_replace", least=0)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm self_attn.{q,k}_norm"),
            *layout.layer("self_attn.{q,k,v,o}_proj"),
            *layout.layer("mlp.{gate,up,down}_proj", "dense"),
            *layout.layer("mlp.gate", "moe"),
            *layout.parameter(
                "mlp.gate.e_score_correction_bias?", "moe", like="mlp.gate.e_score_correction.bias"
            ),
            *layout.experts(names),
            *layout.shared_experts(),
        ],
        [DENSE if k < n_dense else MOE for k in range(n_layers)],
        layout.sizes["X"] or 0,
    )


def _write_keys(keys: Keys, config: Config) -> None:
    if config.values.get("scoring_func") == "noaux_tc":
        config = replace(config, values={**config.values, "scoring_func": "sigmoid"})
    text_keys(keys, config)
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    shared = config.optional_count("shared_expert_intermediate_size", least=0)
    keys.count("expert_shared_feed_forward_length", shared)
    keys.count("leading_dense_block_count", config.count("first_k_dense_replace", least=0))
    keys.count("expert_shared_count", config.count("n_shared_experts", least=0))
    keys.number("expert_weights_scale", config.optional_number("routed_scaling_factor"))
    keys.flag("expert_weights_norm", config.flag("norm_topk_prob"))


CLASSES = {
    "Dots1ForCausalLM": Architecture(
        "dots1",
        _table,
        _write_keys,
        {
            "first_k_dense_replace": 0,
            "max_position_embeddings": 2048,
            "moe_intermediate_size": 1408,
            "n_group": 1,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
        },
    )
}
