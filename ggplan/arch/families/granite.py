"""Granite 3 and 4, dense, MoE and hybrid: the GGUF architectures `granite`, `granitemoe` and `granitehybrid`.

As Llama, with multipliers. Gate and up are one tensor, gate first, of all experts and of the shared one,
which is the feed-forward part where there are no others. In hybrid models most layers have a state space
(Mamba 2) in place of attention. Models of that class without such layers are `granite` or `granitemoe`.

`GraniteModel`, `GraniteMoeModel` and `GraniteHybridModel` in `conversion/granite.py` of llama.cpp b11434. The
converter finds attention by the name `attention` alone, for which transformers 5 puts `full_attention`; here
both count.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

from ggplan.arch.architecture import LAYER, Architecture, TokenizerRules, head_width, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.families.llama import LLAMA_TOKENIZER, dense_table, rope_factors
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.state_space import StateSpace, state_space_specs, write_state_space
from ggplan.arch.tensors import MOE, Kinds, Table, TensorSpec
from ggplan.arch.transforms import permuted, rearranged, sliced
from ggplan.errors import CheckpointError

MODELS = {
    "granite": "Granite 3 and 4, dense",
    "granitehybrid": "Granite 4, hybrid",
    "granitemoe": "Granite 3 and 4 with experts",
}

_SSM, _FULL = "ssm", "full"
_TYPES = {"mamba": _SSM, "linear_attention": _SSM, "attention": _FULL, "full_attention": _FULL}


def _dense(config: Config, names: Collection[str]) -> Table:
    return dense_table("granite", _of_tensors(config))


def _moe(config: Config, names: Collection[str]) -> Table:
    layout = Layout("granitemoe", _of_tensors(config))
    layers = [MOE | {_FULL}] * config.layers("num_hidden_layers")
    return Table([*_attention(layout), *_feed_forward(layout)], layers, computed=rope_factors(config))


def _hybrid(config: Config, names: Collection[str]) -> Table:
    kinds = _kinds(config)
    config = _of_tensors(config)
    layout = Layout(_name(kinds, config), config)
    ssm = state_space_specs(layout, _state_space(config), _SSM, f"{LAYER}mamba.") if _SSM in kinds else []
    layers: list[Kinds] = [frozenset({kind}) for kind in kinds]
    specs = [*_attention(layout), *ssm, *_feed_forward(layout)]
    return Table(specs, layers, computed=rope_factors(config))


def _attention(layout: Layout) -> list[TensorSpec]:
    config = layout.config
    of_q = partial(permuted, n_heads=config.count("num_attention_heads"))
    of_k = partial(permuted, n_heads=heads_kv(config))
    return [
        *layout.outside("model.embed_tokens model.norm lm_head?"),
        *layout.layer("input_layernorm post_attention_layernorm"),
        *layout.layer("self_attn.q_proj", _FULL, transform=of_q),
        *layout.layer("self_attn.k_proj", _FULL, transform=of_k),
        *layout.layer("self_attn.v_proj self_attn.o_proj", _FULL),
    ]


def _feed_forward(layout: Layout) -> list[TensorSpec]:
    config = layout.config
    width, n_experts = config.count("hidden_size"), layout.sizes["X"]
    shared = config.optional_count("shared_intermediate_size", least=0) or 0
    specs = []
    if n_experts is not None:
        n = config.count("intermediate_size")
        moe, shape = "block_sparse_moe.", (n_experts, 2 * n, width)
        half = partial(sliced, group=2 * n, length=n)
        gate, up = partial(half, offset=0), partial(half, offset=n)
        specs = [
            *layout.layer(f"{moe}input_linear", shape=shape, transform=gate, to="ffn_gate_exps"),
            *layout.layer(f"{moe}input_linear", shape=shape, transform=up, to="ffn_up_exps"),
            *layout.layer(f"{moe}output_linear", shape=(n_experts, width, n), to="ffn_down_exps"),
            *layout.layer(f"{moe}router.layer", shape=(n_experts, width), to="ffn_gate_inp"),
        ]
    if not shared:
        return specs
    ending = "" if n_experts is None else "_shexp"
    gate, up = (partial(rearranged, runs=[(at, shared)]) for at in (0, shared))
    one, shape_ = "shared_mlp.", (2 * shared, width)
    return [
        *specs,
        *layout.layer(f"{one}input_linear", shape=shape_, transform=gate, to=f"ffn_gate{ending}", bias=False),
        *layout.layer(f"{one}input_linear", shape=shape_, transform=up, to=f"ffn_up{ending}", bias=False),
        *layout.layer(f"{one}output_linear", shape=(width, shared), to=f"ffn_down{ending}", bias=False),
    ]


def _of_tensors(config: Config) -> Config:
    """The config without a width of heads, which the converter ignores too, and without 0 experts."""
    if config.assumed is not None:
        return config
    dropped = {"head_dim"} | ({"num_local_experts"} if config.values.get("num_local_experts") == 0 else set())
    return replace(config, values={key: value for key, value in config.values.items() if key not in dropped})


def _kinds(config: Config) -> list[str]:
    """What each layer has, a state space or attention; one of each where only names are wanted."""
    if config.assumed is not None:
        return [_SSM, _FULL]
    n_layers = config.layers("num_hidden_layers")
    types = config.texts("layer_types") or config.texts("layers_block_type")
    if not types:
        raise CheckpointError(f"{config.where} lacks layer_types")
    if len(types) != n_layers:
        raise config.wrong("layer_types", f"names {len(types)} layers, but num_hidden_layers is {n_layers}")
    if unknown := set(types) - _TYPES.keys():
        raise config.wrong("layer_types", f"has '{min(unknown)}', which llama.cpp does not know")
    return [_TYPES[type_] for type_ in types]


def _name(kinds: Collection[str], config: Config) -> str:
    if _SSM in kinds:
        return "granitehybrid"
    return "granitemoe" if config.optional_count("num_experts_per_tok", least=0) else "granite"


def _state_space(config: Config) -> StateSpace:
    n_heads, n_groups = config.count("mamba_n_heads"), config.count("mamba_n_groups")
    inner = config.count("mamba_expand") * config.count("hidden_size")
    if config.assumed is None and (inner % n_heads or inner % n_groups):
        raise config.wrong("mamba_expand", f"makes {inner} columns, not a multiple of heads and groups")
    kernel = config.count("mamba_d_conv", least=2)
    return StateSpace(n_heads, inner // n_heads, n_groups, config.count("mamba_d_state"), kernel)


def _write_keys(keys: Keys, config: Config) -> None:
    config = replace(config, values={k: v for k, v in config.values.items() if k != "head_dim"})
    text_keys(keys, config)
    keys.count("vocab_size", config.count("vocab_size"))
    keys.count("rope.dimension_count", head_width(config))
    for key, name in (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ):
        keys.number(key, config.optional_number(name) or None)
    shared = config.optional_count("shared_intermediate_size", least=0)
    keys.count("expert_shared_feed_forward_length", shared or None)


def _write_hybrid_keys(keys: Keys, config: Config) -> None:
    _write_keys(keys, config)
    kinds = _kinds(config)
    write_state_space(keys, _state_space(config))
    n_kv = heads_kv(config)
    keys.counts("attention.head_count_kv", [n_kv if kind == _FULL else 0 for kind in kinds])
    keys.flag("rope.scaling.finetuned", _SSM not in kinds)
    if _SSM in kinds:
        keys.count("context_length", 1 << 20)


_DEFAULTS: dict[str, object] = {
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "intermediate_size": 11008,
    "logits_scaling": 1.0,
    "max_position_embeddings": 2048,
    "residual_multiplier": 1.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
_EXPERTS = {**_DEFAULTS, "num_experts_per_tok": 2, "num_local_experts": 8}
_GRANITE_MOE = Architecture("granitemoe", _moe, _write_keys, _EXPERTS, LLAMA_TOKENIZER)
_HYBRID_DEFAULTS = {
    **_DEFAULTS,
    "mamba_d_conv": 4,
    "mamba_d_state": 256,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 128,
    "shared_intermediate_size": 1024,
}
_HYBRID_TOKENIZER = TokenizerRules(sentencepiece=True)
_OF_HYBRID = {
    name: Architecture(name, _hybrid, _write_hybrid_keys, _HYBRID_DEFAULTS, _HYBRID_TOKENIZER)
    for name in ("granite", "granitemoe")
}


def _variant(config: Config) -> Architecture | None:
    return _OF_HYBRID.get(_name(_kinds(config), config))


CLASSES = {
    "GraniteForCausalLM": Architecture("granite", _dense, _write_keys, _DEFAULTS, LLAMA_TOKENIZER),
    "GraniteMoeForCausalLM": _GRANITE_MOE,
    "GraniteMoeHybridForCausalLM": Architecture(
        "granitehybrid", _hybrid, _write_hybrid_keys, _HYBRID_DEFAULTS, _HYBRID_TOKENIZER, variant=_variant
    ),
    "GraniteMoeSharedForCausalLM": replace(
        _GRANITE_MOE, defaults={**_EXPERTS, "shared_intermediate_size": 0}
    ),
}
