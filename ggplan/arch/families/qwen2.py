"""Qwen1.5, Qwen2 and Qwen2.5: the GGUF architecture `qwen2`.

Q, K and V have biases. `Qwen2Model` in `conversion/qwen.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, TokenizerRules
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import text_keys
from ggplan.arch.tensors import DENSE, Table


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("qwen2", config)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj"),
            *layout.layer("self_attn.o_proj post_attention_layernorm"),
            *layout.layer("mlp.gate_proj mlp.up_proj mlp.down_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
    )


_QWEN2 = Architecture(
    "qwen2",
    _table,
    text_keys,
    {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    TokenizerRules(sentencepiece=True),
)

CLASSES = {"Qwen2ForCausalLM": _QWEN2, "Qwen2Model": _QWEN2}
