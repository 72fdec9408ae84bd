"""Random tiny models: the text part of Qwen3-VL and Qwen3-VL-MoE."""

from pathlib import Path

import transformers as tf
from making import MOE, SIZES, list_tokens, save
from safetensors.torch import load_file, save_file

GOLDENS = ("qwen3vl", "qwen3vlmoe")
_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 32,
    "out_hidden_size": 64,
    "patch_size": 4,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
_ROPE = {
    "rope_type": "default",
    "rope_theta": 5000000,
    "mrope_section": [2, 3, 3],
    "mrope_interleaved": True,
}


def qwen3vl(folder: Path) -> None:
    text = {**SIZES, "head_dim": 16, "rope_parameters": _ROPE}
    config = tf.Qwen3VLConfig(text_config=text, vision_config=_VISION, tie_word_embeddings=True)
    save(folder, config, cls=tf.Qwen3VLForConditionalGeneration, shard="100KB")
    list_tokens(folder)


def qwen3vlmoe_square(folder: Path) -> None:
    """Experts as wide as the model."""
    qwen3vlmoe(folder, 64)


def qwen3vlmoe(folder: Path, columns: int = 48) -> None:
    """Experts transposed, as they are published."""
    text = {
        **SIZES,
        **MOE,
        "moe_intermediate_size": columns,
        "num_experts": 4,
        "head_dim": 32,
        "rope_parameters": _ROPE,
    }
    config = tf.Qwen3VLMoeConfig(text_config=text, vision_config=_VISION | {"deepstack_visual_indexes": [1]})
    save(folder, config, cls=tf.Qwen3VLMoeForConditionalGeneration)
    list_tokens(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {n: t.transpose(1, 2).contiguous() for n, t in tensors.items() if ".mlp.experts." in n}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
