"""Random tiny models: OLMoE, Seed-OSS, Command R7B, EXAONE 4, SmolLM3."""

from pathlib import Path

import transformers as tf
from making import LLAMA3_ROPE, SIZES, YARN, edit, hub_style, list_tokens, save, silent

GOLDENS = ("olmoe", "seed_oss", "cohere2", "exaone4", "smollm3")


def olmoe(folder: Path) -> None:
    sizes = {**SIZES, "num_key_value_heads": 4}
    config = tf.OlmoeConfig(**sizes, num_experts=4, num_experts_per_tok=2, rms_norm_eps=1e-6)
    save(folder, config, shard="100KB")
    list_tokens(folder)


def olmoe_silent(folder: Path) -> None:
    sizes = {**SIZES, "num_key_value_heads": None, "tie_word_embeddings": True}
    save(folder, tf.OlmoeConfig(**sizes, num_experts=8))
    list_tokens(folder)
    silent(folder, "num_key_value_heads", "num_experts_per_tok")


def seed_oss(folder: Path) -> None:
    config = tf.SeedOssConfig(**SIZES, head_dim=24, attention_out_bias=False, rope_parameters=YARN)
    save(folder, config, shard="100KB")
    list_tokens(folder)


def seed_oss_silent(folder: Path) -> None:
    sizes = {**SIZES, "num_attention_heads": 8, "num_key_value_heads": 8}
    save(folder, tf.SeedOssConfig(**sizes, attention_bias=False, tie_word_embeddings=True))
    list_tokens(folder)
    silent(folder, "num_key_value_heads", "head_dim")


def cohere2(folder: Path) -> None:
    save(folder, tf.Cohere2Config(**{**SIZES, "num_hidden_layers": 4}, sliding_window=64), shard="100KB")
    list_tokens(folder)
    hub_style(folder, 50000.0, rotary_pct=0.5, logit_scale=0.25)


def cohere2_silent(folder: Path) -> None:
    save(folder, tf.Cohere2Config(**{**SIZES, "num_key_value_heads": 4}))
    list_tokens(folder)

    def change(config: dict) -> None:
        for key in ("layer_norm_eps", "logit_scale", "max_position_embeddings", "num_key_value_heads"):
            del config[key]
        for key in ("rope_parameters", "layer_types", "sliding_window", "head_dim"):
            config.pop(key, None)
        config |= {"rotary_pct": 1.0, "sliding_window_pattern": 4}

    edit(folder, change)


def exaone4(folder: Path) -> None:
    """As the larger one is published: a pattern of letters beside the types of layers."""
    sizes = {**SIZES, "num_hidden_layers": 4}
    config = tf.Exaone4Config(**sizes, sliding_window=64, rope_parameters=LLAMA3_ROPE)
    save(folder, config, shard="100KB")
    list_tokens(folder)
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    hub_style(folder, 500000.0, scaling, sliding_window_pattern="LLLG")


def exaone4_full(folder: Path) -> None:
    """As the smaller one is: no sliding attention, tied."""
    full = ["full_attention"] * 3
    config = tf.Exaone4Config(**SIZES, sliding_window=None, layer_types=full, tie_word_embeddings=True)
    save(folder, config)
    list_tokens(folder)


def exaone4_silent(folder: Path) -> None:
    save(folder, tf.Exaone4Config(**{**SIZES, "num_attention_heads": 32, "num_key_value_heads": 32}))
    list_tokens(folder)
    silent(folder, "num_key_value_heads", "layer_types", "sliding_window", "sliding_window_pattern")


def smollm3(folder: Path) -> None:
    save(
        folder, tf.SmolLM3Config(**{**SIZES, "num_hidden_layers": 4}, no_rope_layer_interval=4), shard="100KB"
    )


def smollm3_yarn(folder: Path) -> None:
    config = tf.SmolLM3Config(**SIZES, rope_parameters=YARN, tie_word_embeddings=False, attention_bias=False)
    save(folder, config)


def smollm3_silent(folder: Path) -> None:
    save(folder, tf.SmolLM3Config(**{**SIZES, "num_key_value_heads": 4}))
    silent(folder, "num_key_value_heads", "no_rope_layers", "layer_types")
