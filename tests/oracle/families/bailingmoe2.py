"""Random tiny models: Ling 2. Its class is code in the folder, so the folders are made by hand."""

import json
from pathlib import Path

import torch
from making import MOE, SIZES, edit, list_tokens
from safetensors.torch import save_file
from tiny_checkpoints import write_tokenizer

GOLDENS = ("bailingmoe2_mtp",)
_CONFIG = {
    **SIZES,
    **MOE,
    "architectures": ["BailingMoeV2ForCausalLM"],
    "model_type": "bailing_moe",
    "auto_map": {"AutoConfig": "configuration_bailing_moe_v2.BailingMoeV2Config"},
    "head_dim": 16,
    "num_experts": 4,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 600000,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}


def _layer(at: str, columns: int = 0, n_shared: int = 1) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer, dense where it has `columns`."""
    width, of_expert, head = 64, 32, 16
    shapes: dict[str, tuple[int, ...]] = {
        f"{at}input_layernorm": (width,),
        f"{at}post_attention_layernorm": (width,),
        f"{at}attention.query_key_value": (8 * head, width),
        f"{at}attention.query_layernorm": (head,),
        f"{at}attention.key_layernorm": (head,),
        f"{at}attention.dense": (width, 4 * head),
    }
    parts = {f"{at}mlp.": columns} if columns else {f"{at}mlp.experts.{k}.": of_expert for k in range(4)}
    if not columns:
        parts[f"{at}mlp.shared_experts."] = n_shared * of_expert
        shapes[f"{at}mlp.gate"] = (4, width)
        shapes[f"{at}mlp.gate.expert_bias"] = (4,)
    for prefix, n in parts.items():
        shapes |= {f"{prefix}gate_proj": (n, width), f"{prefix}up_proj": (n, width)}
        shapes[f"{prefix}down_proj"] = (width, n)
    return shapes


def _write(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    torch.manual_seed(1)
    tensors = {}
    for name, shape in shapes.items():
        kept = name if name.endswith("expert_bias") else f"{name}.weight"
        dtype = torch.float32 if name.endswith("expert_bias") else torch.bfloat16
        tensors[kept] = torch.nn.init.normal_(torch.empty(shape), std=0.5).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    write_tokenizer(folder)
    list_tokens(folder)


def _model() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.word_embeddings": (320, 64), "model.norm": (64,)}
    shapes["lm_head"] = (320, 64)
    for k in range(3):
        shapes |= _layer(f"model.layers.{k}.", 96 if k == 0 else 0)
    return shapes


def bailingmoe2(folder: Path) -> None:
    _write(folder, _model())


def bailingmoe2_mtp(folder: Path) -> None:
    last = "model.layers.3."
    shapes = {**_model(), **_layer(last), f"{last}eh_proj": (64, 128), f"{last}final_layernorm": (64,)}
    _write(folder, {**shapes, f"{last}enorm": (64,), f"{last}hnorm": (64,)})
    edit(folder, lambda config: config.update(num_nextn_predict_layers=1))


def bailingmoe2_plain(folder: Path) -> None:
    """No part rotated is stated, the shared experts' columns are; softmax, and no bias of the router."""
    shapes = _model()
    _write(folder, {name: shape for name, shape in shapes.items() if not name.endswith("expert_bias")})

    def change(config: dict) -> None:
        config.pop("partial_rotary_factor")
        config |= {"num_nextn_predict_layers": 0, "score_function": "softmax"}
        config |= {"moe_shared_expert_intermediate_size": 32, "num_shared_experts": 1}

    edit(folder, change)
