"""gpt-oss 20B and 120B: the GGUF architecture `gpt-oss`.

A layer's experts are one tensor. In bf16 they are stored transposed, (experts, inputs, outputs), in MXFP4 as
a linear layer's weight; in both, the even rows of `gate_up_proj` are those of gate and the odd ones those of
up. All matrices have biases, and each head of attention has a sink. The converter writes MXFP4 tensors first.

`GptOssModel` in `conversion/gpt_oss.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import MOE, Table, TensorSpec
from ggplan.arch.transforms import every, every_column, transposed_slices
from ggplan.model import RowSource

_EXPERTS = "mlp.experts."


def _table(config: Config, names: Collection[str]) -> Table:
    n_columns = config.count("intermediate_size")
    layout = Layout("gpt-oss", config, M=n_columns)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm"),
            *layout.layer("self_attn.{q,k,v,o}_proj"),
            *layout.parameter("self_attn.sinks", like="self_attn.sinks.weight", shape=(_heads(config),)),
            *layout.layer("mlp.router"),
            *_experts(layout, config, names),
        ],
        [MOE] * config.layers("num_hidden_layers"),
        is_first=lambda name: name.endswith(
            (_EXPERTS + "gate_up_proj.weight", _EXPERTS + "down_proj.weight")
        ),
    )


def _experts(layout: Layout, config: Config, names: Collection[str]) -> list[TensorSpec]:
    n, width, columns = layout.sizes["X"], config.count("hidden_size"), config.count("intermediate_size")
    as_stored = any(name.endswith(_EXPERTS + "gate_up_proj.weight") for name in names)
    suffix = ".weight" if as_stored else ""
    shapes = [(n, 2 * columns, width), (n, width, columns)]
    if not as_stored:
        shapes = [(n, width, 2 * columns), (n, columns, width)]

    def rows(source: RowSource, group: int) -> RowSource:
        return source if as_stored else transposed_slices(source, group, group)

    def part(source: RowSource, offset: int) -> RowSource:
        return every(rows(source, width), 2, offset)

    specs = []
    for k, name in enumerate(("gate_proj", "up_proj")):
        like, one = _EXPERTS + name, partial(part, offset=k)
        specs += layout.parameter(
            f"{_EXPERTS}gate_up_proj{suffix}", like=f"{like}.weight", shape=shapes[0], transform=one
        )
        specs += layout.parameter(
            _EXPERTS + "gate_up_proj_bias",
            like=f"{like}.bias",
            shape=(n, 2 * columns),
            transform=partial(every_column, step=2, offset=k),
        )
    return [
        *specs,
        *layout.parameter(
            f"{_EXPERTS}down_proj{suffix}",
            like=_EXPERTS + "down_proj.weight",
            shape=shapes[1],
            transform=partial(rows, group=columns),
        ),
        *layout.parameter(_EXPERTS + "down_proj_bias", like=_EXPERTS + "down_proj.bias", shape=(n, width)),
    ]


def _heads(config: Config) -> int:
    return config.count("num_attention_heads")


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.count("attention.sliding_window", config.count("sliding_window"))
    keys.count("expert_feed_forward_length", config.count("intermediate_size"))


CLASSES = {
    "GptOssForCausalLM": Architecture(
        "gpt-oss",
        _table,
        _write_keys,
        {
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "num_experts_per_tok": 4,
            "num_key_value_heads": 8,
            "num_local_experts": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 4096,
            },
            "sliding_window": 128,
        },
    )
}
