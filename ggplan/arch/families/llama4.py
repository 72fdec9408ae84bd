"""Llama 4, its text part: the GGUF architecture `llama4`.

Every n-th layer has experts and a shared one, the others are dense: `intermediate_size` is the experts',
`intermediate_size_mlp` that of dense layers. A layer's experts are one tensor, stored transposed:
`gate_up_proj` (experts, width, 2 n), gate first, and `down_proj` (experts, n, width). Q and K are not
permuted.

`Llama4Model` in `conversion/llama.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

from ggplan.arch.architecture import Architecture, head_width, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.families.llama import rope_factors
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, base_keys
from ggplan.arch.tensors import DENSE, MOE, Table, TensorSpec
from ggplan.arch.transforms import sliced, transposed_slices
from ggplan.model import RowSource

_EXPERTS = "feed_forward.experts."
_SHARED = "feed_forward.shared_expert."


def _table(config: Config, names: Collection[str]) -> Table:
    columns = config.count("intermediate_size")
    layout = Layout("llama4", config, F=_dense_columns(config), M=columns, S=columns)
    n_layers = config.layers("num_hidden_layers")
    with_experts = _layers_with_experts(config, n_layers)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm"),
            *layout.layer("self_attn.{q,k,v,o}_proj"),
            *layout.layer("feed_forward.{gate,up,down}_proj", "dense"),
            *layout.layer("feed_forward.router", "moe"),
            *layout.layer(_SHARED + "{gate,up,down}_proj", "moe"),
            *_experts(layout, config),
        ],
        [MOE if k in with_experts else DENSE for k in range(n_layers)],
        computed=rope_factors(config),
    )


def _experts(layout: Layout, config: Config) -> list[TensorSpec]:
    n, width, columns = layout.sizes["X"], config.count("hidden_size"), config.count("intermediate_size")

    def half(source: RowSource, offset: int) -> RowSource:
        return sliced(transposed_slices(source, width, width), 2 * columns, offset, columns)

    specs = []
    for k, part in enumerate(("gate_proj", "up_proj")):
        specs += layout.parameter(
            _EXPERTS + "gate_up_proj",
            "moe",
            like=f"{_EXPERTS}{part}.weight",
            shape=(n, width, 2 * columns),
            transform=partial(half, offset=k * columns),
        )
    return specs + layout.parameter(
        _EXPERTS + "down_proj",
        "moe",
        like=_EXPERTS + "down_proj.weight",
        shape=(n, columns, width),
        transform=partial(transposed_slices, group=columns, length=columns),
    )


def _layers_with_experts(config: Config, n_layers: int) -> Collection[int]:
    if isinstance(config.values.get("moe_layers"), list):
        return config.counts("moe_layers")
    step = _step(config)
    return range(step - 1, n_layers, step) if step else ()


def _step(config: Config) -> int:
    return config.count("interleave_moe_layer_step", least=0)


def _dense_columns(config: Config) -> int:
    return config.count("intermediate_size_mlp")


def _write_keys(keys: Keys, config: Config) -> None:
    n_blocks = config.count("num_hidden_layers")
    as_dense = replace(config, values={**config.values, "intermediate_size": _dense_columns(config)})
    base_keys(keys, as_dense, n_blocks=n_blocks, head_dim=head_width(config), n_heads_kv=heads_kv(config))
    keys.count("vocab_size", config.count("vocab_size"))
    keys.count("rope.dimension_count", head_width(config))
    keys.count("interleave_moe_layer_step", _step(config))
    keys.count("expert_feed_forward_length", config.count("intermediate_size"))
    if _attends_to_all(config):
        keys.count("attention.sliding_window", 0)


def _attends_to_all(config: Config) -> bool:
    """Whether no layer attends to chunks, which llama.cpp must be told."""
    if kinds := config.texts("layer_types"):
        return all(kind == "full_attention" for kind in kinds)
    if config.values.get("attention_chunk_size") is None:
        return True
    rotated = config.counts("no_rope_layers")  # 1 for a layer that rotates, and attends to chunks
    if not rotated:
        interval = config.count("no_rope_layer_interval")
        rotated = [int((k + 1) % interval != 0) for k in range(config.count("num_hidden_layers"))]
    return not any(rotated)


_LLAMA4 = Architecture(
    "llama4",
    _table,
    _write_keys,
    {
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 131072,
        "no_rope_layer_interval": 4,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    },
)

CLASSES = {"Llama4ForCausalLM": _LLAMA4, "Llama4ForConditionalGeneration": _LLAMA4}
