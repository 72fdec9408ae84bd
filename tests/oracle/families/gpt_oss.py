"""Random tiny models: gpt-oss."""

from pathlib import Path

import transformers as tf
from making import SIZES, YARN, hub_style, save, silent

GOLDENS = ("gpt_oss",)
UNLOADABLE = ("gpt_oss_hub",)  # no output of its own
_MOE = {**SIZES, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}


def gpt_oss(folder: Path) -> None:
    """As transformers saves it in bf16: gate and up interleaved in the columns, all experts in one tensor."""
    rope = YARN | {"truncate": False}
    save(folder, tf.GptOssConfig(**_MOE, rope_parameters=rope), shard="100KB")


def gpt_oss_hub(folder: Path) -> None:
    save(folder, tf.GptOssConfig(**_MOE | {"intermediate_size": 64}, tie_word_embeddings=True))
    hub_style(folder, 150000, YARN | {"truncate": False}, initial_context_length=128, swiglu_limit=7.0)


def gpt_oss_silent(folder: Path) -> None:
    save(folder, tf.GptOssConfig(**_MOE | {"num_attention_heads": 8, "num_key_value_heads": 8}))
    silent(folder, "num_key_value_heads", "sliding_window")
