"""Random tiny models: Llama 4, its text part."""

from pathlib import Path

import transformers as tf
from making import LLAMA3_ROPE, SIZES, edit, save, silent

GOLDENS = ("llama4", "llama4_all", "llama4_seeing")
# llama.cpp b11434 stops at it: the graph wants a scale of attention that it sets for other layers alone.
UNLOADABLE = ("llama4_all",)
_SIZES = {
    **SIZES,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "intermediate_size_mlp": 112,
    "num_local_experts": 4,
}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
    "image_size": 16,
    "patch_size": 4,
}


def llama4(folder: Path) -> None:
    """Every fourth layer attends to all, without rotation."""
    rope = LLAMA3_ROPE | {"low_freq_factor": 1.0, "high_freq_factor": 1.0}
    save(folder, tf.Llama4TextConfig(**_SIZES, rope_parameters=rope), shard="100KB")


def llama4_seeing(folder: Path) -> None:
    """Dense layers between those with experts."""
    text = {**_SIZES, "interleave_moe_layer_step": 2, "rope_parameters": LLAMA3_ROPE}
    config = tf.Llama4Config(text_config=text, vision_config=_VISION)
    save(folder, config, cls=tf.Llama4ForConditionalGeneration)


def llama4_silent(folder: Path) -> None:
    sizes = {**_SIZES, "num_key_value_heads": 8, "num_attention_heads": 8, "head_dim": 128}
    save(folder, tf.Llama4TextConfig(**sizes, tie_word_embeddings=True))
    silent(folder, "num_key_value_heads", "head_dim", "num_experts_per_tok", "interleave_moe_layer_step")
    edit(folder, lambda config: [config.pop(key) for key in ("layer_types", "moe_layers", "no_rope_layers")])


def llama4_all(folder: Path) -> None:
    """Every layer attends to all, which the file says by a window of 0."""
    config = tf.Llama4TextConfig(**_SIZES, no_rope_layers=[0, 0, 0, 0], attention_bias=True)
    save(folder, config)
