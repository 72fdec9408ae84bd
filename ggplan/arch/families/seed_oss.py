"""Seed-OSS: the GGUF architecture `seed_oss`.

`SeedOssModel` in `conversion/olmo.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import text_keys
from ggplan.arch.tensors import DENSE, Table


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("seed_oss", config)
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("input_layernorm post_attention_layernorm"),
            *layout.layer("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"),
            *layout.layer("mlp.gate_proj mlp.up_proj mlp.down_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
    )


CLASSES = {
    "SeedOssForCausalLM": Architecture(
        "seed_oss",
        _table,
        text_keys,
        {
            "head_dim": 128,
            "max_position_embeddings": 524288,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
        },
    )
}
