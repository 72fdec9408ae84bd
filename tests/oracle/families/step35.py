"""Random tiny models: Step 3.5 Flash and the text part of Step 3.7 Flash, made by hand as they are published.

transformers 5.24 has a class, but renames keys that the converter asks for (see `run_converter`).
"""

import json
from pathlib import Path

import torch
from making import LLAMA3_ROPE
from safetensors.torch import save_file
from tiny_checkpoints import write_tokenizer

GOLDENS = ("step35_mtp",)
_HEAD, _WIDTH = 16, 64


def _config(n_layers: int, n_next: int, **more: object) -> dict:
    n = n_layers + n_next
    sliding = [k % 3 != 0 for k in range(n)]
    return {
        "architectures": ["Step3p5ForCausalLM"],
        "model_type": "step3p5",
        "torch_dtype": "bfloat16",
        "bos_token_id": 300,
        "eos_token_id": [300, 301],
        "vocab_size": 320,
        "hidden_size": _WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": n_layers,
        "max_seq_len": 512,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_attention_groups": 2,
        "head_dim": _HEAD,
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "num_attention_heads": 6,
            "num_attention_groups": 3,
            "head_dim": _HEAD,
        },
        "use_head_wise_attn_gate": True,
        "sliding_window": 32,
        "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
        "partial_rotary_factors": [1.0 if s else 0.5 for s in sliding],
        "rope_theta": [10000.0 if s else 5000000.0 for s in sliding],
        "moe_layers_enum": ",".join(str(k) for k in range(1, n_layers)),
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_intermediate_size": 32,
        "share_expert_dim": 48,
        "moe_every_n_layer": 1,
        "norm_expert_weight": True,
        "moe_router_activation": "sigmoid",
        "moe_router_scaling_factor": 3.0,
        "rms_norm_eps": 1e-5,
        "zero_centered": True,
        "num_nextn_predict_layers": n_next,
        **more,
    }


def _shapes(config: dict, k: int) -> dict[str, tuple[int, ...]]:
    other = config["attention_other_setting"] if k % 3 else config
    q, kv = (other[key] * _HEAD for key in ("num_attention_heads", "num_attention_groups"))
    shapes = {
        "input_layernorm.weight": (_WIDTH,),
        "post_attention_layernorm.weight": (_WIDTH,),
        "self_attn.q_proj.weight": (q, _WIDTH),
        "self_attn.k_proj.weight": (kv, _WIDTH),
        "self_attn.v_proj.weight": (kv, _WIDTH),
        "self_attn.o_proj.weight": (_WIDTH, q),
        "self_attn.g_proj.weight": (q // _HEAD, _WIDTH),
        "self_attn.q_norm.weight": (_HEAD,),
        "self_attn.k_norm.weight": (_HEAD,),
    }
    if 0 < k < config["num_hidden_layers"]:
        shapes |= {"moe.gate.weight": (4, _WIDTH), "moe.router_bias": (4,)}
        shapes |= {f"moe.{part}_proj.weight": (4, 32, _WIDTH) for part in ("gate", "up")}
        shapes |= {f"share_expert.{part}_proj.weight": (48, _WIDTH) for part in ("gate", "up")}
        shapes |= {"moe.down_proj.weight": (4, _WIDTH, 32), "share_expert.down_proj.weight": (_WIDTH, 48)}
    else:
        shapes |= {f"mlp.{part}_proj.weight": (96, _WIDTH) for part in ("gate", "up")}
        shapes |= {"mlp.down_proj.weight": (_WIDTH, 96)}
    if k >= config["num_hidden_layers"]:
        shapes |= {
            "eh_proj.weight": (_WIDTH, 2 * _WIDTH),
            "enorm.weight": (_WIDTH,),
            "hnorm.weight": (_WIDTH,),
        }
        shapes |= {"transformer.shared_head.norm.weight": (_WIDTH,)}
        shapes |= {"transformer.shared_head.output.weight": (320, _WIDTH)}
    return shapes


def _write(folder: Path, text: dict, config: dict | None = None) -> None:
    torch.manual_seed(0)
    config = config or text
    shapes = {f"{name}.weight": (320, _WIDTH) for name in ("model.embed_tokens", "lm_head")}
    shapes["model.norm.weight"] = (_WIDTH,)
    for k in range(text["num_hidden_layers"] + text["num_nextn_predict_layers"]):
        shapes |= {f"model.layers.{k}.{name}": shape for name, shape in _shapes(text, k).items()}
    if config is not text:
        shapes |= {"vision_model.conv1.weight": (8, 3, 2, 2), "vit_large_projector.weight": (_WIDTH, 32)}
    tensors = {name: (torch.randn(shape) / 2).to(torch.bfloat16) for name, shape in sorted(shapes.items())}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)


def step35(folder: Path) -> None:
    _write(folder, _config(4, 0, rope_theta=5000000.0, norm_expert_weight=False))


def step35_mtp(folder: Path) -> None:
    """Two layers that predict further tokens; limits of the activation, Llama 3's scaling of rotation."""
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    limits = {
        "swiglu_limits": [None, 0.0, 7.0, None],
        "swiglu_limits_shared": [0.0, 16.0, 0.0, 0.0, None, None],
    }
    _write(folder, _config(4, 2, rope_scaling=scaling, **limits))


def step37(folder: Path) -> None:
    text = _config(3, 1, architectures=["Step3p5ForCausalLM"])
    vision = {"image_size": 16, "width": 32, "layers": 1, "heads": 2, "patch_size": 4}
    whole = {"architectures": ["Step3p7ForConditionalGeneration"], "model_type": "step3p7"}
    _write(folder, text, {**whole, "text_config": text, "vision_config": vision})
