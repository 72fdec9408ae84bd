"""Qwen3 and Qwen3-MoE: the GGUF architectures `qwen3` and `qwen3moe`.

Nothing is permuted. Experts are stored one by one, or fused as transformers 5 keeps them in memory:
`mlp.experts.gate_up_proj` (experts, 2 n, width), gate first, and `mlp.experts.down_proj` (experts, width, n).

`Qwen3Model` and `Qwen2MoeModel` in `conversion/qwen.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from ggplan.arch.architecture import (
    BLOCK,
    LAYER,
    Architecture,
    TokenizerRules,
    attention,
    embeddings,
    ffn,
    heads_kv,
    qk_norms,
)
from ggplan.arch.config import Config
from ggplan.arch.metadata import Keys, base_keys, n_experts
from ggplan.arch.tensors import DENSE, MOE, Table, TensorSpec
from ggplan.arch.transforms import sliced
from ggplan.errors import CheckpointError


def _dense(config: Config, names: Collection[str]) -> Table:
    matrices = ffn("mlp.", "", config.count("intermediate_size"), config.count("hidden_size"))
    return Table([*_common(config), *matrices], [DENSE] * config.layers("num_hidden_layers"))


def _moe(config: Config, names: Collection[str]) -> Table:
    if config.values.get("mlp_only_layers") or config.optional_count("decoder_sparse_step") not in (None, 1):
        raise CheckpointError(
            f"{config.where} mixes layers with and without experts, which llama.cpp's qwen3moe has not"
        )
    count, n_columns, width = (
        n_experts(config) or 0,
        config.count("moe_intermediate_size"),
        config.count("hidden_size"),
    )
    fused = any(name.endswith("mlp.experts.gate_up_proj") for name in names)
    return Table(
        [
            *_common(config),
            TensorSpec(LAYER + "mlp.gate.weight", BLOCK + "ffn_gate_inp.weight", (count, width)),
            *(
                _fused_experts(count, n_columns, width)
                if fused
                else ffn("mlp.experts.{}.", "_exps", n_columns, width)
            ),
        ],
        [MOE] * config.layers("num_hidden_layers"),
        count,
    )


def _common(config: Config) -> list[TensorSpec]:
    norm = (config.count("hidden_size"),)
    return [
        *embeddings(config),
        *attention(config),
        *qk_norms(config),
        TensorSpec(LAYER + "post_attention_layernorm.weight", BLOCK + "ffn_norm.weight", norm),
    ]


def _fused_experts(count: int, n_columns: int, width: int) -> list[TensorSpec]:
    gate = partial(sliced, group=2 * n_columns, offset=0, length=n_columns)
    up = partial(sliced, group=2 * n_columns, offset=n_columns, length=n_columns)
    source, shape = LAYER + "mlp.experts.gate_up_proj", (count, 2 * n_columns, width)
    return [
        TensorSpec(source, BLOCK + "ffn_gate_exps.weight", shape, transform=gate),
        TensorSpec(source, BLOCK + "ffn_up_exps.weight", shape, transform=up),
        TensorSpec(
            LAYER + "mlp.experts.down_proj", BLOCK + "ffn_down_exps.weight", (count, width, n_columns)
        ),
    ]


def _write_keys(keys: Keys, config: Config) -> None:
    base_keys(
        keys,
        config,
        n_blocks=config.count("num_hidden_layers"),
        head_dim=config.optional_count("head_dim"),
        n_heads_kv=heads_kv(config),
    )


def _write_moe_keys(keys: Keys, config: Config) -> None:
    _write_keys(keys, config)
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))


_DEFAULTS = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}

QWEN3 = Architecture(
    "qwen3",
    _dense,
    _write_keys,
    {**_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128},
    TokenizerRules(sentencepiece=True),
)
QWEN3_MOE = Architecture(
    "qwen3moe",
    _moe,
    _write_moe_keys,
    {**_DEFAULTS, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8},
)

CLASSES = {"Qwen3ForCausalLM": QWEN3, "Qwen3Model": QWEN3, "Qwen3MoeForCausalLM": QWEN3_MOE}
