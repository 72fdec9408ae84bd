"""Hunyuan 3 (Hy3): the GGUF architecture `hy_v3`.

The first layer is dense, the others have routed experts and shared ones. The last are followed by layers that
predict further tokens, which are kept; their `final_layernorm` is the norm before the head.

`HYV3Model` in `conversion/hunyuan.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout, n_next_tokens
from ggplan.arch.metadata import GATING, Keys, text_keys
from ggplan.arch.tensors import DENSE, MOE, MTP, Table


def _table(config: Config, names: Collection[str]) -> Table:
    n_shared = config.optional_count("num_shared_experts", least=0) or 0
    layout = Layout("hy_v3", config, S=n_shared * config.count("moe_intermediate_size"))
    shared = ("gate_proj", "up_proj", "down_proj") if n_shared else ()
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("input_layernorm self_attn.{q,k}_norm"),
            *layout.layer("post_attention_layernorm", to="ffn_norm"),
            *layout.layer("self_attn.{q,k,v,o}_proj"),
            *layout.layer("mlp.{gate,up,down}_proj", "dense"),
            *layout.layer("mlp.router.gate", "moe", like="mlp.gate"),
            *layout.parameter("mlp.expert_bias", "moe", to="exp_probs_b", shape=(layout.sizes["X"],)),
            *layout.experts(names),
            *(
                spec
                for part in shared
                for spec in layout.layer(f"mlp.shared_mlp.{part}", "moe", like=f"mlp.shared_experts.{part}")
            ),
            *layout.next_tokens(),
            *layout.layer("final_layernorm?", "mtp", like="shared_head.norm"),
        ],
        _layers(config),
        layout.sizes["X"] or 0,
    )


def _layers(config: Config) -> list[frozenset[str]]:
    n_layers, kinds = config.layers("num_hidden_layers"), config.texts("mlp_layer_types")
    if kinds and len(kinds) < n_layers:
        raise config.wrong("mlp_layer_types", f"has {len(kinds)} entries for {n_layers} layers")
    dense = [kind == "dense" for kind in kinds[:n_layers]] if kinds else [k == 0 for k in range(n_layers)]
    return [*(DENSE if is_dense else MOE for is_dense in dense), *[MTP] * n_next_tokens(config)]


def _write_keys(keys: Keys, config: Config) -> None:
    n_next, columns = n_next_tokens(config), config.count("moe_intermediate_size")
    text_keys(keys, config, n_blocks=config.count("num_hidden_layers") + n_next)
    keys.count("expert_feed_forward_length", columns)
    keys.count("expert_shared_feed_forward_length", columns * config.count("num_shared_experts", least=0))
    normed = config.optional_flag("route_norm")
    keys.flag("expert_weights_norm", True if normed is None else normed)
    keys.number("expert_weights_scale", config.optional_number("router_scaling_factor"))
    keys.count("expert_gating_func", GATING["sigmoid"])
    keys.count("nextn_predict_layers", n_next or None)


CLASSES = {
    "HYV3ForCausalLM": Architecture(
        "hy_v3",
        _table,
        _write_keys,
        {
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "moe_intermediate_size": 1536,
            "num_experts": 192,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 8,
            "num_shared_experts": 1,
            "rms_norm_eps": 1e-5,
            "rope_theta": 11158840.0,
            "router_scaling_factor": 2.826,
        },
    )
}
