"""Random tiny models: Hunyuan 3."""

from pathlib import Path

import torch
import transformers as tf
from making import MOE, SIZES, edit, save
from safetensors.torch import load_file, save_file

GOLDENS = ("hy_v3_mtp",)
_SIZES = {**SIZES, **MOE, "num_experts": 4, "num_shared_experts": 2, "head_dim": 16}


def hy_v3(folder: Path) -> None:
    kinds = ["dense", "dense", "sparse"]
    save(folder, tf.HYV3Config(**_SIZES, mlp_layer_types=kinds, router_scaling_factor=1.5), shard="100KB")


def hy_v3_mtp(folder: Path) -> None:
    """One layer more, which predicts a further token; silent about what has a default."""
    save(
        folder,
        tf.HYV3Config(**_SIZES | {"num_experts_per_tok": 8, "num_experts": 16, "num_shared_experts": 1}),
    )
    tensors = load_file(folder / "model.safetensors")
    old, new = "model.layers.2.", "model.layers.3."
    tensors |= {n.replace(old, new): 2 * t for n, t in tensors.items() if n.startswith(old)}
    shapes = {"eh_proj": (64, 128), "enorm": (64,), "hnorm": (64,), "final_layernorm": (64,)}
    for name, shape in shapes.items():
        tensors[f"{new}{name}.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    def change(config: dict) -> None:
        for key in ("mlp_layer_types", "num_experts_per_tok", "num_shared_experts", "router_scaling_factor"):
            del config[key]
        config["num_nextn_predict_layers"] = 1

    edit(folder, change)
