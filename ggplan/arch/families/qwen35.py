"""Qwen3.5 and Qwen3.6, dense and MoE, their text part: the GGUF architectures `qwen35` and `qwen35moe`.

As Qwen3-Next, but Q, K and V of linear attention are one matrix in that order, and Z, alpha and beta have one
each. The heads of V are in groups, those of one head of K side by side; the GGUF has the first of each group
before the second of each: rows of V, Z, alpha and beta move, channels of the convolution, and columns of the
output.

`Qwen3_5TextModel`, `Qwen3_5MoeTextModel` and `_LinearAttentionVReorderBase` in `conversion/qwen.py` of
llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.families.qwen3next import (
    LINEAR,
    LINEAR_DEFAULTS,
    common_specs,
    counted,
    expert_specs,
    layer_kinds,
    linear_heads,
    linear_specs,
    published,
    rename,
    write_keys,
)
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, rope_parameters
from ggplan.arch.tensors import Table, TensorSpec
from ggplan.arch.transforms import plain, rearranged, rearranged_columns, tiled
from ggplan.model import RowSource

MODELS = {
    "qwen35": "Qwen3.5 and Qwen3.6, dense, their text part",
    "qwen35moe": "Qwen3.5 and Qwen3.6 with experts, their text part",
}

# The columns rotated by time, height and width where config.json has none.
_SECTIONS = (11, 11, 10, 0)


def _dense(config: Config, names: Collection[str]) -> Table:
    layout = Layout("qwen35", config)
    specs = layout.layer("mlp.gate_proj mlp.up_proj mlp.down_proj")
    return Table([*_attention(layout), *specs], layer_kinds(config, "dense"))


def _moe(config: Config, names: Collection[str]) -> Table:
    layout = Layout("qwen35moe", config)
    specs = [*_attention(layout), *expert_specs(layout, names)]
    return Table(specs, layer_kinds(config, "moe"), layout.sizes["X"] or 0)


def _attention(layout: Layout) -> list[TensorSpec]:
    n_k, n_v, of_k, of_v = linear_heads(layout.config)
    width, n_qk, n_of_v = layout.config.count("hidden_size"), 2 * n_k * of_k, n_v * of_v
    # Made when a tensor of that many rows is there, since the numbers may be anything.
    heads = partial(tiled, 0, n_k, n_v // n_k, 1)
    rows = partial(tiled, 0, n_k, n_v // n_k, of_v)

    def channels() -> list[tuple[int, int]]:
        return [(0, n_qk), *tiled(n_qk, n_k, n_v // n_k, of_v)]

    def qkv(source: RowSource) -> RowSource:
        return rearranged(source, channels())

    def by_rows(source: RowSource) -> RowSource:
        return rearranged(source, rows())

    def by_heads(source: RowSource) -> RowSource:
        return rearranged(source, heads())

    def by_columns(source: RowSource) -> RowSource:
        return rearranged_columns(source, rows())

    moved = n_k != n_v
    linear, shape = "linear_attn.", (n_v, width)
    return [
        *common_specs(layout),
        *linear_specs(layout, *((heads, channels) if moved else ())),
        *layout.layer(
            f"{linear}in_proj_qkv", LINEAR, shape=(n_qk + n_of_v, width), transform=qkv if moved else plain
        ),
        *layout.layer(
            f"{linear}in_proj_z", LINEAR, shape=(n_of_v, width), transform=by_rows if moved else plain
        ),
        *layout.layer(
            f"{linear}in_proj_a {linear}in_proj_b",
            LINEAR,
            shape=shape,
            transform=by_heads if moved else plain,
        ),
        *layout.layer(
            f"{linear}out_proj",
            LINEAR,
            shape=(width, n_of_v),
            transform=by_columns if moved else plain,
            bias=False,
        ),
    ]


def _write_keys(keys: Keys, config: Config) -> None:
    write_keys(keys, config)
    if "mrope_section" not in rope_parameters(config).values:
        keys.counts("rope.dimension_sections", _SECTIONS)


_DENSE = Architecture(
    "qwen35",
    _dense,
    _write_keys,
    {**LINEAR_DEFAULTS, "intermediate_size": 12288, "num_key_value_heads": 4},
    rename=rename,
    published=published,
    counted=counted,
)
_MOE = Architecture(
    "qwen35moe",
    _moe,
    _write_keys,
    {
        **LINEAR_DEFAULTS,
        "moe_intermediate_size": 512,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "shared_expert_intermediate_size": 512,
    },
    rename=rename,
    published=published,
    counted=counted,
)

CLASSES = {
    "Qwen3_5ForCausalLM": _DENSE,
    "Qwen3_5ForConditionalGeneration": _DENSE,
    "Qwen3_5MoeForCausalLM": _MOE,
    "Qwen3_5MoeForConditionalGeneration": _MOE,
}
