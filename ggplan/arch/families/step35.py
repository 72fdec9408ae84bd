"""Step 3.5 Flash and the text part of Step 3.7 Flash: the GGUF architecture `step35`.

Layers with a sliding window have other counts of heads than those with full attention, another base of
rotation, and rotate all of a head, not half. Each head has a gate. A layer's experts are one tensor each of
gate, up and down; a norm's weight is stored less one. The last layers are followed by those that predict
further tokens, which are kept.

`Step35Model` in `conversion/step3.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.families.llama import rope_factors
from ggplan.arch.layout import Layout, n_next_tokens
from ggplan.arch.metadata import Keys, base_keys
from ggplan.arch.tensors import Kinds, Table, TensorSpec, split_numbers
from ggplan.arch.transforms import shifted

_SLIDING, _FULL = "sliding_attention", "full_attention"
_norm = partial(shifted, by=1.0)


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout(
        "step35",
        config,
        M=config.count("moe_intermediate_size"),
        S=config.count("share_expert_dim"),
        X=config.count("moe_num_experts"),
    )
    n, width, columns = layout.sizes["X"], config.count("hidden_size"), config.count("moe_intermediate_size")
    head = config.count("head_dim")
    experts = (("down", (n, width, columns)), ("gate", (n, columns, width)), ("up", (n, columns, width)))
    norms = partial(layout.layer, transform=_norm)
    return Table(
        [
            *layout.outside("model.embed_tokens lm_head?"),
            *layout.outside("model.norm", transform=_norm),
            *norms("input_layernorm"),
            *norms("post_attention_layernorm", to="ffn_norm"),
            *norms("self_attn.{q,k}_norm?", shape=(head,)),
            *_attention(layout, config, _FULL, *_heads(config, _FULL)),
            *_attention(layout, config, _SLIDING, *_heads(config, _SLIDING)),
            *layout.layer("mlp.{gate,up,down}_proj", "dense"),
            *layout.layer("moe.gate", "moe"),
            *layout.parameter("moe.router_bias?", "moe", like="moe.router_bias.bias", shape=(n,)),
            *(
                spec
                for part, shape in experts
                for spec in layout.layer(f"moe.{part}_proj", "moe", shape=shape, bias=False)
            ),
            *layout.layer("share_expert.{down,gate,up}_proj", "moe"),
            *layout.layer("eh_proj", "mtp", shape=(width, 2 * width), bias=False),
            *layout.layer("embed_tokens?", "mtp", bias=False),
            *layout.layer("transformer.shared_head.output?", "mtp", like="shared_head.head", bias=False),
            *norms("transformer.shared_head.norm?", "mtp", like="shared_head.norm"),
            *norms("enorm hnorm", "mtp"),
        ],
        _layers(config, names),
        computed=rope_factors(_with_one_base(config), rotated=head // 2),
    )


def _layers(config: Config, names: Collection[str]) -> list[Kinds]:
    """Of each layer: its attention, whether it has experts, as the names tell, whether it comes after."""
    n_layers = config.layers("num_hidden_layers")
    n_all = n_layers + n_next_tokens(config)
    found = [split_numbers(name) for name in names]
    with_experts = {layer for source, layer, _ in found if source.startswith("model.layers.{}.moe.")}
    kinds = []
    for k, attention in enumerate(_attentions(config, n_all)):
        further = {"mtp"} if k >= n_layers else set()
        kinds.append(frozenset({attention, "moe" if k in with_experts else "dense", *further}))
    return kinds


def _attentions(config: Config, n_layers: int) -> list[str]:
    stated = config.texts("layer_types")
    return [_SLIDING if kind == _SLIDING else _FULL for kind in stated[:n_layers]] + [_FULL] * (
        n_layers - len(stated)
    )


def _heads(config: Config, kind: str) -> tuple[int, int]:
    """Heads of Q, and of K and V."""
    n_heads, n_kv = config.count("num_attention_heads"), config.count("num_attention_groups")
    if kind == _SLIDING:
        other = config.section("attention_other_setting")
        n_heads = other.optional_count("num_attention_heads") or n_heads
        n_kv = other.optional_count("num_attention_groups") or n_kv
    return n_heads, n_kv


def _attention(layout: Layout, config: Config, kind: str, n_heads: int, n_kv: int) -> list[TensorSpec]:
    width, head = config.count("hidden_size"), config.count("head_dim")
    return [
        *layout.layer("self_attn.q_proj", kind, shape=(n_heads * head, width)),
        *layout.layer("self_attn.{k,v}_proj", kind, shape=(n_kv * head, width)),
        *layout.layer("self_attn.o_proj", kind, shape=(width, n_heads * head)),
        *layout.layer("self_attn.g_proj?", kind, shape=(n_heads, width)),
    ]


def _with_one_base(config: Config) -> Config:
    """The config with one base of rotation for each kind of attention, where it has one for each layer."""
    if not isinstance(config.values.get("rope_theta"), list):
        return config
    bases = config.numbers("rope_theta")
    if len(bases) < 2:
        raise config.wrong("rope_theta", f"has {len(bases)} entries")
    return replace(config, values={**config.values, "rope_theta": bases[0], "local_rope_theta": bases[1]})


def _write_keys(keys: Keys, config: Config) -> None:
    config = _with_one_base(config)
    n_next, head = n_next_tokens(config), config.count("head_dim")
    n_blocks = config.count("num_hidden_layers") + n_next
    kinds = _attentions(config, n_blocks)
    rotated = config.numbers("partial_rotary_factors")[:n_blocks]
    rotated += [0.5] * (n_blocks - len(rotated))
    if rotated != [1.0 if kind == _SLIDING else 0.5 for kind in kinds]:
        raise config.wrong("partial_rotary_factors", "is not 1 for sliding and 0.5 for full attention")
    base_keys(keys, config, n_blocks=n_blocks, head_dim=head, n_heads_kv=None)
    keys.counts("attention.head_count", [_heads(config, kind)[0] for kind in kinds])
    keys.counts("attention.head_count_kv", [_heads(config, kind)[1] for kind in kinds])
    keys.count("attention.sliding_window", config.count("sliding_window"))
    keys.flags("attention.sliding_window_pattern", [kind == _SLIDING for kind in kinds])
    keys.count("expert_count", config.count("moe_num_experts"))
    keys.count("expert_used_count", config.count("moe_top_k"))
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    keys.count("expert_shared_feed_forward_length", config.count("share_expert_dim"))
    keys.number("expert_weights_scale", config.optional_number("moe_router_scaling_factor"))
    keys.flag("expert_weights_norm", config.optional_flag("norm_expert_weight"))
    keys.count("leading_dense_block_count", _first_with_experts(config))
    step = config.optional_count("moe_every_n_layer")
    keys.count("moe_every_n_layers", 1 if step is None else step)
    eps = config.optional_number("rms_norm_eps")
    keys.number("attention.layer_norm_rms_epsilon", 1e-5 if eps is None else eps)
    for key, name in (("exp", "swiglu_limits"), ("shexp", "swiglu_limits_shared")):
        keys.numbers(f"swiglu_clamp_{key}", _limits(config, name, n_blocks))
    keys.count("nextn_predict_layers", n_next or None)


def _first_with_experts(config: Config) -> int:
    stated = config.optional_text("moe_layers_enum") or ""
    numbers = [part.strip() for part in stated.split(",")] if stated.strip() else []
    if not all(number.isdecimal() and len(number) < 10 for number in numbers):
        raise config.wrong("moe_layers_enum", "is not a list of layers with commas between")
    return min(map(int, numbers), default=0)


def _limits(config: Config, name: str, n_blocks: int) -> Sequence[float]:
    """The limits of each layer, 0 for none; empty where config.json has no such list."""
    stated = config.values.get(name)
    if not isinstance(stated, list):
        return []
    filled = replace(config, values={name: [0.0 if limit is None else limit for limit in stated]})
    return [*filled.numbers(name), *[0.0] * n_blocks][:n_blocks]


_STEP35 = Architecture("step35", _table, _write_keys, {})

CLASSES = {"Step3p5ForCausalLM": _STEP35, "Step3p7ForConditionalGeneration": _STEP35}
