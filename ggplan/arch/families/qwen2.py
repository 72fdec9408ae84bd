"""Qwen1.5, Qwen2, Qwen2.5 and their VL: the GGUF architectures `qwen2` and `qwen2vl`.

Q, K and V have biases. The models that see have M-RoPE.

`Qwen2Model` in `conversion/qwen.py`, `Qwen2VLModel` in `conversion/qwenvl.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, TokenizerRules
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import text_keys
from ggplan.arch.tensors import DENSE, Table

MODELS = {
    "qwen2": "Qwen1.5, Qwen2 and Qwen2.5",
    "qwen2vl": "Qwen2-VL and Qwen2.5-VL, their text part",
}


def _table(config: Config, names: Collection[str]) -> Table:
    return _table_of("qwen2", config)


def _seeing_table(config: Config, names: Collection[str]) -> Table:
    return _table_of("qwen2vl", config)


def _table_of(architecture: str, config: Config) -> Table:
    layout = Layout(architecture, config)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("input_layernorm self_attn.{q,k,v}_proj"),
            *layout.layer("self_attn.o_proj post_attention_layernorm"),
            *layout.layer("mlp.{gate,up,down}_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
    )


_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
_TOKENIZER = TokenizerRules(sentencepiece=True)
_QWEN2 = Architecture("qwen2", _table, text_keys, _DEFAULTS, _TOKENIZER)
_QWEN2_VL = Architecture(
    "qwen2vl",
    _seeing_table,
    text_keys,
    _DEFAULTS | {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0},
    _TOKENIZER,
)

CLASSES = {
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2Model": _QWEN2,
    "Qwen2VLForConditionalGeneration": _QWEN2_VL,
    "Qwen2_5_VLForConditionalGeneration": _QWEN2_VL,
}
