"""Random tiny models: Mistral Small 3, Ministral 3 and Mistral Small 4."""

from pathlib import Path

import transformers as tf
from making import MLA, SIZES, YARN, edit, save

GOLDENS = ("mistral3", "ministral3", "mistral4")
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "head_dim": 16,
}
_YARN = YARN | {"mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}


def _save(folder: Path, text: object, shard: str = "1GB", **more: object) -> None:
    config = tf.Mistral3Config(text_config=text, vision_config=_VISION, **more)
    save(folder, config, cls=tf.Mistral3ForConditionalGeneration, shard=shard)


def mistral3(folder: Path) -> None:
    text = tf.MistralConfig(**SIZES, head_dim=32, sliding_window=None)
    _save(folder, text, "100KB", tie_word_embeddings=False)


def mistral3_tied(folder: Path) -> None:
    _save(folder, tf.MistralConfig(**SIZES, rope_theta=1000000000.0))


def ministral3(folder: Path) -> None:
    _save(folder, tf.Ministral3Config(**SIZES, head_dim=32, rope_parameters=_YARN))


def ministral3_silent(folder: Path) -> None:
    """The text model by itself, silent about all that has a default."""
    sizes = {**SIZES, "num_key_value_heads": 8, "num_attention_heads": 8}
    save(folder, tf.Ministral3Config(**sizes, head_dim=128), shard="100KB")
    silence = (
        "rope_parameters",
        "head_dim",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    edit(folder, lambda config: [config.pop(key) for key in silence])


def mistral4(folder: Path) -> None:
    text = tf.Mistral4Config(
        **MLA | {"n_group": 1}, q_lora_rank=40, n_shared_experts=1, rope_parameters=_YARN
    )
    _save(folder, text, "100KB", tie_word_embeddings=False)


def mistral4_silent(folder: Path) -> None:
    sizes = {**MLA, "n_group": 1, "kv_lora_rank": 256, "first_k_dense_replace": 0, "num_experts_per_tok": 4}
    _save(folder, tf.Mistral4Config(**sizes, n_shared_experts=1, q_lora_rank=1024))
    silence = (
        "rope_parameters",
        "kv_lora_rank",
        "q_lora_rank",
        "n_group",
        "topk_group",
        "first_k_dense_replace",
    )
    silence += ("num_experts_per_tok", "max_position_embeddings", "rms_norm_eps", "routed_scaling_factor")

    def change(config: dict) -> None:
        for key in silence:
            del config["text_config"][key]

    edit(folder, change)
