"""OLMo 2 and OLMo 3: the GGUF architecture `olmo2`.

The norms stand behind attention and the feed-forward part; Q and K are normed as a whole, not head by head.
In OLMo 3 three of four layers attend to a sliding window, with a base of rotation of their own, and only the
others are scaled.

`Olmo2Model` in `conversion/olmo.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import DENSE, Table

_BASE = 500000.0  # of rotation, in OLMo 3


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("olmo2", config)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"),
            *layout.layer("self_attn.q_norm", shape=(layout.sizes["Q"],)),
            *layout.layer("self_attn.k_norm", shape=(layout.sizes["K"],)),
            *layout.layer("post_attention_layernorm post_feedforward_layernorm"),
            *layout.layer("mlp.gate_proj mlp.up_proj mlp.down_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
    )


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    window = config.optional_count("sliding_window")
    if window is not None:
        keys.count("attention.sliding_window", window)
        keys.flags("attention.sliding_window_pattern", _sliding(config))


def _write_olmo3_keys(keys: Keys, config: Config) -> None:
    _write_keys(keys, _with_sections(config))


def _with_sections(config: Config) -> Config:
    """The config with settings of rotation for each kind of layer, as transformers makes them."""
    key = "rope_parameters"
    if config.section(key).section("full_attention").values:
        return config
    base = config.optional_number("rope_theta")
    full = {**config.section("rope_scaling").values, "rope_theta": _BASE if base is None else base}
    sections = {"full_attention": full, "sliding_attention": {"rope_theta": _BASE}}
    return replace(config, values={**config.values, key: sections, "rope_scaling": None})


def _sliding(config: Config) -> list[bool]:
    """Whether each layer attends to a sliding window."""
    if types := config.texts("layer_types"):
        return [type_ == "sliding_attention" for type_ in types]
    return [(k + 1) % 4 != 0 for k in range(config.count("num_hidden_layers"))]


_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
_OLMO3_DEFAULTS = {**_DEFAULTS, "sliding_window": 4096}

CLASSES = {
    "Olmo2ForCausalLM": Architecture("olmo2", _table, _write_keys, {**_DEFAULTS, "rope_theta": 10000.0}),
    "Olmo3ForCausalLM": Architecture("olmo2", _table, _write_olmo3_keys, _OLMO3_DEFAULTS),
}
