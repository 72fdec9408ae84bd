"""Gemma 1, CodeGemma and Gemma 2: the GGUF architectures `gemma` and `gemma2`.

A norm's weight is stored less one, and the embedding is the output matrix too. Gemma 2 has norms before and
after both parts of a layer, limits its logits by a tanh, and attends to a sliding window in every other
layer, which llama.cpp knows. Both have no keys of rotation: llama.cpp takes its own base.

`GemmaModel` and `Gemma2Model` in `conversion/gemma.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from ggplan.arch.architecture import Architecture, TokenizerRules, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys
from ggplan.arch.tensors import DENSE, Table
from ggplan.arch.transforms import shifted

MODELS = {
    "gemma": "Gemma 1 and CodeGemma",
    "gemma2": "Gemma 2",
}

_BOTH_NORMS = "{input,post_attention}_layernorm"
_MORE_NORMS = "pre_feedforward_layernorm post_feedforward_layernorm"


def _table(config: Config, names: Collection[str], name: str, norms: str) -> Table:
    layout, plus_one = Layout(name, config), partial(shifted, by=1.0)
    return Table(
        [
            *layout.outside("model.embed_tokens"),
            *layout.outside("model.norm", transform=plus_one),
            *layout.layer(norms, transform=plus_one),
            *layout.layer("self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
        ignore=lambda name: name == "lm_head.weight",  # llama.cpp takes the embedding
    )


def _write_keys(keys: Keys, config: Config) -> None:
    keys.count("context_length", config.count("max_position_embeddings"))
    keys.count("embedding_length", config.count("hidden_size"))
    keys.count("block_count", config.count("num_hidden_layers"))
    keys.count("feed_forward_length", config.count("intermediate_size"))
    keys.count("attention.head_count", config.count("num_attention_heads"))
    keys.count("attention.head_count_kv", heads_kv(config))
    keys.number("attention.layer_norm_rms_epsilon", config.optional_number("rms_norm_eps"))
    keys.count("attention.key_length", config.count("head_dim"))
    keys.count("attention.value_length", config.count("head_dim"))


def _write_keys_of_2(keys: Keys, config: Config) -> None:
    _write_keys(keys, config)
    keys.number("attn_logit_softcapping", config.optional_number("attn_logit_softcapping"))
    keys.number("final_logit_softcapping", config.optional_number("final_logit_softcapping"))
    keys.count("attention.sliding_window", config.count("sliding_window"))


_SIZES = {"head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "vocab_size": 256000}
_EOT = 107

CLASSES = {
    "GemmaForCausalLM": Architecture(
        "gemma",
        partial(_table, name="gemma", norms=_BOTH_NORMS),
        _write_keys,
        {**_SIZES, "num_attention_heads": 16, "num_key_value_heads": 16},
        TokenizerRules(sentencepiece=True, space_prefix=False, fixed_ids={"eot": _EOT}),
    ),
    "Gemma2ForCausalLM": Architecture(
        "gemma2",
        partial(_table, name="gemma2", norms=f"{_BOTH_NORMS} {_MORE_NORMS}"),
        _write_keys_of_2,
        {
            **_SIZES,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
        },
        TokenizerRules(sentencepiece=True, space_prefix=False),
    ),
}
