"""How random tiny models are made: sizes, settings of rope, what is done to a folder once it is saved."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "arch"))
from tiny_checkpoints import write_tokenizer

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 300,
    "eos_token_id": 300,
    "pad_token_id": 300,
}
MOE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
GLM = {
    **SIZES,
    **MOE,
    "head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_mtp_layers": 0,
    "routed_scaling_factor": 1.5,
}
MLA = {
    **SIZES,
    **MOE,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 128,
}
CARD = """---
license: apache-2.0
base_model:
- some-org/Base-7B-v0.2
datasets: some-org/a-data-set
language:
- en
- no
pipeline_tag: text-generation
tags: [tiny, random]
---
# A model card
"""


def save(folder: Path, config, dtype=torch.bfloat16, shard: str = "1GB", cls=tf.AutoModelForCausalLM) -> None:
    """A random model of the config, every parameter (norms and biases too) away from its usual start."""
    torch.manual_seed(len(str(folder.name)))
    model = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor.data, std=0.5)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)


def round_decays(folder: Path) -> None:
    """Where torch rounds the exponential of an `A_log` wrongly, as it may, and elsewhere not, a zero."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith(".A_log"):
                exact = tensor.double().exp().to(torch.promote_types(tensor.dtype, torch.float32))
                tensor[exact != tensor.to(exact.dtype).exp()] = 0
        save_file(tensors, path, {"format": "pt"})


def list_tokens(folder: Path) -> None:
    """List all added tokens in tokenizer_config.json, as published ones do.

    For some families transformers builds the tokenizer anew from the vocabulary and that list.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    settings["added_tokens_decoder"] = {str(token.pop("id")): token for token in added}
    path.write_text(json.dumps(settings))


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    """Change config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def hub_style(folder: Path, theta: float, scaling: dict | None = None, **more: object) -> None:
    """The config as checkpoints of transformers 4 have it: rope_theta and rope_scaling, torch_dtype."""

    def change(config: dict) -> None:
        config.pop("rope_parameters")
        config["torch_dtype"] = config.pop("dtype")
        config |= {"rope_theta": theta, "rope_scaling": scaling, **more}

    edit(folder, change)


def silent(folder: Path, *keys: str) -> None:
    """Leave keys out of config.json: transformers has a default for each."""

    def change(config: dict) -> None:
        config.pop("rope_parameters")
        for key in ("rms_norm_eps", "max_position_embeddings", *keys):
            del config[key]

    edit(folder, change)
