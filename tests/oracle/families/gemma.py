"""Random tiny models: Gemma 1 and 2."""

import shutil
from pathlib import Path

import torch
import transformers as tf
from making import SIZES, save, silent
from safetensors.torch import load_file, save_file

GOLDENS = ("gemma", "gemma2")
_SIZES = {**SIZES, "vocab_size": 312, "head_dim": 32}
_PIECES = Path(__file__).parent.parent.parent / "data" / "hf" / "small.model"


def _save(folder: Path, config: tf.PretrainedConfig, shard: str = "1GB") -> None:
    """With sentencepiece's tokenizer, the only one that the converter takes of these."""
    save(folder, config, shard=shard)
    shutil.copy(_PIECES, folder / "tokenizer.model")


def gemma(folder: Path) -> None:
    _save(folder, tf.GemmaConfig(**_SIZES), shard="100KB")


def gemma_silent(folder: Path) -> None:
    sizes = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256}
    _save(folder, tf.GemmaConfig(**_SIZES | sizes))
    silent(folder)


def gemma2(folder: Path) -> None:
    """Sliding attention, other limits of the logits, and the output matrix that some tools save."""
    limits = {"attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0, "sliding_window": 32}
    _save(folder, tf.Gemma2Config(**_SIZES, **limits, query_pre_attn_scalar=32))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
