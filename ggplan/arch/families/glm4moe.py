"""GLM-4.5, GLM-4.5-Air, GLM-4.6 and GLM-4.7: the GGUF architecture `glm4moe`.

The first layers are dense, the others have routed experts and a shared one. The last are followed by layers
that predict further tokens (`num_nextn_predict_layers`, "MTP"): layers with experts, plus `nextn` tensors of
their own. They are kept, as llama.cpp does. transformers' `save_pretrained` drops them; then they are absent.

`Glm4MoeModel` in `conversion/glm.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import (
    BLOCK,
    LAYER,
    Architecture,
    TokenizerRules,
    attention,
    embeddings,
    ffn,
    head_width,
    heads_kv,
    qk_norms,
)
from ggplan.arch.config import Config
from ggplan.arch.metadata import GATING, Keys, base_keys, rotated_columns
from ggplan.arch.tensors import DENSE, MOE, MTP, Table, TensorSpec


def _table(config: Config, names: Collection[str]) -> Table:
    width, n_columns = config.count("hidden_size"), config.count("moe_intermediate_size")
    n_experts, n_shared = config.count("n_routed_experts"), config.count("n_shared_experts", least=0)
    n_layers, n_dense = config.layers("num_hidden_layers"), config.count("first_k_dense_replace", least=0)
    layers = [DENSE if k < n_dense else MOE for k in range(n_layers)]
    return Table(
        [
            *embeddings(config),
            *attention(config),
            *qk_norms(config, optional=True),
            TensorSpec(
                LAYER + "post_attention_layernorm.weight", BLOCK + "post_attention_norm.weight", (width,)
            ),
            *ffn("mlp.", "", config.count("intermediate_size"), width, "dense"),
            TensorSpec(LAYER + "mlp.gate.weight", BLOCK + "ffn_gate_inp.weight", (n_experts, width), "moe"),
            TensorSpec(
                LAYER + "mlp.gate.e_score_correction_bias", BLOCK + "exp_probs_b.bias", (n_experts,), "moe"
            ),
            *ffn("mlp.experts.{}.", "_exps", n_columns, width, "moe"),
            *(ffn("mlp.shared_experts.", "_shexp", n_shared * n_columns, width, "moe") if n_shared else ()),
            *_next_token(width, config.count("vocab_size")),
        ],
        [*layers, *[MTP] * _n_next(config)],
        n_experts,
    )


def _next_token(width: int, vocab: int) -> list[TensorSpec]:
    target = BLOCK + "nextn."
    return [
        TensorSpec(LAYER + "eh_proj.weight", target + "eh_proj.weight", (width, 2 * width), "mtp"),
        TensorSpec(
            LAYER + "embed_tokens.weight",
            target + "embed_tokens.weight",
            (vocab, width),
            "mtp",
            optional=True,
        ),
        TensorSpec(LAYER + "enorm.weight", target + "enorm.weight", (width,), "mtp"),
        TensorSpec(LAYER + "hnorm.weight", target + "hnorm.weight", (width,), "mtp"),
        TensorSpec(
            LAYER + "shared_head.head.weight",
            target + "shared_head_head.weight",
            (vocab, width),
            "mtp",
            optional=True,
        ),
        TensorSpec(
            LAYER + "shared_head.norm.weight",
            target + "shared_head_norm.weight",
            (width,),
            "mtp",
            optional=True,
        ),
    ]


def _n_next(config: Config) -> int:
    key = "num_nextn_predict_layers"
    return 0 if config.values.get(key) is None else config.layers(key, least=0)


def _write_keys(keys: Keys, config: Config) -> None:
    base_keys(
        keys,
        config,
        n_blocks=config.count("num_hidden_layers") + _n_next(config),
        head_dim=config.optional_count("head_dim"),
        n_heads_kv=heads_kv(config),
    )
    keys.count("rope.dimension_count", rotated_columns(config, head_width(config), 0.5))
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    keys.count("expert_shared_count", config.count("n_shared_experts", least=0))
    keys.count("leading_dense_block_count", config.count("first_k_dense_replace", least=0))
    keys.count("expert_gating_func", GATING["sigmoid"])
    keys.number("expert_weights_scale", config.optional_number("routed_scaling_factor"))
    keys.flag("expert_weights_norm", config.optional_flag("norm_topk_prob"))
    keys.count("nextn_predict_layers", config.optional_count("num_nextn_predict_layers", least=0))


GLM4_MOE = Architecture(
    "glm4moe",
    _table,
    _write_keys,
    {
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
    },
    # The EOT is not the tokenizer's EOS: GLM ends its turn with the name of the next speaker.
    TokenizerRules(
        special_tokens={"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}
    ),
)

CLASSES = {"Glm4MoeForCausalLM": GLM4_MOE}
