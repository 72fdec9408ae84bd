"""Qwen3-Next: the GGUF architecture `qwen3next`.

Three of four layers have linear attention (a gated delta net) in place of attention, whose Q brings the rows
of a gate with it, head by head. A norm's weight is stored less one, but that of linear attention. Q, K, V and
the gate Z of linear attention are one matrix, in groups of one head of K; the GGUF has all of Q, K and V in
one matrix, and Z in another. Layers that predict further tokens are stored as `mtp.`.

`Qwen3NextModel` and `_QwenMtpMixin` in `conversion/qwen.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from ggplan.arch.architecture import Architecture, head_width
from ggplan.arch.config import Config
from ggplan.arch.families.qwen3 import require_experts_everywhere
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, rotated_columns, text_keys
from ggplan.arch.tensors import Kinds, Table, TensorSpec
from ggplan.arch.transforms import decay, rearranged, reshaped, shifted
from ggplan.model import RowSource

LINEAR, FULL = "linear", "full"
_LINEAR_ATTENTION, _FULL_ATTENTION = "linear_attention", "full_attention"
_MTP = "model.mtp."
_NEXT = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}
# Makes the runs of rows that a tensor is rearranged to; None where it is not.
RunsOfHeads = Callable[[], list[tuple[int, int]]] | None
plus_one = partial(shifted, by=1.0)


def _table(config: Config, names: Collection[str]) -> Table:
    require_experts_everywhere(config, "qwen3next")
    layout = Layout("qwen3next", config)
    n_k, n_v, of_k, of_v = linear_heads(config)
    width = config.count("hidden_size")
    per_k = n_v // n_k * of_v
    group = 2 * (of_k + per_k)

    def qkv(source: RowSource) -> RowSource:
        parts = ((0, of_k), (of_k, of_k), (2 * of_k, per_k))
        return rearranged(source, [(k * group + at, n) for at, n in parts for k in range(n_k)])

    def z(source: RowSource) -> RowSource:
        return rearranged(source, [(k * group + 2 * of_k + per_k, per_k) for k in range(n_k)])

    mixed, shape = "linear_attn.in_proj_qkvz", (n_k * group, width)
    return Table(
        [
            *common_specs(layout),
            *linear_specs(layout),
            *layout.layer(mixed, LINEAR, shape=shape, transform=qkv, to="attn_qkv", bias=False),
            *layout.layer(mixed, LINEAR, shape=shape, transform=z, to="attn_gate", bias=False),
            *layout.layer("linear_attn.in_proj_ba", LINEAR, shape=(2 * n_v, width), bias=False),
            *layout.layer("linear_attn.out_proj", LINEAR, shape=(width, n_v * of_v), bias=False),
            *expert_specs(layout, names),
        ],
        layer_kinds(config, "moe"),
        layout.sizes["X"] or 0,
    )


def common_specs(layout: Layout) -> list[TensorSpec]:
    """What is outside the layers, their norms, full attention, and what `mtp.` has once."""
    config = layout.config
    head, width = head_width(config), config.count("hidden_size")
    gated = (2 * head * config.count("num_attention_heads"), width)
    return [
        *layout.outside("model.embed_tokens lm_head?"),
        *layout.outside("model.norm", transform=plus_one),
        *layout.layer("input_layernorm post_attention_layernorm", transform=plus_one),
        *layout.layer("self_attn.q_norm self_attn.k_norm", FULL, transform=plus_one),
        *layout.layer("self_attn.q_proj", FULL, shape=gated),
        *layout.layer("self_attn.k_proj self_attn.v_proj self_attn.o_proj", FULL),
        *layout.layer("eh_proj", "next", shape=(width, 2 * width), bias=False),
        *layout.layer("enorm hnorm shared_head.norm?", "next", transform=plus_one, bias=False),
    ]


def linear_specs(layout: Layout, runs: RunsOfHeads = None, channels: RunsOfHeads = None) -> list[TensorSpec]:
    """The small tensors of linear attention.

    Parameters
    ----------
    layout
        Of the family.
    runs, channels
        The order of the heads of V, and of the channels of the convolution; None for that of the checkpoint.
    """
    n_k, n_v, of_k, of_v = linear_heads(layout.config)
    n_channels, kernel = 2 * n_k * of_k + n_v * of_v, layout.config.count("linear_conv_kernel_dim", least=2)

    def heads(source: RowSource) -> RowSource:
        return source if runs is None else rearranged(source, runs())

    def without_middle(source: RowSource) -> RowSource:
        kernels = reshaped(source, (n_channels, kernel))
        return kernels if channels is None else rearranged(kernels, channels())

    linear = "linear_attn."
    return [
        *layout.parameter(
            f"{linear}A_log", LINEAR, shape=(n_v,), transform=lambda source: heads(decay(source))
        ),
        *layout.parameter(
            f"{linear}dt_bias", LINEAR, shape=(n_v,), transform=heads, like=f"{linear}dt_proj.bias"
        ),
        *layout.layer(
            f"{linear}conv1d", LINEAR, shape=(n_channels, 1, kernel), transform=without_middle, bias=False
        ),
        *layout.layer(f"{linear}norm", LINEAR, shape=(of_v,), bias=False),
    ]


def expert_specs(layout: Layout, names: Collection[str]) -> list[TensorSpec]:
    """Routed experts and a shared one with a gate of its own; `mtp.` may store them in another way."""
    of_mtp = [name for name in names if _layer(name) >= layout.config.count("num_hidden_layers")]
    shared = "mlp.shared_expert."
    return [
        *layout.layer("mlp.gate mlp.shared_expert_gate"),
        *layout.layer(f"{shared}gate_proj {shared}up_proj {shared}down_proj"),
        *layout.experts(set(names) - set(of_mtp), kind="moe"),
        *layout.experts(of_mtp, kind="of_mtp"),
    ]


def linear_heads(config: Config) -> tuple[int, int, int, int]:
    """Heads of K and of V in linear attention, and the columns of one of each."""
    n_k, n_v = config.count("linear_num_key_heads"), config.count("linear_num_value_heads")
    if n_v % n_k:
        raise config.wrong(
            "linear_num_value_heads", f"is {n_v}, not a multiple of linear_num_key_heads, {n_k}"
        )
    return n_k, n_v, config.count("linear_key_head_dim"), config.count("linear_value_head_dim")


def layer_kinds(config: Config, feed_forward: str) -> list[Kinds]:
    """The kinds of all layers, whose feed-forward part is "dense" or "moe"."""
    kinds = {True: frozenset({LINEAR, feed_forward}), False: frozenset({FULL, feed_forward})}
    n_next = n_next_tokens(config)
    of_next = {FULL, "mtp", "dense" if feed_forward == "dense" else "of_mtp"}
    rest = [frozenset(of_next | ({"next"} if k == 0 else set())) for k in range(n_next)]
    return [*(kinds[recurrent] for recurrent in _recurrent(config)), *rest]


def n_next_tokens(config: Config) -> int:
    """Layers that predict further tokens."""
    return (
        config.layers("mtp_num_hidden_layers", least=0) if config.values.get("mtp_num_hidden_layers") else 0
    )


def _recurrent(config: Config) -> list[bool]:
    """Whether each layer has linear attention."""
    n_layers = config.layers("num_hidden_layers")
    types = config.texts("layer_types")
    if not types:
        every = config.optional_count("full_attention_interval") or 4
        return [(k + 1) % every != 0 for k in range(n_layers)]
    if len(types) != n_layers:
        raise config.wrong("layer_types", f"names {len(types)} layers, but num_hidden_layers is {n_layers}")
    if unknown := set(types) - {_LINEAR_ATTENTION, _FULL_ATTENTION}:
        raise config.wrong("layer_types", f"has {min(unknown)!r}, which llama.cpp does not know here")
    return [type_ == _LINEAR_ATTENTION for type_ in types]


def write_keys(keys: Keys, config: Config) -> None:
    """Write the keys; those of experts where config.json has experts."""
    n_next = n_next_tokens(config)
    text_keys(keys, config, n_blocks=config.count("num_hidden_layers") + n_next)
    keys.count("expert_feed_forward_length", config.optional_count("moe_intermediate_size"))
    keys.count(
        "expert_shared_feed_forward_length", config.optional_count("shared_expert_intermediate_size", least=0)
    )
    keys.count("nextn_predict_layers", n_next or None)
    n_k, n_v, of_k, of_v = linear_heads(config)
    keys.count("ssm.conv_kernel", config.count("linear_conv_kernel_dim"))
    keys.count("ssm.state_size", of_k)
    keys.count("ssm.group_count", n_k)
    keys.count("ssm.time_step_rank", n_v)
    keys.count("ssm.inner_size", of_v * n_v)
    keys.flags("attention.recurrent_layers", [*_recurrent(config), *[False] * n_next])
    # transformers takes the interval out of a config whose types of layers it makes of it.
    interval = config.optional_count("full_attention_interval") if config.texts("layer_types") else None
    keys.count("full_attention_interval", interval or 4)
    keys.count("rope.dimension_count", rotated_columns(config, head_width(config), 0.25))


def rename(config: Config, name: str) -> str:
    """The name of a tensor of `mtp.` as that of a layer after the others."""
    if not name.startswith(_MTP):
        return name
    n_layers = config.count("num_hidden_layers")
    first, _, rest = name.removeprefix(_MTP).partition(".")
    number, _, last = rest.partition(".")
    if first == "layers" and number.isdecimal() and len(number) < 6 and last:
        return f"model.layers.{n_layers + int(number)}.{last}"
    return f"model.layers.{n_layers}.{_NEXT[first]}.{rest}" if first in _NEXT else name


def published(name: str, first: int) -> str:
    """The name of a tensor of `mtp.`, of which the layers are from `first` on."""
    number = _layer(name)
    if number < first:
        return name
    last = name.removeprefix("model.layers.").partition(".")[2]
    own = {new: old for old, new in _NEXT.items()}
    module, _, ending = last.rpartition(".")
    return f"mtp.{own[module]}.{ending}" if module in own else f"mtp.layers.{number - first}.{last}"


def counted(config: Config, names: Collection[str]) -> dict[str, int]:
    """The layers that predict further tokens, which config.json need not count.

    transformers drops them but not their count; llama.cpp cannot load what the converter makes of that.
    """
    n_layers = config.count("num_hidden_layers")
    there = max(0, *(_layer(name) - n_layers + 1 for name in names), 0)
    stated = config.optional_count("mtp_num_hidden_layers", least=0)
    return {"mtp_num_hidden_layers": (stated or there) if there else 0}


def _layer(name: str) -> int:
    """The layer that a tensor is in; -1 for one outside."""
    number = name.removeprefix("model.layers.").partition(".")[0]
    return int(number) if name.startswith("model.layers.") and number.isdecimal() and len(number) < 10 else -1


LINEAR_DEFAULTS: dict[str, object] = {
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
CLASSES = {
    "Qwen3NextForCausalLM": Architecture(
        "qwen3next",
        _table,
        write_keys,
        {
            **LINEAR_DEFAULTS,
            "intermediate_size": 5632,
            "moe_intermediate_size": 512,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "shared_expert_intermediate_size": 512,
        },
        rename=rename,
        published=published,
        counted=counted,
    )
}
