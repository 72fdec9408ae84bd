"""Random tiny models: DeepSeek V2, V3 and Kimi K2."""

import json
from pathlib import Path

import torch
import transformers as tf
from making import MLA, YARN, edit, hub_style, save, silent
from safetensors.torch import load_file, save_file

GOLDENS = ("deepseek_v2_lite", "deepseek_v3", "deepseek_v3_fp8")
UNLOADABLE = ("deepseek_v2_lite",)  # llama.cpp knows V2-Lite by its 27 layers


def deepseek_v2_lite(folder: Path) -> None:
    save(folder, tf.DeepseekV2Config(**MLA, q_lora_rank=None, n_shared_experts=2, topk_method="greedy"))
    hub_style(folder, 10000, YARN | {"type": "yarn"}, scoring_func="softmax", norm_topk_prob=False)


def deepseek_v2(folder: Path) -> None:
    save(folder, tf.DeepseekV2Config(**MLA, q_lora_rank=40, n_shared_experts=1, tie_word_embeddings=True))


def deepseek_v3(folder: Path) -> None:
    """With a layer that predicts further tokens, which the converter drops."""
    save(folder, tf.DeepseekV3Config(**MLA, q_lora_rank=40, n_shared_experts=1), shard="100KB")
    save_file({"model.layers.3.eh_proj.weight": torch.zeros(64, 128)}, folder / "model-mtp.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.3.eh_proj.weight"] = "model-mtp.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub_style(folder, 10000, YARN | {"type": "yarn"}, scoring_func="sigmoid", num_nextn_predict_layers=1)


def deepseek_v3_fp8(folder: Path) -> None:
    """Matrices in fp8 with a scale for each block of 16 x 16, as DeepSeek publishes them (128 x 128)."""
    save(folder, tf.DeepseekV3Config(**MLA, q_lora_rank=40, n_shared_experts=1))
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.dim() == 2 and "_proj" in name:
            rows, columns = (-(-n // 16) for n in tensor.shape)
            tensors[name] = tensor.to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = torch.rand(rows, columns) + 0.01
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    fp8 = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [16, 16],
        "activation_scheme": "dynamic",
    }
    edit(folder, lambda config: config.update(quantization_config=fp8))


def deepseek_v3_silent(folder: Path) -> None:
    sizes = MLA | {"num_hidden_layers": 4, "first_k_dense_replace": 3, "n_routed_experts": 16}
    sizes |= {"n_group": 8, "topk_group": 4, "num_experts_per_tok": 8}
    save(folder, tf.DeepseekV3Config(**sizes, q_lora_rank=40))
    keys = ("n_group", "topk_group", "first_k_dense_replace", "norm_topk_prob", "n_shared_experts")
    silent(folder, *keys, "routed_scaling_factor", "num_experts_per_tok")


def kimi_k2(folder: Path) -> None:
    """Kimi K2 is a DeepSeek V3 whose model_type transformers does not know."""
    save(folder, tf.DeepseekV3Config(**MLA | {"n_group": 1}, q_lora_rank=40, n_shared_experts=1))
    hub_style(folder, 50000.0, scoring_func="sigmoid", model_type="kimi_k2")
    edit(folder, lambda config: config.pop("head_dim", None))
