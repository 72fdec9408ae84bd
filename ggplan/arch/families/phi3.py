"""Phi-3, Phi-3.5 and Phi-4: the GGUF architecture `phi3`.

Q, K and V are one matrix, gate and up another; both stay so. The divisors of the rotation's frequencies for
long and for short texts ("longrope") become two tensors, `rope_factors_long` and `rope_factors_short`.

`Phi3MiniModel` in `conversion/phi.py` of llama.cpp b11434.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from ggplan.arch.architecture import Architecture, TokenizerRules, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, rope_parameters
from ggplan.arch.tensors import DENSE, Table
from ggplan.arch.transforms import constant
from ggplan.ggml_types import F32
from ggplan.model import TensorInfo


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("phi3", config)
    width, columns = config.count("hidden_size"), config.count("intermediate_size")
    n_heads, head = config.count("num_attention_heads"), layout.sizes["H"] or 1
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm"),
            *layout.layer("self_attn.qkv_proj", shape=((n_heads + 2 * heads_kv(config)) * head, width)),
            *layout.layer("self_attn.o_proj"),
            *layout.layer("mlp.gate_up_proj", shape=(2 * columns, width)),
            *layout.layer("mlp.down_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
        computed=_factors(config),
    )


def _factors(config: Config) -> list[TensorInfo]:
    """The divisors for long and for short texts, if there are any."""
    rope = rope_parameters(config)
    lists = {length: rope.numbers(f"{length}_factor") for length in ("long", "short")}
    if not lists["long"]:
        return []
    found = []
    for length, factors in lists.items():
        if len(factors) != _rotated(config) // 2:
            raise rope.wrong(f"{length}_factor", f"has {len(factors)} numbers, not {_rotated(config) // 2}")
        rows = constant(factors)
        name = f"rope_factors_{length}.weight"
        found.append(TensorInfo(name, rows.shape, F32, "config.json", "F32", rows))
    return found


def _rotated(config: Config) -> int:
    part = rope_parameters(config).optional_number("partial_rotary_factor")
    width = config.count("hidden_size") * (1.0 if part is None else part)
    return int(width) // config.count("num_attention_heads")


def _write_keys(keys: Keys, config: Config) -> None:
    context, original = config.count("max_position_embeddings"), _original_context(config)
    rope = rope_parameters(config)
    if rope.values.get("long_factor"):
        scale = context / original
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        keys.early_number("rope.scaling.attn_factor", attention)
    keys.count("context_length", context)
    keys.count("rope.scaling.original_context_length", original)
    keys.count("embedding_length", config.count("hidden_size"))
    keys.count("feed_forward_length", config.count("intermediate_size"))
    keys.count("block_count", config.count("num_hidden_layers"))
    keys.count("attention.head_count", config.count("num_attention_heads"))
    keys.count("attention.head_count_kv", heads_kv(config))
    keys.number("attention.layer_norm_rms_epsilon", config.optional_number("rms_norm_eps"))
    keys.count("rope.dimension_count", _rotated(config))
    keys.number("rope.freq_base", rope.optional_number("rope_theta"))
    # 0 tells Phi-4 apart from models with a window.
    keys.count("attention.sliding_window", config.optional_count("sliding_window", least=0) or 0)


def _original_context(config: Config) -> int:
    stated = rope_parameters(config).optional_count("original_max_position_embeddings", least=2)
    return stated or 4096


CLASSES = {
    "Phi3ForCausalLM": Architecture(
        "phi3",
        _table,
        _write_keys,
        {
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
        },
        TokenizerRules(sentencepiece=True, added_by_json=True),
    )
}
