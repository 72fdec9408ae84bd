"""Random tiny models: Gemma 3."""

from pathlib import Path

import transformers as tf
from making import SIZES, edit, save

GOLDENS = ("gemma3", "gemma3_vision")
_TEXT = {
    **SIZES,
    "vocab_size": 312,
    "head_dim": 32,
    "sliding_window": 32,
    "num_hidden_layers": 7,
    "query_pre_attn_scalar": 32,
}


def gemma3(folder: Path) -> None:
    save(folder, tf.Gemma3TextConfig(**_TEXT), shard="100KB")


def gemma3_hub(folder: Path) -> None:
    """Silent about nearly all, as published: transformers fills in the rest."""
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "num_hidden_layers": 3}
    save(folder, tf.Gemma3TextConfig(**_TEXT | sizes))

    def change(config: dict) -> None:
        kept = ("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers")
        kept += ("sliding_window", "vocab_size", "eos_token_id", "pad_token_id")
        config |= {key: config[key] for key in kept}
        for key in config.keys() - set(kept):
            del config[key]
        config["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}

    edit(folder, change)


def gemma3_vision(folder: Path) -> None:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config = tf.Gemma3Config(text_config=_TEXT, vision_config=vision, mm_tokens_per_image=4)
    save(folder, config, cls=tf.Gemma3ForConditionalGeneration)
