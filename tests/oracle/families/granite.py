"""Random tiny models: Granite."""

from pathlib import Path

import transformers as tf
from making import SIZES, edit, hub_style, list_tokens, round_decays, save, silent

GOLDENS = ("granite", "granitemoe", "granitehybrid")
_MULTIPLIERS = {
    "attention_multiplier": 0.0625,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.25,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16}


def granite(folder: Path) -> None:
    config = tf.GraniteConfig(**SIZES, **_MULTIPLIERS, attention_bias=True, tie_word_embeddings=True)
    save(folder, config, shard="100KB")
    hub_style(folder, 10000000.0)


def granite_silent(folder: Path) -> None:
    save(folder, tf.GraniteConfig(**{**SIZES, "num_key_value_heads": None}))
    silent(folder, "num_key_value_heads", *_MULTIPLIERS)


def granitemoe(folder: Path) -> None:
    save(folder, tf.GraniteMoeConfig(**SIZES, **_MULTIPLIERS, **_EXPERTS), shard="100KB")


def granitemoe_shared(folder: Path) -> None:
    config = tf.GraniteMoeSharedConfig(**SIZES, **_EXPERTS, shared_intermediate_size=48)
    save(folder, config)


def _of_old(folder: Path, types: list[str]) -> None:
    """transformers 5 renames the types of layers, by which the converter finds no attention; so the config
    has a type that transformers does not know, as older ones did not know it.
    """
    round_decays(folder)
    list_tokens(folder)
    edit(folder, lambda config: config.update(layer_types=types, model_type="granite_of_old"))
    hub_style(folder, 10000.0)


def granitehybrid(folder: Path) -> None:
    types = ["linear_attention", "full_attention", "linear_attention"]
    config = tf.GraniteMoeHybridConfig(
        **SIZES, **_MULTIPLIERS, **_EXPERTS, **_MAMBA, shared_intermediate_size=48, layer_types=types
    )
    save(folder, config, shard="100KB")
    _of_old(folder, ["mamba", "attention", "mamba"])


def granitehybrid_dense(folder: Path) -> None:
    """A feed-forward part alone: the shared expert without others."""
    types = ["linear_attention", "full_attention", "linear_attention"]
    config = tf.GraniteMoeHybridConfig(
        **SIZES, **_MAMBA, num_local_experts=0, shared_intermediate_size=48, layer_types=types
    )
    save(folder, config)
    _of_old(folder, ["mamba", "attention", "mamba"])
    edit(folder, lambda config: config.update(num_experts_per_tok=0, intermediate_size=48))


def granite_of_hybrid(folder: Path) -> None:
    """Attention in all layers, of the class of hybrid models: a dense Granite."""
    config = tf.GraniteMoeHybridConfig(
        **SIZES,
        **_MAMBA,
        num_local_experts=0,
        shared_intermediate_size=96,
        layer_types=["full_attention"] * 3,
    )
    save(folder, config)
    _of_old(folder, ["attention"] * 3)
    edit(folder, lambda config: config.update(num_experts_per_tok=0))
