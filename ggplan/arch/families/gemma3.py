"""Gemma 3: the GGUF architecture `gemma3`.

A norm's weight is stored less one. Five of six layers attend to a sliding window, with another base of
rotation; llama.cpp knows which.

`Gemma3Model` in `conversion/gemma.py` of llama.cpp b11434. Where there is no `tokenizer.model`, that cuts the
embedding down to the tokens of `tokenizer.json` but keeps the list of tokens, which llama.cpp cannot load;
here the embedding keeps all rows.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from ggplan.arch.architecture import Architecture, TokenizerRules
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import DENSE, Table
from ggplan.arch.transforms import shifted


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("gemma3", config)
    plus_one = partial(shifted, by=1.0)
    return Table(
        [
            *layout.outside("model.embed_tokens lm_head?"),
            *layout.outside("model.norm", transform=plus_one),
            *layout.layer("{input,post_attention}_layernorm", transform=plus_one),
            *layout.layer("pre_feedforward_layernorm post_feedforward_layernorm", transform=plus_one),
            *layout.layer("self_attn.{q,k}_norm", transform=plus_one),
            *layout.layer("self_attn.{q,k,v,o}_proj"),
            *layout.layer("mlp.{gate,up,down}_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
    )


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.number("final_logit_softcapping", config.optional_number("final_logit_softcapping") or None)
    if config.optional_count("sliding_window_pattern", least=0) != 1:
        keys.count("attention.sliding_window", config.count("sliding_window"))


_GEMMA3 = Architecture(
    "gemma3",
    _table,
    _write_keys,
    {
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "vocab_size": 262208,
    },
    TokenizerRules(sentencepiece=True, space_prefix=False),
)

CLASSES = {"Gemma3ForCausalLM": _GEMMA3, "Gemma3ForConditionalGeneration": _GEMMA3}
