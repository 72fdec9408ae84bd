"""Random tiny models: ERNIE 4.5, with the sentencepiece tokenizer that the converter wants."""

import json
import shutil
from pathlib import Path

import torch
import transformers as tf
from making import SIZES, hub_style, save, silent
from safetensors.torch import load_file, save_file
from tiny_checkpoints import DATA

GOLDENS = ("ernie4_5", "ernie4_5_moe_mtp")
_MOE = {
    **SIZES,
    "num_hidden_layers": 4,
    "moe_intermediate_size": 24,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_num_shared_experts": 2,
}


def _pieces(folder: Path, prefix: bool) -> None:
    shutil.copy(DATA / "hf" / "small.model", folder / "tokenizer.model")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_prefix_space": prefix}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def ernie4_5(folder: Path) -> None:
    save(folder, tf.Ernie4_5Config(**SIZES, head_dim=32), shard="100KB")
    _pieces(folder, prefix=False)


def ernie4_5_silent(folder: Path) -> None:
    save(folder, tf.Ernie4_5Config(**SIZES, head_dim=128, tie_word_embeddings=False))
    silent(folder, "num_key_value_heads", "head_dim", "tie_word_embeddings")
    _pieces(folder, prefix=True)


def ernie4_5_moe(folder: Path) -> None:
    save(folder, tf.Ernie4_5_MoeConfig(**_MOE, moe_layer_start_index=2), shard="100KB")
    _pieces(folder, prefix=True)


def ernie4_5_moe_mtp(folder: Path) -> None:
    """As published: a layer for further tokens, which is left out."""
    save(folder, tf.Ernie4_5_MoeConfig(**_MOE, tie_word_embeddings=True))
    tensors = load_file(folder / "model.safetensors")
    old = "model.layers.3."
    tensors |= {n.replace(old, "model.mtp_block.0."): 2 * t for n, t in tensors.items() if n.startswith(old)}
    for name, shape in {
        "mtp_emb_norm": (64,),
        "mtp_hidden_norm": (64,),
        "mtp_linear_proj": (64, 128),
    }.items():
        tensors[f"model.{name}.0.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    hub_style(folder, 500000.0, num_nextn_predict_layers=1)
    _pieces(folder, prefix=False)
