"""GLM-4.5, GLM-4.6, GLM-4.7, text part of GLM-4.5V and 4.6V, Solar-Open: the GGUF architecture `glm4moe`.

The first layers are dense, the others have routed experts and a shared one. The last are followed by layers
that predict further tokens (`num_nextn_predict_layers`, "MTP"): layers with experts, plus `nextn` tensors of
their own. They are kept, as llama.cpp does. transformers' `save_pretrained` drops them; then they are absent.

`Glm4MoeModel` in `conversion/glm.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, TokenizerRules, head_width
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout, n_next_tokens
from ggplan.arch.metadata import GATING, Keys, rotated_columns, text_keys
from ggplan.arch.tensors import DENSE, MOE, MTP, Table

# The EOT is not the tokenizer's EOS: GLM ends its turn with the name of the next speaker.
GLM_TOKENS = TokenizerRules(
    special_tokens={"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}
)


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("glm4moe", config)
    n_layers = config.layers("num_hidden_layers")
    n_dense = config.optional_count("first_k_dense_replace", least=0) or 0
    layers = [DENSE if k < n_dense else MOE for k in range(n_layers)]
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm self_attn.{q,k}_norm?"),
            *layout.layer("self_attn.{q,k,v,o}_proj"),
            *layout.layer("mlp.{down,gate,up}_proj", "dense"),
            *layout.layer("mlp.gate", "moe"),
            *layout.parameter(
                "mlp.gate.e_score_correction_bias", "moe", like="mlp.gate.e_score_correction.bias"
            ),
            *layout.experts(names),
            *layout.shared_experts(),
            *layout.next_tokens(),
        ],
        [*layers, *[MTP] * n_next_tokens(config)],
        config.count("n_routed_experts"),
    )


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config, n_blocks=config.count("num_hidden_layers") + n_next_tokens(config))
    keys.count("rope.dimension_count", rotated_columns(config, head_width(config), 0.5))
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    keys.count("expert_shared_count", config.count("n_shared_experts", least=0))
    keys.count("leading_dense_block_count", config.optional_count("first_k_dense_replace", least=0))
    keys.count("expert_gating_func", GATING["sigmoid"])
    keys.number("expert_weights_scale", config.optional_number("routed_scaling_factor"))
    keys.flag("expert_weights_norm", config.optional_flag("norm_topk_prob"))
    keys.count("nextn_predict_layers", config.optional_count("num_nextn_predict_layers", least=0))


_DEFAULTS: dict[str, object] = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}
_SOLAR_TOKENS = TokenizerRules(
    special_tokens={
        "eos": "<|endoftext|>",
        "eot": "<|endoftext|>",
        "unk": "<unk>",
        "bos": "<|startoftext|>",
    }
)
_SOLAR_DEFAULTS = {key: value for key, value in _DEFAULTS.items() if key != "first_k_dense_replace"}

CLASSES = {
    "Glm4MoeForCausalLM": Architecture("glm4moe", _table, _write_keys, _DEFAULTS, GLM_TOKENS),
    "Glm4vMoeForConditionalGeneration": Architecture(
        "glm4moe", _table, _write_keys, _DEFAULTS | {"max_position_embeddings": 65536}, GLM_TOKENS
    ),
    "SolarOpenForCausalLM": Architecture(
        "glm4moe", _table, _write_keys, _SOLAR_DEFAULTS | {"head_dim": 128}, _SOLAR_TOKENS
    ),
}
