"""Random tiny models: Nemotron 3."""

from pathlib import Path

import torch
import transformers as tf
from making import SIZES, edit, list_tokens, round_decays, save
from safetensors.torch import load_file, save_file

GOLDENS = ("nemotron_h_moe_mtp", "nemotron_h")
_SIZES = {key: value for key, value in SIZES.items() if key != "num_hidden_layers"} | {
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
}
_MOE = {
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 48,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 2.5,
}
_PATTERN = ["linear_attention", "moe", "full_attention", "moe"]


def _finish(folder: Path) -> None:
    list_tokens(folder)
    round_decays(folder)


def _as_published(folder: Path, pattern: str, **more: object) -> None:
    """A letter for each layer."""

    def change(config: dict) -> None:
        del config["layers_block_type"]
        config |= {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern), **more}

    edit(folder, change)


def nemotron_h_moe(folder: Path) -> None:
    config = tf.NemotronHConfig(**_SIZES, **_MOE, layers_block_type=_PATTERN, attention_bias=True, n_group=2)
    save(folder, config, shard="100KB")
    _finish(folder)


def nemotron_h_moe_mtp(folder: Path) -> None:
    """With experts of a latent width, and the layer that predicts further tokens."""
    save(folder, tf.NemotronHConfig(**_SIZES, **_MOE, layers_block_type=_PATTERN, moe_latent_size=32))
    tensors = load_file(folder / "model.safetensors")
    at = "backbone.layers."
    for layer, part in ((2, 0), (3, 1)):
        old = f"{at}{layer}."
        tensors |= {
            n.replace(old, f"mtp.layers.{part}."): 2 * t for n, t in tensors.items() if n.startswith(old)
        }
    for name, shape in {
        "0.eh_proj": (64, 128),
        "0.enorm": (64,),
        "0.hnorm": (64,),
        "1.final_layernorm": (64,),
    }.items():
        tensors[f"mtp.layers.{name}.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _finish(folder)
    _as_published(folder, "ME*E", num_nextn_predict_layers=1, mtp_hybrid_override_pattern="*E")


def nemotron_h_moe_silent(folder: Path) -> None:
    sizes = {**_SIZES, "num_key_value_heads": 4, "n_groups": 8, "tie_word_embeddings": True}
    save(folder, tf.NemotronHConfig(**sizes, **{**_MOE, "n_routed_experts": 8}, layers_block_type=_PATTERN))
    _finish(folder)

    def change(config: dict) -> None:
        for key in ("layer_norm_epsilon", "max_position_embeddings", "conv_kernel", "n_groups", "n_group"):
            del config[key]
        for key in ("n_routed_experts", "num_experts_per_tok", "routed_scaling_factor", "norm_topk_prob"):
            del config[key]

    edit(folder, change)


def nemotron_h(folder: Path) -> None:
    """A dense model. transformers 5 fills in experts, by which the converter takes it for one with some; so
    the config has a type that transformers does not know, as older ones did not know it.
    """
    dense = ["mlp" if kind == "moe" else kind for kind in _PATTERN]
    save(folder, tf.NemotronHConfig(**_SIZES, layers_block_type=dense, mlp_bias=True))
    _finish(folder)

    def change(config: dict) -> None:
        for key in list(config):
            if (
                "expert" in key
                or key.startswith(("moe_", "mtp_"))
                or key in ("n_group", "topk_group", "layer_types")
            ):
                del config[key]
        del config["num_nextn_predict_layers"]
        config |= {"model_type": "nemotron_h_of_old", "rms_norm_eps": 1e-5}

    edit(folder, change)
    _as_published(folder, "M-*-")
