"""Random tiny models: GLM-4-0414 and the text part of GLM-4.1V."""

from pathlib import Path

import transformers as tf
from making import SIZES, hub_style, save, silent

GOLDENS = ("chatglm", "glm4", "glm4v")
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 32,
    "out_hidden_size": 64,
    "patch_size": 4,
    "image_size": 16,
}


def glm4(folder: Path) -> None:
    save(folder, tf.Glm4Config(**SIZES, head_dim=16, attention_bias=True), shard="100KB")


def glm4_hub(folder: Path) -> None:
    save(folder, tf.Glm4Config(**SIZES, head_dim=32, tie_word_embeddings=True))
    hub_style(folder, 10000.0, partial_rotary_factor=0.25)


def glm4_silent(folder: Path) -> None:
    save(folder, tf.Glm4Config(**SIZES, head_dim=16))
    silent(folder, "num_key_value_heads")


def glm4v(folder: Path) -> None:
    """With a part that sees, a nested config and M-RoPE."""
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.5,
    }
    text = tf.Glm4vTextConfig(**SIZES, head_dim=16, rope_parameters=rope)
    config = tf.Glm4vConfig(text_config=text.to_dict(), vision_config=VISION)
    save(folder, config, cls=tf.Glm4vForConditionalGeneration)


def chatglm(folder: Path) -> None:
    save(folder, tf.GlmConfig(**SIZES, head_dim=16), shard="100KB")
