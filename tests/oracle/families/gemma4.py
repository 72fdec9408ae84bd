"""Random tiny models: Gemma 4, its text part, with the kind of tokenizer that only it has."""

import json
from pathlib import Path

import transformers as tf
from making import SIZES, edit, save
from tokenizer_variants import write_fallback

GOLDENS = ("gemma4", "gemma4_moe", "gemma4_unified")
_SIZES = {
    **SIZES,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 32,
    "hidden_size_per_layer_input": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LAYERS = ["sliding_attention", "full_attention"] * 3
_ADDED = ("<|channel>", "<channel|>", "<|turn>", "<turn|>", "<|tool_call>", '<|"|>', "<mask>", "plain")


def _tokenizer(folder: Path) -> None:
    """As many tokens as the embedding has rows: 304 pieces, some control tokens and one that is not."""
    added = [*_ADDED, *(f"<extra{k}>" for k in range(16 - len(_ADDED)))]
    more = [{"id": 304 + k, "content": text, "special": text != "plain"} for k, text in enumerate(added)]
    write_fallback(folder, *more, merges=True)
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "mask_token": "<mask>",
        "extra_special_tokens": ["<|channel>", "<|tool_call>", "<|turn>"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def gemma4(folder: Path) -> None:
    """Embeddings of layers; the last layers share K and V of earlier ones and have twice the columns."""
    more = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320, "num_kv_shared_layers": 2}
    config = tf.Gemma4TextConfig(
        **_SIZES | more, layer_types=_LAYERS, use_double_wide_mlp=True, final_logit_softcapping=30.0
    )
    save(folder, config, shard="100KB")
    _tokenizer(folder)


def gemma4_moe(folder: Path) -> None:
    """The text part of the class that sees, with experts; K is V in layers with full attention."""
    text = tf.Gemma4TextConfig(
        **_SIZES,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
    )
    config = tf.Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    save(folder, config, cls=tf.Gemma4ForConditionalGeneration)
    _tokenizer(folder)


def gemma4_hub(folder: Path) -> None:
    """As published: `global_head_dim`, K and V of layers that do not use them, silent about defaults."""
    sizes = _SIZES | {
        "head_dim": 256,
        "global_head_dim": 512,
        "num_key_value_heads": 4,
        "sliding_window": 512,
    }
    save(folder, tf.Gemma4TextConfig(**sizes, layer_types=_LAYERS))

    def change(config: dict) -> None:
        for key in ("per_layer_config", "rope_parameters", "head_dim", "num_key_value_heads", "rms_norm_eps"):
            del config[key]
        config |= {"global_head_dim": 512, "num_global_key_value_heads": None, "num_kv_shared_layers": 2}

    edit(folder, change)
    _tokenizer(folder)


def gemma4_unified(folder: Path) -> None:
    """The class that sees and hears without encoders; tokens that it must not say."""
    text = tf.Gemma4UnifiedTextConfig(**_SIZES, attention_k_eq_v=True, num_global_key_value_heads=1)
    config = tf.Gemma4UnifiedConfig(
        text_config=text, vision_config={"mm_embed_dim": 64, "output_proj_dims": 64}
    )
    save(folder, config, cls=tf.Gemma4UnifiedForConditionalGeneration, shard="100KB")
    edit(folder, lambda config: config["text_config"].update(moe_intermediate_size=None, sliding_window=32))
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": [310, 311]}))
    _tokenizer(folder)
