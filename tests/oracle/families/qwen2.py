"""Random tiny models: Qwen2."""

from pathlib import Path

import transformers as tf
from making import SIZES, YARN, edit, hub_style, list_tokens, save, silent

GOLDENS = ("qwen2",)


def qwen2(folder: Path) -> None:
    save(folder, tf.Qwen2Config(**SIZES, rope_parameters=YARN), shard="100KB")
    list_tokens(folder)
    hub_style(folder, 1000000.0, YARN | {"type": "yarn"}, use_sliding_window=False, sliding_window=131072)


def qwen2_tied(folder: Path) -> None:
    save(folder, tf.Qwen2Config(**SIZES, tie_word_embeddings=True))
    list_tokens(folder)


def qwen2_silent(folder: Path) -> None:
    save(folder, tf.Qwen2Config(**SIZES | {"num_attention_heads": 32, "num_key_value_heads": 32}))
    list_tokens(folder)
    silent(folder, "num_key_value_heads")


def qwen2_headless(folder: Path) -> None:
    """A model saved without its head: names without `model.`."""
    save(folder, tf.Qwen2Config(**SIZES), cls=tf.AutoModel)
    list_tokens(folder)
    edit(folder, lambda config: config.pop("tie_word_embeddings", None))
