"""Qwen3-VL and Qwen3-VL-MoE, their text part: the GGUF architectures `qwen3vl` and `qwen3vlmoe`.

As Qwen3, with M-RoPE and the number of layers that take features of the image. The experts of a layer are
one tensor, published transposed: `gate_up_proj` (experts, width, 2 n), gate first, and `down_proj`
(experts, n, width). transformers 5 saves them as they are in other models. The converter transposes those
too, which llama.cpp cannot load; here the shapes tell, one of them alone where width is n or 2 n.

`Qwen3VLTextModel` and `Qwen3VLMoeTextModel` in `conversion/qwen3vl.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from ggplan.arch.architecture import Architecture, TokenizerRules
from ggplan.arch.config import Config
from ggplan.arch.families.qwen3 import require_experts_everywhere
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import DENSE, MOE, Table, TensorSpec
from ggplan.arch.transforms import sliced, transposed_slices
from ggplan.model import RowSource

MODELS = {
    "qwen3vl": "Qwen3-VL, its text part",
    "qwen3vlmoe": "Qwen3-VL-MoE, its text part",
}


def _dense(config: Config, names: Collection[str]) -> Table:
    layout = Layout("qwen3vl", config)
    return Table(
        [*_common(layout), *layout.layer("mlp.{gate,up,down}_proj")],
        [DENSE] * config.layers("num_hidden_layers"),
    )


def _moe(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Table:
    require_experts_everywhere(config, "qwen3vlmoe")
    layout = Layout("qwen3vlmoe", config)
    n, columns, width = (
        layout.sizes["X"],
        config.count("moe_intermediate_size"),
        config.count("hidden_size"),
    )
    transposed = {
        ".mlp.experts.down_proj": (n, columns, width),
        ".mlp.experts.gate_up_proj": (n, width, 2 * columns),
    }
    found = [
        shape == expected
        for name, shape in shapes.items()
        for part, expected in transposed.items()
        if part in name
    ]
    is_transposed = bool(found) and all(found)
    experts = _transposed_experts(layout, config, shapes) if is_transposed else layout.experts(shapes)
    return Table(
        [*_common(layout), *layout.layer("mlp.gate"), *experts],
        [MOE] * config.layers("num_hidden_layers"),
        layout.sizes["X"] or 0,
    )


def _common(layout: Layout) -> list[TensorSpec]:
    return [
        *layout.outside("model.embed_tokens model.norm lm_head?"),
        *layout.layer("{input,post_attention}_layernorm self_attn.{q,k}_norm"),
        *layout.layer("self_attn.{q,k,v,o}_proj"),
    ]


def _transposed_experts(layout: Layout, config: Config, names: Collection[str]) -> list[TensorSpec]:
    n, width, columns = layout.sizes["X"], config.count("hidden_size"), config.count("moe_intermediate_size")
    suffix = ".weight" if any(name.endswith(".experts.gate_up_proj.weight") for name in names) else ""
    experts = "mlp.experts."

    def half(source: RowSource, offset: int) -> RowSource:
        return sliced(transposed_slices(source, width, width), 2 * columns, offset, columns)

    specs = []
    for k, part in enumerate(("gate_proj", "up_proj")):
        specs += layout.parameter(
            f"{experts}gate_up_proj{suffix}",
            like=f"{experts}{part}.weight",
            shape=(n, width, 2 * columns),
            transform=partial(half, offset=k * columns),
        )
    return specs + layout.parameter(
        f"{experts}down_proj{suffix}",
        like=f"{experts}down_proj.weight",
        shape=(n, columns, width),
        transform=partial(transposed_slices, group=columns, length=columns),
    )


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    _write_stack(keys, config)


def _write_moe_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    keys.count(
        "expert_shared_feed_forward_length", config.optional_count("shared_expert_intermediate_size", least=0)
    )
    _write_stack(keys, config)


def _write_stack(keys: Keys, config: Config) -> None:
    indexes = config.section("vision_config").counts("deepstack_visual_indexes")
    keys.count("n_deepstack_layers", len(indexes))


_DEFAULTS = {"max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "rope_theta": 500000.0}

CLASSES = {
    "Qwen3VLForConditionalGeneration": Architecture(
        "qwen3vl",
        _dense,
        _write_keys,
        {**_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128},
        TokenizerRules(sentencepiece=True),
    ),
    "Qwen3VLMoeForConditionalGeneration": Architecture(
        "qwen3vlmoe",
        _moe,
        _write_moe_keys,
        {
            **_DEFAULTS,
            "moe_intermediate_size": 1408,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "num_key_value_heads": 16,
        },
    ),
}
