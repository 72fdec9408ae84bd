"""Random tiny models: gpt-oss."""

from pathlib import Path

import torch
import transformers as tf
from making import SIZES, YARN, edit, hub_style, save, silent
from safetensors.torch import load_file, save_file

GOLDENS = ("gpt_oss",)
UNLOADABLE = ("gpt_oss_hub",)  # no output of its own
_MOE = {**SIZES, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}


def gpt_oss(folder: Path) -> None:
    """As transformers saves it in bf16: gate and up interleaved in the columns, all experts in one tensor."""
    rope = YARN | {"truncate": False}
    save(folder, tf.GptOssConfig(**_MOE, rope_parameters=rope), shard="100KB")


def gpt_oss_mxfp4(folder: Path) -> None:
    """As it is published: the experts in MXFP4, whose codes are moved."""
    save(folder, tf.GptOssConfig(**_MOE))
    tensors = load_file(folder / "model.safetensors")
    dice = torch.Generator().manual_seed(1)
    for name in list(tensors):
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            n, columns, rows = tensors.pop(name).shape
            groups = (n, rows, columns // 32)
            tensors[f"{name}_blocks"] = torch.randint(
                0, 256, (*groups, 16), dtype=torch.uint8, generator=dice
            )
            tensors[f"{name}_scales"] = torch.randint(110, 125, groups, dtype=torch.uint8, generator=dice)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    quantized = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    edit(folder, lambda config: config.update(quantization_config=quantized))


def gpt_oss_hub(folder: Path) -> None:
    save(folder, tf.GptOssConfig(**_MOE | {"intermediate_size": 64}, tie_word_embeddings=True))
    hub_style(folder, 150000, YARN | {"truncate": False}, initial_context_length=128, swiglu_limit=7.0)


def gpt_oss_silent(folder: Path) -> None:
    save(folder, tf.GptOssConfig(**_MOE | {"num_attention_heads": 8, "num_key_value_heads": 8}))
    silent(folder, "num_key_value_heads", "sliding_window")
