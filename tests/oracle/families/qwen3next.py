"""Random tiny models: Qwen3-Next and Qwen3.5."""

from pathlib import Path

import torch
import transformers as tf
from making import MOE, SIZES, edit, list_tokens, round_decays, save, silent
from safetensors.torch import load_file, save_file

GOLDENS = ("qwen3_next_mtp", "qwen3_5_mtp", "qwen3_5_moe_mtp")
_LINEAR = {
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_hidden_layers": 4,
}
_MOE = {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 48}
_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 32,
    "out_hidden_size": 64,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
_ROPE = {
    "rope_type": "default",
    "rope_theta": 10000000,
    "partial_rotary_factor": 0.5,
    "mrope_section": [3, 3, 2],
    "mrope_interleaved": True,
}


def _finish(folder: Path) -> None:
    list_tokens(folder)
    round_decays(folder)


def _add_mtp(folder: Path, split: int = 0) -> None:
    """A layer that predicts further tokens, as it is published: the tensors of a layer with full attention
    again, and four of its own; `split` experts one by one.
    """
    tensors = load_file(folder / "model.safetensors")
    old = "layers.3."
    for name, tensor in list(tensors.items()):
        if old not in name:
            continue
        last = name.partition(old)[2]
        if not (split and ".experts." in name):
            tensors[f"mtp.layers.0.{last}"] = 2 * tensor
            continue
        names = ("gate", "up") if "gate_up" in name else ("down",)
        for expert in range(split):
            for part, rows in zip(names, tensor[expert].chunk(len(names)), strict=True):
                one = f"mtp.layers.0.mlp.experts.{expert}.{part}_proj.weight"
                tensors[one] = 2 * rows.clone()
    for name, shape in {
        "fc": (64, 128),
        "norm": (64,),
        "pre_fc_norm_embedding": (64,),
        "pre_fc_norm_hidden": (64,),
    }.items():
        tensors[f"mtp.{name}.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def qwen3_next(folder: Path) -> None:
    save(folder, tf.Qwen3NextConfig(**{**SIZES, **_MOE, **_LINEAR}), shard="100KB")
    _finish(folder)


def qwen3_next_mtp(folder: Path) -> None:
    """As it is published: no count of such layers, no types of layers but an interval."""
    save(folder, tf.Qwen3NextConfig(**{**SIZES, **_MOE, **_LINEAR}, full_attention_interval=2))
    _finish(folder)
    _add_mtp(folder)

    def change(config: dict) -> None:
        config.pop("layer_types")
        config["full_attention_interval"] = 2

    edit(folder, change)


def qwen3_next_silent(folder: Path) -> None:
    save(folder, tf.Qwen3NextConfig(**{**SIZES, **_MOE, **_LINEAR, "head_dim": 256}))
    _finish(folder)
    _add_mtp(folder)
    silent(folder, "head_dim", "layer_types", "num_key_value_heads")


def qwen3_5(folder: Path) -> None:
    """The text part alone, tied; as many heads of V as of K."""
    sizes = {**SIZES, **_LINEAR, "linear_num_key_heads": 4}
    save(folder, tf.Qwen3_5TextConfig(**sizes, rope_parameters=_ROPE, tie_word_embeddings=True))
    _finish(folder)


def qwen3_5_f16(folder: Path) -> None:
    sizes = {**SIZES, **_LINEAR, "linear_num_value_heads": 6}
    save(folder, tf.Qwen3_5TextConfig(**sizes, rope_parameters=_ROPE), torch.float16)
    _finish(folder)


def qwen3_5_mtp(folder: Path) -> None:
    """As it is published: the text part nested, M-RoPE."""
    text = {**SIZES, **_LINEAR, "linear_num_value_heads": 6, "rope_parameters": _ROPE}
    config = tf.Qwen3_5Config(text_config=text, vision_config=_VISION)
    save(folder, config, cls=tf.Qwen3_5ForConditionalGeneration)
    _finish(folder)
    _add_mtp(folder)
    edit(folder, lambda config: config["text_config"].update(mtp_num_hidden_layers=1))


def qwen3_5_moe_mtp(folder: Path) -> None:
    """Experts fused, but those of the last layer one by one; counts of rotated columns left to the reader."""
    text = {**SIZES, **_MOE, **_LINEAR, "head_dim": 128}
    config = tf.Qwen3_5MoeConfig(text_config=text, vision_config=_VISION)
    save(folder, config, cls=tf.Qwen3_5MoeForConditionalGeneration)
    _finish(folder)
    tensors = load_file(folder / "model.safetensors")
    _add_mtp(folder, split=4 if any(name.endswith("experts.gate_up_proj") for name in tensors) else 0)

    def change(config: dict) -> None:
        text = config["text_config"]
        text["mtp_num_hidden_layers"] = 1
        text["full_attention_interval"] = 4

    edit(folder, change)


def qwen3_5_moe_absent(folder: Path) -> None:
    """Saved anew by transformers, which drops these layers but not their count."""
    save(
        folder,
        tf.Qwen3_5MoeTextConfig(
            **{**SIZES, **_MOE, **_LINEAR}, mtp_num_hidden_layers=1, rope_parameters=_ROPE
        ),
        shard="100KB",
    )
    _finish(folder)
