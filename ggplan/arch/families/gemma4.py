"""Gemma 4, its text part: the GGUF architecture `gemma4`.

Layers with full attention have wider heads than those with a sliding window, rotate a quarter of them, and
may use K as V. The last layers may share the K and V of earlier ones; hub checkpoints hold theirs
nevertheless, llama.cpp does not use them. Small models have an embedding for each layer, one has experts
beside a dense part; gate and up of a layer's experts stay one tensor.

`Gemma4Model` in `conversion/gemma.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, TokenizerRules, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, base_keys, full_attention_rope, rope_parameters
from ggplan.arch.tensors import Kinds, Table, TensorSpec
from ggplan.arch.transforms import constant
from ggplan.ggml_types import F32
from ggplan.model import TensorInfo

_FULL, _SLIDING = "full_attention", "sliding_attention"
_NEVER = 1e30  # the divisor of a frequency that is not to rotate


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("gemma4", config)
    layers = _kinds(config)
    columns = config.count("intermediate_size")
    wide = 2 * columns if config.flag("use_double_wide_mlp") else columns
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm"),
            *layout.layer("{pre,post}_feedforward_layernorm"),
            *_attention(layout, config, _SLIDING, config.count("head_dim"), heads_kv(config)),
            *_attention(layout, config, _FULL, _full_width(config), _full_heads(config) or heads_kv(config)),
            *_dense(layout, config, "own", columns),
            *_dense(layout, config, "shared", wide),
            *layout.parameter("layer_scalar?", like="layer_scalar.weight", shape=(1,)),
            *(_experts(layout, config) if config.flag("enable_moe_block") else ()),
            *_layer_inputs(layout, config, len(layers)),
        ],
        layers,
        computed=[_rope_factors(config)],
    )


def _kinds(config: Config) -> list[Kinds]:
    """Of each layer: its attention, and whether K and V are its own or another layer's."""
    n_layers = config.layers("num_hidden_layers")
    n_own = n_layers - (config.optional_count("num_kv_shared_layers", least=0) or 0)
    attention = _layer_types(config)
    if len(attention) != n_layers:
        raise config.wrong("layer_types", f"has {len(attention)} entries for {n_layers} layers")
    owned = ["own" if k < n_own else "shared" for k in range(n_layers)]
    return [frozenset({a, o, f"{a} {o}"}) for a, o in zip(attention, owned, strict=True)]


def _layer_types(config: Config) -> list[str]:
    n_layers = config.count("num_hidden_layers")
    stated = config.texts("layer_types") or [_SLIDING if (k + 1) % 6 else _FULL for k in range(n_layers)]
    return [*stated[:-1], _FULL]


def _attention(layout: Layout, config: Config, kind: str, head: int, n_heads_kv: int) -> list[TensorSpec]:
    width, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    k_is_v = kind == _FULL and config.flag("attention_k_eq_v")
    specs = [
        *layout.layer("self_attn.q_proj", kind, shape=(n_heads * head, width)),
        *layout.layer("self_attn.q_norm", kind, shape=(head,)),
        *layout.layer("self_attn.o_proj", kind, shape=(width, n_heads * head)),
    ]
    for owner, mark in (("own", ""), ("shared", "?")):
        modules = [("k_norm", (head,)), ("k_proj", (n_heads_kv * head, width))]
        if not k_is_v:
            modules.append(("v_proj", (n_heads_kv * head, width)))
        for module, shape in modules:
            specs += layout.layer(f"self_attn.{module}{mark}", f"{kind} {owner}", shape=shape)
    return specs


def _dense(layout: Layout, config: Config, kind: str, columns: int) -> list[TensorSpec]:
    width = config.count("hidden_size")
    return [
        *layout.layer("mlp.{gate,up}_proj", kind, shape=(columns, width)),
        *layout.layer("mlp.down_proj", kind, shape=(width, columns)),
    ]


def _experts(layout: Layout, config: Config) -> list[TensorSpec]:
    width, columns, n = config.count("hidden_size"), config.count("moe_intermediate_size"), layout.sizes["X"]
    norms = "pre_feedforward_layernorm_2 post_feedforward_layernorm_1 post_feedforward_layernorm_2"
    return [
        *layout.layer(norms, shape=(width,)),
        *layout.layer("router.proj", bias=False),
        *layout.parameter("router.scale", to="ffn_gate_inp.scale", shape=(width,)),
        *layout.parameter("router.per_expert_scale", to="ffn_down_exps.scale", shape=(n,)),
        *layout.parameter(
            "experts.gate_up_proj", like="experts.gate_up_proj.weight", shape=(n, 2 * columns, width)
        ),
        *layout.parameter("experts.down_proj", like="experts.down_proj.weight", shape=(n, width, columns)),
    ]


def _layer_inputs(layout: Layout, config: Config, n_layers: int) -> list[TensorSpec]:
    """The embedding that each layer has of its own, and what brings it into the layer; not in all models."""
    columns, width = _input_columns(config), config.count("hidden_size")
    if not columns:
        return []
    rows = config.count("vocab_size_per_layer_input")
    return [
        *layout.outside("model.embed_tokens_per_layer", shape=(rows, n_layers * columns)),
        *layout.outside("model.per_layer_model_projection", shape=(n_layers * columns, width)),
        *layout.outside("model.per_layer_projection_norm", shape=(columns,)),
        *layout.layer("per_layer_input_gate", shape=(columns, width)),
        *layout.layer("per_layer_projection", shape=(width, columns)),
        *layout.layer("post_per_layer_input_norm", shape=(width,)),
    ]


def _input_columns(config: Config) -> int:
    return config.optional_count("hidden_size_per_layer_input", least=0) or 0


def _full_width(config: Config) -> int:
    """Columns of a head with full attention, which older configs call `global_head_dim`."""
    return config.optional_count("global_head_dim") or _of_full_layers(config, "head_dim") or 512


def _full_heads(config: Config) -> int | None:
    """Heads of K and V in layers with full attention, where they are not as many as in the others."""
    stated = _of_full_layers(config, "num_key_value_heads")
    older = config.optional_count("num_global_key_value_heads") if config.flag("attention_k_eq_v") else None
    return stated or older


def _of_full_layers(config: Config, key: str) -> int | None:
    """What `per_layer_config` says of the first layer with full attention that it says it of."""
    layers = config.section("per_layer_config")
    for k, kind in enumerate(_layer_types(config)):
        if kind == _FULL and (stated := layers.section(str(k)).optional_count(key)):
            return stated
    return None


def _rope_factors(config: Config) -> TensorInfo:
    """The divisors of frequencies in layers with full attention: the first ones rotate, others do not."""
    rope = full_attention_rope(config)
    if rope.optional_text("rope_type") != "proportional":
        raise rope.wrong("rope_type", "is not 'proportional', the only kind that llama.cpp has here")
    part, width = rope.optional_number("partial_rotary_factor"), _full_width(config)
    if part is None or not 0 <= part <= 1 or width > 65536:
        raise rope.wrong("partial_rotary_factor", f"is {part}, not a part of one")
    n_rotated = int(width * part / 2)
    rows = constant([1.0] * n_rotated + [_NEVER] * (width // 2 - n_rotated))
    return TensorInfo("rope_freqs.weight", rows.shape, F32, "config.json", "F32", rows)


def _write_keys(keys: Keys, config: Config) -> None:
    n_blocks, head = config.count("num_hidden_layers"), config.count("head_dim")
    sliding = [kind == _SLIDING for kind in _layer_types(config)]
    if config.optional_text("use_bidirectional_attention") == "all":
        config = config.with_defaults(is_causal=False)
    base_keys(keys, config, n_blocks=n_blocks, head_dim=head, n_heads_kv=heads_kv(config))
    keys.number("final_logit_softcapping", config.optional_number("final_logit_softcapping") or None)
    keys.count("attention.sliding_window", config.count("sliding_window"))
    n_shared = config.optional_count("num_kv_shared_layers", least=0) or 0
    keys.count("attention.shared_kv_layers", n_shared)
    keys.count("embedding_length_per_layer_input", _input_columns(config))
    keys.flags("attention.sliding_window_pattern", sliding)
    keys.count("attention.key_length", _full_width(config))
    keys.count("attention.value_length", _full_width(config))
    keys.count("attention.key_length_swa", head)
    keys.count("attention.value_length_swa", head)
    keys.count("expert_feed_forward_length", config.optional_count("moe_intermediate_size"))
    if config.flag("use_double_wide_mlp"):
        columns = config.count("intermediate_size")
        keys.counts(
            "feed_forward_length", [columns * (1 + (k >= n_blocks - n_shared)) for k in range(n_blocks)]
        )
    if full := _full_heads(config):
        keys.counts("attention.head_count_kv", [heads_kv(config) if s else full for s in sliding])
    part = rope_parameters(config).optional_number("partial_rotary_factor")
    keys.count("rope.dimension_count", _full_width(config))
    keys.count("rope.dimension_count_swa", int(head * (1.0 if part is None else part)))


_DEFAULTS: dict[str, object] = {
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        _SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    },
    "sliding_window": 512,
    "vocab_size": 262144,
}
_INPUTS = {"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262144}
_TOKENIZER = TokenizerRules(gemma4=True)
_GEMMA4 = Architecture("gemma4", _table, _write_keys, _DEFAULTS | _INPUTS, _TOKENIZER)
_UNIFIED = Architecture(
    "gemma4",
    _table,
    _write_keys,
    _DEFAULTS | {"max_position_embeddings": 262144, "sliding_window": 1024},
    _TOKENIZER,
    suppresses=True,
)

CLASSES = {
    "Gemma4ForCausalLM": _GEMMA4,
    "Gemma4ForConditionalGeneration": _GEMMA4,
    "Gemma4UnifiedForConditionalGeneration": _UNIFIED,
}
