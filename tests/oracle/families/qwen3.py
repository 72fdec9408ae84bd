"""Random tiny models: Qwen3 and Qwen3-MoE."""

from pathlib import Path

import torch
import transformers as tf
from making import MOE, SIZES, YARN, hub_style, save, silent
from safetensors.torch import load_file, save_file

GOLDENS = ("qwen3", "qwen3moe", "qwen3moe_fused")


def qwen3(folder: Path) -> None:
    save(folder, tf.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True, rope_parameters=YARN))


def qwen3moe(folder: Path) -> None:
    save(folder, tf.Qwen3MoeConfig(**SIZES, **MOE, num_experts=4, head_dim=32), shard="100KB")
    hub_style(folder, 1000000)


def qwen3moe_shared(folder: Path) -> None:
    """With the size of a shared expert that it has not."""
    config = tf.Qwen3MoeConfig(**SIZES, **MOE, num_experts=4, head_dim=32, shared_expert_intermediate_size=32)
    save(folder, config)


def qwen3moe_fused(folder: Path) -> None:
    """Experts as one tensor, the way transformers 5 keeps them in memory and some finetunes save them."""
    save(folder, tf.Qwen3MoeConfig(**SIZES, **MOE, num_experts=4, head_dim=32))
    tensors = load_file(folder / "model.safetensors")
    for layer in range(SIZES["num_hidden_layers"]):
        experts = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (
            torch.stack([tensors.pop(f"{experts}{e}.{part}_proj.weight") for e in range(4)])
            for part in ("gate", "up", "down")
        )
        tensors[experts + "gate_up_proj"] = torch.cat([gate, up], 1)
        tensors[experts + "down_proj"] = down
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def qwen3moe_silent(folder: Path) -> None:
    sizes = SIZES | MOE | {"num_key_value_heads": 4, "num_attention_heads": 8, "num_experts_per_tok": 8}
    save(folder, tf.Qwen3MoeConfig(**sizes, num_experts=4))
    silent(folder, "num_key_value_heads", "num_experts_per_tok")
