"""Random tiny models: Llama, Mistral and Mixtral."""

from pathlib import Path

import torch
import transformers as tf
from making import CARD, LLAMA3_ROPE, SIZES, hub_style, save, silent

GOLDENS = ("llama", "llama_bias", "llama_tied", "mistral", "mixtral")


def llama(folder: Path) -> None:
    save(folder, tf.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE), shard="100KB")
    (folder / "README.md").write_text(CARD)


def llama_tied(folder: Path) -> None:
    save(
        folder, tf.LlamaConfig(**SIZES | {"num_key_value_heads": 4}, tie_word_embeddings=True), torch.float16
    )
    hub_style(folder, 10000.0)


def llama_bias(folder: Path) -> None:
    save(folder, tf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=32), torch.float32)


def llama_silent(folder: Path) -> None:
    save(folder, tf.LlamaConfig(**SIZES | {"num_key_value_heads": 4}))
    silent(folder, "num_key_value_heads", "head_dim", "tie_word_embeddings")


def mistral(folder: Path) -> None:
    save(folder, tf.MistralConfig(**SIZES, head_dim=32, sliding_window=None))


def mixtral(folder: Path) -> None:
    save(folder, tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2), shard="60KB")


def mixtral_silent(folder: Path) -> None:
    save(folder, tf.MixtralConfig(**SIZES | {"num_key_value_heads": 8, "num_attention_heads": 8}))
    silent(folder, "num_key_value_heads", "num_local_experts", "num_experts_per_tok")
