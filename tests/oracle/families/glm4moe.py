"""Random tiny models: GLM-4.5."""

import json
from pathlib import Path

import torch
import transformers as tf
from making import GLM, SIZES, edit, hub_style, save, silent
from safetensors.torch import load_file, save_file

GOLDENS = ("glm4moe", "glm4moe_mtp")


def glm4moe(folder: Path) -> None:
    save(folder, tf.Glm4MoeConfig(**GLM, use_qk_norm=True), shard="100KB")
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1})
    )


def glm4moe_mtp(folder: Path) -> None:
    """A layer that predicts the token after next: the last layer's tensors again, and six of its own."""
    save(folder, tf.Glm4MoeConfig(**GLM, attention_bias=True))
    tensors = load_file(folder / "model.safetensors")
    last, further = "model.layers.2.", "model.layers.3."
    tensors |= {n.replace(last, further): 2 * t for n, t in tensors.items() if n.startswith(last)}
    vocab, width = SIZES["vocab_size"], SIZES["hidden_size"]
    shapes = {
        "eh_proj": (width, 2 * width),
        "embed_tokens": (vocab, width),
        "enorm": (width,),
        "hnorm": (width,),
        "shared_head.head": (vocab, width),
        "shared_head.norm": (width,),
    }
    for name, shape in shapes.items():
        tensors[f"{further}{name}.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    hub_style(folder, 1000000, partial_rotary_factor=0.5, num_nextn_predict_layers=1)


def glm4moe_mtp_dropped(folder: Path) -> None:
    save(folder, tf.Glm4MoeConfig(**GLM))
    edit(folder, lambda config: config.update(num_nextn_predict_layers=1))


def glm4moe_silent(folder: Path) -> None:
    save(folder, tf.Glm4MoeConfig(**GLM | {"num_experts_per_tok": 8, "n_routed_experts": 8}))
    keys = ("n_group", "topk_group", "first_k_dense_replace", "norm_topk_prob", "n_shared_experts")
    silent(folder, *keys, "routed_scaling_factor", "num_experts_per_tok")
