"""The keys that every architecture's GGUF has: sizes, heads, rope, experts.

Names, types and conditions are those of `TextModel.set_gguf_parameters` (`conversion/base.py` of llama.cpp
b11434), as far as the supported architectures reach them. The order of keys is the converter's too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ggplan.arch.config import Config
from ggplan.metadata import Metadata, MetadataValue, boolean, float32, string, uint32
from ggplan.sources.files import shown

# llama.cpp's numbers of the functions from router logits to weights (enum llama_expert_gating_func_type).
GATING = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}


@dataclass(slots=True)
class Keys:
    """Collects an architecture's keys: `count("block_count", 46)` makes `glm4moe.block_count`.

    A value of None writes nothing. A key that is written twice keeps its first place and its last value.
    """

    architecture: str
    values: Metadata = field(default_factory=dict)

    def count(self, key: str, value: int | None) -> None:
        """An unsigned 32-bit integer."""
        self._put(key, None if value is None else uint32(value))

    def number(self, key: str, value: float | None) -> None:
        """A 32-bit float."""
        self._put(key, None if value is None else float32(value))

    def flag(self, key: str, value: bool | None) -> None:
        """A bool."""
        self._put(key, None if value is None else boolean(value))

    def text(self, key: str, value: str | None) -> None:
        """A string."""
        self._put(key, None if value is None else string(value))

    def _put(self, key: str, value: MetadataValue | None) -> None:
        if value is not None:
            self.values[f"{self.architecture}.{key}"] = value


def rope_parameters(config: Config) -> Config:
    """The settings of rotary embeddings in config.json, from either place, under transformers 5's names.

    Up to version 4 transformers wrote `rope_theta` and `partial_rotary_factor` beside an object
    `rope_scaling` with `type` or `rope_type`; since version 5 all is in `rope_parameters`, but `rope_scaling`
    wins where a config has both.
    """
    key = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    section = config.section(key)
    outer = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    mirrored = {name: config.values[name] for name in outer if config.values.get(name) is not None}
    if "type" in section.values:
        mirrored["rope_type"] = section.values["type"]
    return section.with_defaults(**mirrored)


def base_keys(keys: Keys, config: Config, *, n_blocks: int, head_dim: int | None, n_heads_kv: int) -> None:
    """Write the keys that all architectures share.

    Parameters
    ----------
    keys
        Where they are written.
    config
        The model's config, defaults filled in.
    n_blocks
        Layers, those that predict further tokens included.
    head_dim
        The key_length and value_length to write; None for llama.cpp's own rule, width by heads.
    n_heads_kv
        Heads of K and V as the cache sees them.
    """
    keys.count("block_count", n_blocks)
    keys.count("context_length", config.optional_count("max_position_embeddings"))
    keys.count("embedding_length", config.count("hidden_size"))
    keys.count("feed_forward_length", config.optional_count("intermediate_size"))
    keys.count("attention.head_count", config.count("num_attention_heads"))
    keys.count("attention.head_count_kv", n_heads_kv)
    _rope_keys(keys, config)
    keys.number("attention.layer_norm_rms_epsilon", config.optional_number("rms_norm_eps"))
    keys.count("expert_count", n_experts(config))
    keys.count("expert_used_count", config.optional_count("num_experts_per_tok"))
    keys.count("expert_group_count", config.optional_count("n_group"))
    keys.count("expert_group_used_count", config.optional_count("topk_group"))
    if (scoring := config.optional_text("scoring_func")) is not None:
        if scoring not in GATING:
            raise config.wrong("scoring_func", f"is '{shown(scoring)}', not one of {', '.join(GATING)}")
        keys.count("expert_gating_func", GATING[scoring])
    keys.count("attention.key_length", head_dim)
    keys.count("attention.value_length", head_dim)


def n_experts(config: Config) -> int | None:
    """Routed experts of a layer, under any of the names that configs use."""
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.values.get(key) is not None:
            return config.count(key)
    return None


def _rope_keys(keys: Keys, config: Config) -> None:
    rope = rope_parameters(config)
    kind, factor = rope.optional_text("rope_type"), rope.optional_number("factor")
    if kind == "linear" and factor is not None:
        keys.text("rope.scaling.type", "linear")
        keys.number("rope.scaling.factor", factor)
    elif kind == "yarn" and factor is not None:
        keys.text("rope.scaling.type", "yarn")
        keys.number("rope.scaling.factor", factor)
        original = rope.optional_count("original_max_position_embeddings")
        keys.count(
            "rope.scaling.original_context_length", original or config.count("max_position_embeddings")
        )
        keys.number("rope.scaling.yarn_ext_factor", rope.optional_number("extrapolation_factor"))
        attention = "attention_factor" if "attention_factor" in rope.values else "attn_factor"
        keys.number("rope.scaling.yarn_attn_factor", rope.optional_number(attention))
        keys.number("rope.scaling.yarn_beta_fast", rope.optional_number("beta_fast"))
        keys.number("rope.scaling.yarn_beta_slow", rope.optional_number("beta_slow"))
    elif kind in ("longrope", "su"):
        keys.text("rope.scaling.type", "longrope")
    keys.number("rope.freq_base", rope.optional_number("rope_theta"))
