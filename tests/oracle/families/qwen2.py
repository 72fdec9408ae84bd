"""Random tiny models: Qwen2."""

from pathlib import Path

import transformers as tf
from making import SIZES, YARN, edit, hub_style, list_tokens, save, silent

GOLDENS = ("qwen2", "qwen2vl")


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


def qwen2vl(folder: Path) -> None:
    """The config flat, as it was published, and the rope's sections under the name it had then."""
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4}
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]}
    config = tf.Qwen2VLConfig(text_config={**SIZES, "rope_parameters": rope}, vision_config=vision)
    save(folder, config, cls=tf.Qwen2VLForConditionalGeneration)
    list_tokens(folder)

    def change(config: dict) -> None:
        text = config.pop("text_config")
        text.pop("rope_parameters")
        config |= {key: value for key, value in text.items() if key != "model_type"}
        config |= {"rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}

    edit(folder, change)


def qwen2_5_vl(folder: Path) -> None:
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]}
    text = {**SIZES, "rope_parameters": rope, "tie_word_embeddings": True}
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"patch_size": 4})
    save(folder, config, cls=tf.Qwen2_5_VLForConditionalGeneration, shard="100KB")
    list_tokens(folder)
