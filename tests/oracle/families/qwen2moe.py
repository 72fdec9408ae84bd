"""Random tiny models: Qwen2-MoE."""

from pathlib import Path

import transformers as tf
from making import MOE, SIZES, hub_style, list_tokens, save, silent

GOLDENS = ("qwen2moe",)
UNLOADABLE = ("qwen2moe_hub",)  # no output of its own
_MOE = {**SIZES, **MOE, "num_experts": 4, "shared_expert_intermediate_size": 48}


def qwen2moe(folder: Path) -> None:
    save(folder, tf.Qwen2MoeConfig(**_MOE), shard="100KB")
    list_tokens(folder)


def qwen2moe_hub(folder: Path) -> None:
    save(folder, tf.Qwen2MoeConfig(**_MOE, qkv_bias=False, tie_word_embeddings=True))
    list_tokens(folder)
    hub_style(folder, 1000000.0, norm_topk_prob=False)


def qwen2moe_silent(folder: Path) -> None:
    sizes = {
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts_per_tok": 4,
        "num_experts": 60,
    }
    save(folder, tf.Qwen2MoeConfig(**_MOE | sizes))
    list_tokens(folder)
    silent(folder, "num_key_value_heads", "num_experts_per_tok", "num_experts")
