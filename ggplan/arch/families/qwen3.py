"""Qwen3 and Qwen3-MoE: the GGUF architectures `qwen3` and `qwen3moe`.

Nothing is permuted. Experts are stored one by one, or fused as transformers 5 keeps them in memory.

`Qwen3Model` and `Qwen2MoeModel` in `conversion/qwen.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, TokenizerRules
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import DENSE, MOE, Table, TensorSpec
from ggplan.errors import CheckpointError

MODELS = {
    "qwen3": "Qwen3, dense",
    "qwen3moe": "Qwen3-MoE",
}


def _dense(config: Config, names: Collection[str]) -> Table:
    layout = Layout("qwen3", config)
    return Table(
        [*_common(layout), *layout.layer("mlp.{gate,up,down}_proj")],
        [DENSE] * config.layers("num_hidden_layers"),
    )


def _moe(config: Config, names: Collection[str]) -> Table:
    require_experts_everywhere(config, "qwen3moe")
    layout = Layout("qwen3moe", config)
    return Table(
        [*_common(layout), *layout.layer("mlp.gate"), *layout.experts(names)],
        [MOE] * config.layers("num_hidden_layers"),
        layout.sizes["X"] or 0,
    )


def require_experts_everywhere(config: Config, architecture: str) -> None:
    """Refuse models of which some layers are dense."""
    if config.values.get("mlp_only_layers") or config.optional_count("decoder_sparse_step") not in (None, 1):
        raise CheckpointError(
            f"{config.where} mixes layers with and without experts, which llama.cpp's {architecture} has not"
        )


def _common(layout: Layout) -> list[TensorSpec]:
    return [
        *layout.outside("model.embed_tokens model.norm lm_head?"),
        *layout.layer("{input,post_attention}_layernorm self_attn.{q,k}_norm"),
        *layout.layer("self_attn.{q,k,v,o}_proj"),
    ]


def _write_moe_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    # Some configs have a size of shared experts, which the model has not.
    keys.count(
        "expert_shared_feed_forward_length", config.optional_count("shared_expert_intermediate_size", least=0)
    )


_DEFAULTS = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
_QWEN3 = Architecture(
    "qwen3",
    _dense,
    text_keys,
    {**_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128},
    TokenizerRules(sentencepiece=True),
)
_QWEN3_MOE = Architecture(
    "qwen3moe",
    _moe,
    _write_moe_keys,
    {**_DEFAULTS, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8},
)

CLASSES = {"Qwen3ForCausalLM": _QWEN3, "Qwen3Model": _QWEN3, "Qwen3MoeForCausalLM": _QWEN3_MOE}
