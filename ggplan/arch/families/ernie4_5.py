"""ERNIE 4.5, dense and with experts: the GGUF architectures `ernie4_5` and `ernie4_5-moe`.

Layers from `moe_layer_start_index` to `moe_layer_end_index` have experts, and of them every
`moe_layer_interval`-th. Layers that predict further tokens are left out, as llama.cpp's converter does.

`Ernie4_5Model` and `Ernie4_5MoeModel` in `conversion/ernie.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, TokenizerRules, head_width, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, base_keys, text_keys
from ggplan.arch.tensors import DENSE, MOE, Table, TensorSpec

MODELS = {
    "ernie4_5": "ERNIE 4.5, dense",
    "ernie4_5-moe": "ERNIE 4.5 with experts",
}

_FURTHER = ("mtp_block.", "mtp_emb_norm.", "mtp_hidden_norm.", "mtp_linear_proj.")


def _dense(config: Config, names: Collection[str]) -> Table:
    layout = Layout("ernie4_5", config)
    return Table(
        [*_common(layout), *layout.layer("mlp.{gate,up,down}_proj")],
        [DENSE] * config.layers("num_hidden_layers"),
    )


def _moe(config: Config, names: Collection[str]) -> Table:
    n_experts, columns = config.count("moe_num_experts"), config.count("moe_intermediate_size")
    n_shared = config.optional_count("moe_num_shared_experts", least=0) or 0
    layout = Layout("ernie4_5-moe", config, X=n_experts, M=columns, S=n_shared * columns)
    return Table(
        [
            *_common(layout),
            *layout.layer("mlp.{gate,up,down}_proj", "dense"),
            *layout.layer("mlp.gate", "moe"),
            *layout.parameter(
                "mlp.moe_statics.e_score_correction_bias?",
                "moe",
                like="mlp.moe_statics.e_score_correction.bias",
                shape=(1, n_experts),
            ),
            *layout.experts(names, "mlp.experts.{gate,up,down}_proj"),
            *layout.shared_experts(),
        ],
        [MOE if has else DENSE for has in _with_experts(config)],
        n_experts,
        ignore=lambda name: name.startswith(tuple(f"model.{part}" for part in _FURTHER)),
    )


def _common(layout: Layout) -> list[TensorSpec]:
    return [
        *layout.outside("model.embed_tokens model.norm lm_head?"),
        *layout.layer("{input,post_attention}_layernorm"),
        *layout.layer("self_attn.{q,k,v,o}_proj"),
    ]


def _with_experts(config: Config) -> list[bool]:
    n_layers, step = config.layers("num_hidden_layers"), config.count("moe_layer_interval")
    first, stated = config.count("moe_layer_start_index", least=0), config.values.get("moe_layer_end_index")
    last = n_layers - 1 if stated in (None, -1) else config.count("moe_layer_end_index", least=0)
    return [first <= k <= last and (k + 1) % step == 0 for k in range(n_layers)]


def _without_brand(config: Config, name: str) -> str:
    """Old checkpoints have `ernie.` for `model.`."""
    return name.replace("model.ernie.", "model.")


def _write_keys(keys: Keys, config: Config) -> None:
    n_blocks = config.count("num_hidden_layers")
    base_keys(keys, config, n_blocks=n_blocks, head_dim=head_width(config), n_heads_kv=heads_kv(config))


def _write_moe_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.count("expert_count", config.count("moe_num_experts"))
    keys.count("expert_used_count", config.count("moe_k"))
    keys.count("interleave_moe_layer_step", config.count("moe_layer_interval"))
    keys.count("leading_dense_block_count", config.count("moe_layer_start_index", least=0))
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    n_shared, heads = (
        config.optional_count("moe_num_shared_experts", least=0),
        config.count("num_key_value_heads"),
    )
    keys.count("expert_shared_count", n_shared)
    if n_shared:  # the converter's formula, which holds for the models that there are
        keys.count("expert_shared_feed_forward_length", config.count("intermediate_size") // heads)


_DEFAULTS = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
_TOKENIZER = TokenizerRules(sentencepiece=True, prefix_last=True)
_DENSE = Architecture(
    "ernie4_5",
    _dense,
    _write_keys,
    _DEFAULTS | {"head_dim": 128, "num_key_value_heads": 2},
    _TOKENIZER,
    rename=_without_brand,
)

CLASSES = {
    "Ernie4_5ForCausalLM": _DENSE,
    "Ernie4_5_ForCausalLM": _DENSE,
    "Ernie4_5_MoeForCausalLM": Architecture(
        "ernie4_5-moe",
        _moe,
        _write_moe_keys,
        _DEFAULTS
        | {
            "moe_intermediate_size": 1536,
            "moe_k": 6,
            "moe_layer_interval": 1,
            "moe_layer_start_index": 1,
            "moe_num_experts": 64,
            "moe_num_shared_experts": 2,
            "num_key_value_heads": 4,
        },
        _TOKENIZER,
        rename=_without_brand,
    ),
}
