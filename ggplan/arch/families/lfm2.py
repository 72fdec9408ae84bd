"""LFM2, dense and MoE: the GGUF architectures `lfm2` and `lfm2moe`.

Most layers have a short convolution in place of attention; they have no heads of K and V. The norm that other
models have at the end is called that of the embedding.

`LFM2Model` and `LFM2MoeModel` in `conversion/lfm2.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

from ggplan.arch.architecture import Architecture, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import GATING, Keys, text_keys
from ggplan.arch.tensors import Kinds, Table, TensorSpec
from ggplan.arch.transforms import reshaped

MODELS = {
    "lfm2": "LFM2, dense",
    "lfm2moe": "LFM2 with experts",
}

_CONV, _FULL = "conv", "full"
_DENSE_PART = "feed_forward.w1 feed_forward.w2 feed_forward.w3"


def _dense(config: Config, names: Collection[str]) -> Table:
    layout = Layout("lfm2", config, F=_dense_columns(config))
    return Table(
        [*_common(layout), *layout.outside("lm_head?"), *layout.layer(_DENSE_PART)],
        [frozenset({kind}) for kind in _kinds(config)],
    )


def _moe(config: Config, names: Collection[str]) -> Table:
    layout = Layout("lfm2moe", config)
    n_dense = config.count("num_dense_layers", least=0)
    layers: list[Kinds] = [
        frozenset({kind, "dense" if k < n_dense else "moe"}) for k, kind in enumerate(_kinds(config))
    ]
    ffn = "feed_forward."
    return Table(
        [
            *_common(layout),
            *layout.layer(_DENSE_PART, "dense"),
            *layout.layer(f"{ffn}gate", "moe"),
            *layout.parameter(f"{ffn}expert_bias?", "moe", like=f"{ffn}expert_bias.bias"),
            *layout.layer(f"{ffn}experts.{{}}.w1", "moe", to="ffn_gate_exps"),
            *layout.layer(f"{ffn}experts.{{}}.w2", "moe", to="ffn_down_exps"),
            *layout.layer(f"{ffn}experts.{{}}.w3", "moe", to="ffn_up_exps"),
        ],
        layers,
        layout.sizes["X"] or 0,
    )


def _common(layout: Layout) -> list[TensorSpec]:
    width, length = layout.config.count("hidden_size"), layout.config.count("conv_L_cache")
    without_middle = partial(reshaped, shape=(width, length))
    return [
        *layout.outside("model.embed_tokens"),
        *layout.outside("model.embedding_norm", shape=(width,)),
        *layout.layer("operator_norm ffn_norm"),
        *layout.layer("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj", _FULL),
        *layout.layer("self_attn.q_layernorm self_attn.k_layernorm", _FULL),
        *layout.layer("conv.conv", _CONV, shape=(width, 1, length), transform=without_middle),
        *layout.layer("conv.in_proj", _CONV, shape=(3 * width, width), bias=False),
        *layout.layer("conv.out_proj", _CONV, shape=(width, width), bias=False),
    ]


def _kinds(config: Config) -> list[str]:
    """The kind of each layer: with a convolution, or with attention."""
    n_layers = config.layers("num_hidden_layers")
    types = config.texts("layer_types")
    if not types:
        stated = config.values.get("full_attn_idxs")
        full = set(config.counts("full_attn_idxs")) if stated is not None else range(n_layers)
        return [_FULL if k in full else _CONV for k in range(n_layers)]
    if len(types) != n_layers:
        raise config.wrong("layer_types", f"names {len(types)} layers, but num_hidden_layers is {n_layers}")
    return [_CONV if type_ == "conv" else _FULL for type_ in types]


def _dense_columns(config: Config) -> int:
    """Columns of the feed-forward part, which config.json says before it is fitted."""
    key = "block_ff_dim" if config.values.get("block_ff_dim") is not None else "intermediate_size"
    columns = config.count(key)
    if config.optional_flag("block_auto_adjust_ff_dim") is False:
        return columns
    columns, by = int(2 * columns / 3), config.optional_number("block_ffn_dim_multiplier")
    columns = columns if by is None else int(by * columns)
    unit = config.count("block_multiple_of")
    if not 0 < columns < 1 << 31:
        raise config.wrong("block_ffn_dim_multiplier", "makes a feed-forward part of an impossible size")
    return -(-columns // unit) * unit


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, _with_heads(config))
    keys.count("vocab_size", config.count("vocab_size"))
    keys.count("shortconv.l_cache", config.count("conv_L_cache"))
    keys.count("feed_forward_length", _dense_columns(config))


def _write_moe_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, _with_heads(config))
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    keys.count("leading_dense_block_count", config.count("num_dense_layers", least=0))
    keys.count("expert_gating_func", GATING["sigmoid"])
    keys.count("vocab_size", config.count("vocab_size"))
    keys.count("shortconv.l_cache", config.count("conv_L_cache"))


def _with_heads(config: Config) -> Config:
    """The config with the heads of K and V of each layer: none where it has no attention."""
    heads = [heads_kv(config) if kind == _FULL else 0 for kind in _kinds(config)]
    return replace(config, values={**config.values, "num_key_value_heads": heads})


_DEFAULTS: dict[str, object] = {
    "conv_L_cache": 3,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
}
_DENSE = Architecture(
    "lfm2",
    _dense,
    _write_keys,
    {
        **_DEFAULTS,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "intermediate_size": 12288,
    },
)
_MOE = Architecture(
    "lfm2moe",
    _moe,
    _write_moe_keys,
    {
        **_DEFAULTS,
        "intermediate_size": 7168,
        "moe_intermediate_size": 1792,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
    },
)

CLASSES = {"Lfm2ForCausalLM": _DENSE, "LFM2ForCausalLM": _DENSE, "Lfm2MoeForCausalLM": _MOE}
