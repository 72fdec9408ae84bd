"""The keys that every architecture's GGUF has: sizes, heads, rope, experts.

Names, types and conditions are those of `TextModel.set_gguf_parameters` (`conversion/base.py` of llama.cpp
b11434), as far as the supported architectures reach them. The order of keys is the converter's too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ggplan.arch.config import Config
from ggplan.metadata import Metadata, MetadataType, MetadataValue, array, boolean, float32, string, uint32
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
    early: Metadata = field(default_factory=dict)  # those that come before the general ones

    def count(self, key: str, value: int | None) -> None:
        """An unsigned 32-bit integer."""
        self._put(key, None if value is None else uint32(value))

    def number(self, key: str, value: float | None) -> None:
        """A 32-bit float."""
        self._put(key, None if value is None else float32(value))

    def early_number(self, key: str, value: float) -> None:
        """A 32-bit float that the converter writes with a computed tensor, before all other keys."""
        self.early[f"{self.architecture}.{key}"] = float32(value)

    def flag(self, key: str, value: bool | None) -> None:
        """A bool."""
        self._put(key, None if value is None else boolean(value))

    def text(self, key: str, value: str | None) -> None:
        """A string."""
        self._put(key, None if value is None else string(value))

    def counts(self, key: str, values: Sequence[int]) -> None:
        """A list of signed 32-bit integers, as the converter writes counts of each layer; none if empty."""
        self._put(key, array(MetadataType.INT32, list(values)) if values else None)

    def flags(self, key: str, values: Sequence[bool]) -> None:
        """A list of bools; none if empty."""
        self._put(key, array(MetadataType.BOOL, list(values)) if values else None)

    def numbers(self, key: str, values: Sequence[float]) -> None:
        """A list of 32-bit floats; none if empty."""
        self._put(key, array(MetadataType.FLOAT32, list(values)) if values else None)

    def _put(self, key: str, value: MetadataValue | None) -> None:
        if value is not None:
            self.values[f"{self.architecture}.{key}"] = value


# The names that configs use for one thing; the first that is there counts.
_CONTEXT = (
    "max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length"
)  # fmt: skip
_DENSE_COLUMNS = (
    "prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim"
)  # fmt: skip
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERTS_USED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")
_SCORING = (
    "score_function", "scoring_func", "score_func", "moe_router_activation", "moe_router_activation_func",
    "expert_selection_fn",
)  # fmt: skip
_ROPE_THETA = (
    "global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"
)  # fmt: skip
_LOCAL_ROPE_THETA = (
    "local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq"
)  # fmt: skip
_ROTATED = ("partial_rotary_factor", "rope_pct", "rope_percent")


def stretched_base(keys: Keys, base: float, context: int) -> None:
    """The keys of Hunyuan's `dynamic` rotation: another base, and no scaling beside it."""
    keys.number("rope.freq_base", base)
    keys.text("rope.scaling.type", "none")
    keys.number("rope.scaling.factor", 1)
    keys.count("rope.scaling.original_context_length", context)
    keys.count("context_length", context)


def rope_parameters(config: Config) -> Config:
    """The settings of rotary embeddings in config.json, from either place, under transformers 5's names.

    Up to version 4 transformers wrote `rope_theta` and `partial_rotary_factor` beside an object
    `rope_scaling` with `type` or `rope_type`; since version 5 all is in `rope_parameters`, but `rope_scaling`
    wins where a config has both. Where layers of full and of sliding attention differ, they have sections of
    their own, `full_attention` and `sliding_attention`.
    """
    key = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    section = config.section(key)
    if "full_attention" in section.values or "sliding_attention" in section.values:
        return section
    outer = {
        "sliding_attention": _first(config, _LOCAL_ROPE_THETA),
        "rope_theta": _first(config, _ROPE_THETA),
        "partial_rotary_factor": _first(config, _ROTATED),
        "original_max_position_embeddings": _first(config, ("original_max_position_embeddings",)),
    }
    mirrored: dict[str, object] = {
        name: config.values[key] for name, key in outer.items() if config.values.get(key) is not None
    }
    if "sliding_attention" in mirrored:
        mirrored["sliding_attention"] = {"rope_theta": mirrored["sliding_attention"]}
    if "type" in section.values:
        mirrored["rope_type"] = section.values["type"]
    return section.with_defaults(**mirrored)


def full_attention_rope(config: Config) -> Config:
    """The settings of rotary embeddings of layers with full attention."""
    rope = rope_parameters(config)
    return rope.section("full_attention") if rope.values.get("full_attention") is not None else rope


def rotated_columns(config: Config, head: int, default: float) -> int:
    """Columns of a head that are rotated: its part `partial_rotary_factor`, `default` where there is none."""
    part = rope_parameters(config).optional_number("partial_rotary_factor")
    if part is None:
        part = default
    if not 0 <= part <= 1:
        raise config.wrong("partial_rotary_factor", f"is {part:g}, not a part of one")
    return int(head * part)


def text_keys(keys: Keys, config: Config, *, n_blocks: int | None = None) -> None:
    """Write the keys that all architectures share, as most of them have them.

    `n_blocks` counts the layers, those that predict further tokens included; None for those in config.json.
    """
    heads = _listed_or_count(config, "num_key_value_heads") or _listed_or_count(config, "num_attention_heads")
    base_keys(
        keys,
        config,
        n_blocks=config.count("num_hidden_layers") if n_blocks is None else n_blocks,
        head_dim=config.optional_count("head_dim"),
        n_heads_kv=heads,
    )


def base_keys(
    keys: Keys, config: Config, *, n_blocks: int, head_dim: int | None, n_heads_kv: int | None
) -> None:
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
        Heads of K and V as the cache sees them; None to leave them unwritten.
    """
    keys.count("block_count", n_blocks)
    keys.count("context_length", config.optional_count(_first(config, _CONTEXT)))
    keys.count("embedding_length", config.count("hidden_size"))
    _per_layer(keys, "feed_forward_length", config, _first(config, _DENSE_COLUMNS))
    _per_layer(keys, "attention.head_count", config, "num_attention_heads")
    if n_heads_kv is None or not isinstance(config.values.get("num_key_value_heads"), list):
        keys.count("attention.head_count_kv", n_heads_kv)
    else:
        keys.counts("attention.head_count_kv", config.counts("num_key_value_heads"))
    if config.optional_flag("is_causal") is False:
        keys.flag("attention.causal", False)
    _rope_keys(keys, config)
    keys.number("attention.layer_norm_rms_epsilon", _first_number(config, "rms_norm_eps", "norm_eps"))
    norm_eps = _first_number(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    keys.number("attention.layer_norm_epsilon", norm_eps)
    keys.count("expert_count", config.optional_count(_first(config, _EXPERTS), least=0))
    keys.count("expert_used_count", config.optional_count(_first(config, _EXPERTS_USED), least=0))
    keys.count("expert_group_count", config.optional_count("n_group"))
    keys.count("expert_group_used_count", config.optional_count("topk_group"))
    key = _first(config, _SCORING)
    if (scoring := config.optional_text(key)) is not None:
        if scoring not in GATING:
            raise config.wrong(key, f"is '{shown(scoring)}', not one of {', '.join(GATING)}")
        keys.count("expert_gating_func", GATING[scoring])
    keys.count("attention.key_length", head_dim)
    keys.count("attention.value_length", head_dim)


def _listed_or_count(config: Config, key: str) -> int | None:
    """A count, the largest where each layer has its own; None if it is absent."""
    if isinstance(config.values.get(key), list):
        return max(config.counts(key), default=None)
    return config.optional_count(key)


def _per_layer(keys: Keys, key: str, config: Config, name: str) -> None:
    """Write a count, or a list of them where each layer has its own."""
    if isinstance(config.values.get(name), list):
        keys.counts(key, config.counts(name))
    else:
        keys.count(key, config.optional_count(name))


def n_experts(config: Config) -> int | None:
    """Routed experts of a layer, under any of the names that configs use."""
    return config.optional_count(_first(config, _EXPERTS))


def _first(config: Config, keys: Sequence[str]) -> str:
    """The first of these keys that config.json has; the first of all where it has none."""
    return next((key for key in keys if config.values.get(key) is not None), keys[0])


def _first_number(config: Config, *keys: str) -> float | None:
    return config.optional_number(_first(config, keys))


def _rope_keys(keys: Keys, config: Config) -> None:
    rope = full_attention_rope(config)
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
    outer = rope_parameters(config)
    sections = outer.counts("mrope_section")
    keys.counts("rope.dimension_sections", [*sections, 0, 0, 0, 0][:4] if sections else ())
    keys.number("rope.freq_base", rope.optional_number("rope_theta"))
    keys.number("rope.freq_base_swa", outer.section("sliding_attention").optional_number("rope_theta"))
