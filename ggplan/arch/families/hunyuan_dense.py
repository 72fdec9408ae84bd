"""Hunyuan dense, of 0.5B to 7B: the GGUF architecture `hunyuan-dense`.

The base of rotation follows from `alpha` where the kind of scaling is "dynamic"; the context is then 256k
whatever config.json says. The end of a text is config.json's `eod_token_id`, that of a turn the first of
several that generation_config.json has. Of a folder without tokenizer.json llama.cpp's converter runs the
code (`hy.tiktoken`), which is not done here.

`HunYuanModel` in `conversion/hunyuan.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ggplan.arch.architecture import Architecture, TokenizerRules, head_width
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, rope_parameters, stretched_base, text_keys
from ggplan.arch.tensors import DENSE, Table

_LONG = 256 * 1024
_BASE = 10000.0  # the converter asserts it, and one of the two contexts


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("hunyuan-dense", config)
    tied = config.flag("tie_word_embeddings")
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm self_attn.{query,key}_layernorm"),
            *layout.layer("self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
        ignore=lambda name: tied and name == "lm_head.weight",
    )


def _write_keys(keys: Keys, config: Config) -> None:
    values = {key: value for key, value in config.values.items() if key != "num_experts"}
    text_keys(keys, replace(config, values=values))
    rope = rope_parameters(config)
    if rope.optional_text("rope_type") != "dynamic":
        return
    alpha, base = rope.optional_number("alpha"), rope.optional_number("rope_theta")
    alpha = 50.0 if alpha is None else alpha
    head, context = head_width(config), config.count("max_position_embeddings")
    if (base or _BASE) != _BASE or context not in (_LONG, _LONG // 8) or not 0 < alpha < 1e6 or head < 3:
        raise rope.wrong(
            "alpha",
            f"is {alpha:g}, with a base of {base}, {head} columns in a head and a context of {context}; "
            f"llama.cpp knows a base of {_BASE:g} and a context of {_LONG}",
        )
    stretched_base(keys, _BASE * alpha ** (head / (head - 2)), _LONG)


CLASSES = {
    "HunYuanDenseV1ForCausalLM": Architecture(
        "hunyuan-dense",
        _table,
        _write_keys,
        {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
        TokenizerRules(ends_by_config=True),
    )
}
