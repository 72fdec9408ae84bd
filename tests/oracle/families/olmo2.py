"""Random tiny models: OLMo 2 and OLMo 3."""

from pathlib import Path

import transformers as tf
from making import SIZES, YARN, edit, hub_style, list_tokens, save, silent

GOLDENS = ("olmo2", "olmo3_hub")


def olmo2(folder: Path) -> None:
    save(folder, tf.Olmo2Config(**SIZES, rope_theta=500000.0), shard="100KB")
    list_tokens(folder)


def olmo2_silent(folder: Path) -> None:
    save(folder, tf.Olmo2Config(**{**SIZES, "num_key_value_heads": 4}))
    list_tokens(folder)
    silent(folder, "num_key_value_heads")


def olmo3(folder: Path) -> None:
    """Every fourth layer attends to all; YaRN."""
    sizes = {**SIZES, "num_hidden_layers": 5}
    save(folder, tf.Olmo3Config(**sizes, sliding_window=32, rope_parameters=YARN), shard="100KB")
    list_tokens(folder)


def olmo3_hub(folder: Path) -> None:
    """As published: one base of rotation, scaling; the window left to the reader's default."""
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    save(folder, tf.Olmo3Config(**SIZES, layer_types=types))
    list_tokens(folder)
    scaling = {key: value for key, value in YARN.items() if key != "rope_theta"}
    hub_style(folder, 300000, scaling | {"attention_factor": 1.2})
    edit(folder, lambda config: config.pop("sliding_window"))
