"""Random tiny models: the text part of GLM-4.5V, GLM-4.7-Flash, GLM-5, DeepSeek V3.2."""

from pathlib import Path

import torch
import transformers as tf
from making import GLM, MLA, YARN, edit, hub_style, list_tokens, save
from safetensors.torch import load_file, save_file

GOLDENS = ("glm4v_moe", "glm4moe_lite_mtp", "glm_dsa_mtp", "deepseek_v32_mtp")
UNLOADABLE = ("deepseek_v32",)  # transformers writes no scoring_func, without which llama.cpp loads none
_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 32,
    "out_hidden_size": 64,
    "patch_size": 4,
    "image_size": 16,
}
_DSA = {**MLA, "q_lora_rank": 40, "n_shared_experts": 1, "n_group": 1, "topk_group": 1} | {
    "index_n_heads": 4,
    "index_head_dim": 64,
    "index_topk": 16,
}


def glm4v_moe(folder: Path) -> None:
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.5,
    }
    text = tf.Glm4vMoeTextConfig(**GLM, attention_bias=True, rope_parameters=rope)
    config = tf.Glm4vMoeConfig(text_config=text.to_dict(), vision_config=_VISION)
    save(folder, config, cls=tf.Glm4vMoeForConditionalGeneration)


def glm4moe_lite(folder: Path) -> None:
    save(folder, tf.Glm4MoeLiteConfig(**MLA, q_lora_rank=40, n_shared_experts=1), shard="100KB")


def _add_next(folder: Path, last: int = 2) -> None:
    """A layer that predicts further tokens: the last layer's tensors again, and six of its own."""
    tensors = load_file(folder / "model.safetensors")
    old, new = f"model.layers.{last}.", f"model.layers.{last + 1}."
    tensors |= {n.replace(old, new): 2 * t for n, t in tensors.items() if n.startswith(old)}
    for name, shape in {
        "eh_proj": (64, 128),
        "embed_tokens": (320, 64),
        "enorm": (64,),
        "hnorm": (64,),
        "shared_head.head": (320, 64),
        "shared_head.norm": (64,),
    }.items():
        tensors[f"{new}{name}.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def glm4moe_lite_mtp(folder: Path) -> None:
    save(folder, tf.Glm4MoeLiteConfig(**MLA, q_lora_rank=40, n_shared_experts=1))
    _add_next(folder)
    hub_style(folder, 1000000, num_nextn_predict_layers=1, partial_rotary_factor=1.0)


def glm_dsa(folder: Path) -> None:
    save(folder, tf.GlmMoeDsaConfig(**_DSA), shard="100KB")


def glm_dsa_mtp(folder: Path) -> None:
    save(folder, tf.GlmMoeDsaConfig(**_DSA))
    _add_next(folder)
    edit(folder, lambda config: config.update(num_nextn_predict_layers=1))


def solar_open(folder: Path) -> None:
    """All layers have experts; its own special tokens stand for those of the small tokenizer."""
    sizes = {
        key: value for key, value in GLM.items() if key not in ("first_k_dense_replace", "num_mtp_layers")
    }
    del sizes["intermediate_size"]
    save(folder, tf.SolarOpenConfig(**sizes), shard="100KB")
    path = folder / "tokenizer.json"
    text = path.read_text().replace('"[MASK]"', '"<unk>"').replace('"[sMASK]"', '"<|startoftext|>"')
    path.write_text(text)


def youtu(folder: Path) -> None:
    """Latent attention without experts."""
    moe = ("moe_intermediate_size", "num_experts_per_tok", "n_routed_experts", "n_group", "topk_group")
    sizes = {key: value for key, value in MLA.items() if key not in (*moe, "first_k_dense_replace")}
    save(folder, tf.YoutuConfig(**sizes, q_lora_rank=40))
    list_tokens(folder)


def glm_dsa_shared(folder: Path) -> None:
    """Layers that share the choice of an indexer, told by a step."""
    save(
        folder,
        tf.GlmMoeDsaConfig(**_DSA | {"num_hidden_layers": 4}, index_topk_freq=2, index_skip_topk_offset=2),
    )

    def change(config: dict) -> None:
        del config["indexer_types"]
        config |= {"index_topk_freq": 2, "index_skip_topk_offset": 2}

    edit(folder, change)


def deepseek_v32(folder: Path) -> None:
    save(folder, tf.DeepseekV32Config(**_DSA), shard="100KB")


def deepseek_v32_mtp(folder: Path) -> None:
    save(folder, tf.DeepseekV32Config(**_DSA))
    _add_next(folder)
    hub_style(folder, 10000, YARN | {"type": "yarn"}, num_nextn_predict_layers=1, scoring_func="sigmoid")
