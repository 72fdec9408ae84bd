"""Hunyuan-A13B: the GGUF architecture `hunyuan-moe`.

All layers have routed experts and a shared one. The base of rotation follows from `alpha` where the kind of
scaling is "dynamic"; the context is then 256k whatever config.json says. llama.cpp's converter reads only the
tokenizer that is code in the folder (`hy.tiktoken`), ggplan only a tokenizer.json.

`HunYuanMoEModel` in `conversion/hunyuan.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, head_width
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, rope_parameters, stretched_base, text_keys
from ggplan.arch.tensors import MOE, Table

_LONG = 256 * 1024
# What the converter asserts of a model with "dynamic" scaling, beside one of the two contexts.
_ALPHA, _BASE, _COLUMNS = 1000, 10000.0, 128


def _table(config: Config, names: Collection[str]) -> Table:
    columns = config.count("intermediate_size")
    layout = Layout("hunyuan-moe", config, M=columns, S=columns)
    tied = config.flag("tie_word_embeddings")
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm self_attn.{query,key}_layernorm"),
            *layout.layer("self_attn.{q,k,v,o}_proj mlp.gate.wg"),
            *layout.layer("mlp.shared_mlp.{gate,up,down}_proj"),
            *layout.experts(names),
        ],
        [MOE] * config.layers("num_hidden_layers"),
        layout.sizes["X"] or 0,
        ignore=lambda name: tied and name == "lm_head.weight",
    )


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    columns = config.count("intermediate_size")
    keys.count("expert_shared_feed_forward_length", columns)
    keys.count("expert_feed_forward_length", _of_all_layers(config, "moe_intermediate_size", columns))
    keys.count("expert_used_count", _of_all_layers(config, "moe_topk", 1))
    keys.count("expert_shared_count", _of_all_layers(config, "num_shared_expert", 1))
    rope = rope_parameters(config)
    if rope.optional_text("rope_type") != "dynamic":
        return
    alpha, base = rope.optional_number("alpha"), rope.optional_number("rope_theta")
    head, context = head_width(config), config.count("max_position_embeddings")
    known = (alpha or _ALPHA, base or _BASE, head) == (_ALPHA, _BASE, _COLUMNS)
    if not known or context not in (_LONG, _LONG // 8):
        raise rope.wrong(
            "alpha",
            f"is {alpha}, with a base of {base}, {head} columns in a head and a context of {context}; "
            f"llama.cpp knows {_ALPHA}, {_BASE:g}, {_COLUMNS} and {_LONG}",
        )
    stretched_base(keys, _BASE * _ALPHA ** (head / (head - 2)), _LONG)


def _of_all_layers(config: Config, key: str, default: int) -> int:
    """A count that config.json may have for each layer, but must be the same in all."""
    if not isinstance(config.values.get(key), list):
        return config.optional_count(key) or default
    found = set(config.counts(key))
    if len(found) != 1:
        raise config.wrong(key, "differs between layers, which llama.cpp does not know")
    return found.pop()


CLASSES = {
    "HunYuanMoEV1ForCausalLM": Architecture(
        "hunyuan-moe",
        _table,
        _write_keys,
        {"max_position_embeddings": 2048, "num_experts": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    )
}
