"""SmolLM3: the GGUF architecture `smollm3`.

As Llama; every fourth layer has no rotation, which llama.cpp knows.

`SmolLM3Model` in `conversion/llama.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, head_width
from ggplan.arch.config import Config
from ggplan.arch.families.llama import LLAMA_TOKENIZER, dense_table
from ggplan.arch.metadata import Keys, text_keys
from ggplan.arch.tensors import Table


def _table(config: Config, names: Collection[str]) -> Table:
    return dense_table("smollm3", config)


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.count("vocab_size", config.count("vocab_size"))
    keys.count("rope.dimension_count", head_width(config))


CLASSES = {
    "SmolLM3ForCausalLM": Architecture(
        "smollm3",
        _table,
        _write_keys,
        {
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 2000000.0,
        },
        LLAMA_TOKENIZER,
    )
}
