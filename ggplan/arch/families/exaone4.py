"""EXAONE 4: the GGUF architecture `exaone4`.

The norms stand behind attention and the feed-forward part. `layer_types` tells layers of full and of sliding
attention, or a pattern: a number, the last of so many is full, or letters ("LLLG").

`Exaone4Model` in `conversion/exaone.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.families.llama import rope_factors
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import DENSE, Table


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("exaone4", config)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"),
            *layout.layer("self_attn.q_norm self_attn.k_norm"),
            *layout.layer("post_attention_layernorm post_feedforward_layernorm"),
            *layout.layer("mlp.gate_proj mlp.up_proj mlp.down_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
        computed=rope_factors(config),
    )


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.count("vocab_size", config.count("vocab_size"))
    window = config.optional_count("sliding_window")
    if window is not None:
        keys.count("attention.sliding_window", window)
        keys.flags("attention.sliding_window_pattern", _sliding(config))


def _sliding(config: Config) -> list[bool]:
    """Whether each layer attends to a sliding window."""
    if types := config.texts("layer_types"):
        return [type_ == "sliding_attention" for type_ in types]
    n_layers = config.count("num_hidden_layers")
    key = "sliding_window_pattern"
    if isinstance(config.values.get(key), str):
        letters = config.optional_text(key) or "G"
        return [letters[k % len(letters)] == "L" for k in range(n_layers)]
    every = config.count(key)
    return [(k + 1) % every != 0 for k in range(n_layers)]


CLASSES = {
    "Exaone4ForCausalLM": Architecture(
        "exaone4",
        _table,
        _write_keys,
        {
            "max_position_embeddings": 2048,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
    )
}
