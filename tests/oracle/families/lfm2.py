"""Random tiny models: LFM2."""

from pathlib import Path

import transformers as tf
from making import MOE, SIZES, edit, hub_style, list_tokens, save

GOLDENS = ("lfm2", "lfm2moe")
# The perplexity of the random weights is NaN, and llama.cpp wants the experts' bias.
UNLOADABLE = ("lfm2moe", "lfm2moe_silent")
_LAYERS = ["conv", "conv", "full_attention", "conv"]
_SIZES = {**SIZES, "num_hidden_layers": 4, "layer_types": _LAYERS}


def lfm2(folder: Path) -> None:
    """As it is published: indexes of the layers with attention, the columns before they are fitted."""
    more = {"block_multiple_of": 32, "block_ffn_dim_multiplier": 1.5}
    save(folder, tf.Lfm2Config(**_SIZES, **more), shard="100KB")
    list_tokens(folder)

    def change(config: dict) -> None:
        del config["layer_types"]
        config |= {"full_attn_idxs": [2], "block_ff_dim": config.pop("intermediate_size")}

    edit(folder, change)
    hub_style(folder, 500000.0)


def lfm2_plain(folder: Path) -> None:
    config = tf.Lfm2Config(
        **_SIZES, block_auto_adjust_ff_dim=False, conv_L_cache=4, tie_word_embeddings=False
    )
    save(folder, config)
    list_tokens(folder)


def lfm2_silent(folder: Path) -> None:
    save(folder, tf.Lfm2Config(**{**_SIZES, "num_attention_heads": 8, "num_key_value_heads": 8}))
    list_tokens(folder)

    def change(config: dict) -> None:
        for key in ("rope_parameters", "max_position_embeddings", "norm_eps", "num_key_value_heads"):
            del config[key]
        for key in (
            "conv_L_cache",
            "block_multiple_of",
            "block_ffn_dim_multiplier",
            "block_auto_adjust_ff_dim",
        ):
            del config[key]

    edit(folder, change)


def lfm2moe(folder: Path) -> None:
    save(folder, tf.Lfm2MoeConfig(**_SIZES, **MOE, num_experts=4, num_dense_layers=1), shard="100KB")
    list_tokens(folder)


def lfm2moe_silent(folder: Path) -> None:
    sizes = {**_SIZES, "num_attention_heads": 8, "num_key_value_heads": 8, "num_experts": 32}
    save(folder, tf.Lfm2MoeConfig(**sizes, moe_intermediate_size=16, use_expert_bias=False))
    list_tokens(folder)

    def change(config: dict) -> None:
        for key in ("rope_parameters", "max_position_embeddings", "norm_eps", "num_key_value_heads"):
            del config[key]
        for key in ("num_experts", "num_experts_per_tok", "num_dense_layers", "conv_L_cache"):
            del config[key]

    edit(folder, change)
