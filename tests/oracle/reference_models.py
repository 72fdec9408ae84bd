"""Make random tiny models of every architecture with transformers, as it saves them: hub names, hub layout.

    python reference_models.py OUT     (needs torch and transformers)

Each model gets the small tokenizer of tests/data/hf. Some are saved in shards, some in f16 or f32, some get
what transformers does not write: layers that predict further tokens, fused experts, fp8 weights with scales,
a config in the hub's older style.
"""

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


def save(folder: Path, config, dtype=torch.bfloat16, shard: str = "1GB") -> None:
    """A random model of the config, every parameter (norms and biases too) away from its usual start."""
    torch.manual_seed(len(str(folder.name)))
    model = tf.AutoModelForCausalLM.from_config(config)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor.data, std=0.5)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)


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


def llama(folder: Path) -> None:
    save(folder, tf.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE), shard="100KB")
    (folder / "README.md").write_text(CARD)


def llama_tied(folder: Path) -> None:
    save(
        folder, tf.LlamaConfig(**SIZES | {"num_key_value_heads": 4}, tie_word_embeddings=True), torch.float16
    )
    hub_style(folder, 10000.0)


def llama_bias(folder: Path) -> None:
    save(folder, tf.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=32), torch.float32)


def mistral(folder: Path) -> None:
    save(folder, tf.MistralConfig(**SIZES, head_dim=32, sliding_window=None))


def mixtral(folder: Path) -> None:
    save(folder, tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2), shard="60KB")


def qwen3(folder: Path) -> None:
    save(folder, tf.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True, rope_parameters=YARN))


def qwen3moe(folder: Path) -> None:
    save(folder, tf.Qwen3MoeConfig(**SIZES, **MOE, num_experts=4, head_dim=32), shard="100KB")
    hub_style(folder, 1000000)


def qwen3moe_fused(folder: Path) -> None:
    """Experts as one tensor, the way transformers 5 keeps them in memory and some finetunes save them."""
    save(folder, tf.Qwen3MoeConfig(**SIZES, **MOE, num_experts=4, head_dim=32))
    tensors = load_file(folder / "model.safetensors")
    for layer in range(SIZES["num_hidden_layers"]):
        experts = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (
            torch.stack([tensors.pop(f"{experts}{e}.{part}_proj.weight") for e in range(4)])
            for part in ("gate", "up", "down")
        )
        tensors[experts + "gate_up_proj"] = torch.cat([gate, up], 1)
        tensors[experts + "down_proj"] = down
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def glm4moe(folder: Path) -> None:
    save(folder, tf.Glm4MoeConfig(**GLM, use_qk_norm=True), shard="100KB")
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1})
    )


def glm4moe_mtp(folder: Path) -> None:
    """A layer that predicts the token after next: the last layer's tensors again, and six of its own."""
    save(folder, tf.Glm4MoeConfig(**GLM, attention_bias=True))
    tensors = load_file(folder / "model.safetensors")
    last, further = "model.layers.2.", "model.layers.3."
    tensors |= {n.replace(last, further): 2 * t for n, t in tensors.items() if n.startswith(last)}
    vocab, width = SIZES["vocab_size"], SIZES["hidden_size"]
    shapes = {
        "eh_proj": (width, 2 * width),
        "embed_tokens": (vocab, width),
        "enorm": (width,),
        "hnorm": (width,),
        "shared_head.head": (vocab, width),
        "shared_head.norm": (width,),
    }
    for name, shape in shapes.items():
        tensors[f"{further}{name}.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    hub_style(folder, 1000000, partial_rotary_factor=0.5, num_nextn_predict_layers=1)


def glm4moe_mtp_dropped(folder: Path) -> None:
    save(folder, tf.Glm4MoeConfig(**GLM))
    edit(folder, lambda config: config.update(num_nextn_predict_layers=1))


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


def kimi_k2(folder: Path) -> None:
    """Kimi K2 is a DeepSeek V3 whose model_type transformers does not know."""
    save(folder, tf.DeepseekV3Config(**MLA | {"n_group": 1}, q_lora_rank=40, n_shared_experts=1))
    hub_style(folder, 50000.0, scoring_func="sigmoid", model_type="kimi_k2")
    edit(folder, lambda config: config.pop("head_dim", None))


def silent(folder: Path, *keys: str) -> None:
    """Leave keys out of config.json: transformers has a default for each."""

    def change(config: dict) -> None:
        config.pop("rope_parameters")
        for key in ("rms_norm_eps", "max_position_embeddings", *keys):
            del config[key]

    edit(folder, change)


def llama_silent(folder: Path) -> None:
    save(folder, tf.LlamaConfig(**SIZES | {"num_key_value_heads": 4}))
    silent(folder, "num_key_value_heads", "head_dim", "tie_word_embeddings")


def mixtral_silent(folder: Path) -> None:
    save(folder, tf.MixtralConfig(**SIZES | {"num_key_value_heads": 8, "num_attention_heads": 8}))
    silent(folder, "num_key_value_heads", "num_local_experts", "num_experts_per_tok")


def qwen3moe_silent(folder: Path) -> None:
    sizes = SIZES | MOE | {"num_key_value_heads": 4, "num_attention_heads": 8, "num_experts_per_tok": 8}
    save(folder, tf.Qwen3MoeConfig(**sizes, num_experts=4))
    silent(folder, "num_key_value_heads", "num_experts_per_tok")


def glm4moe_silent(folder: Path) -> None:
    save(folder, tf.Glm4MoeConfig(**GLM | {"num_experts_per_tok": 8, "n_routed_experts": 8}))
    keys = ("n_group", "topk_group", "first_k_dense_replace", "norm_topk_prob", "n_shared_experts")
    silent(folder, *keys, "routed_scaling_factor", "num_experts_per_tok")


def deepseek_v3_silent(folder: Path) -> None:
    sizes = MLA | {"num_hidden_layers": 4, "first_k_dense_replace": 3, "n_routed_experts": 16}
    sizes |= {"n_group": 8, "topk_group": 4, "num_experts_per_tok": 8}
    save(folder, tf.DeepseekV3Config(**sizes, q_lora_rank=40))
    keys = ("n_group", "topk_group", "first_k_dense_replace", "norm_topk_prob", "n_shared_experts")
    silent(folder, *keys, "routed_scaling_factor", "num_experts_per_tok")


MODELS = (
    llama,
    llama_tied,
    llama_bias,
    mistral,
    mixtral,
    qwen3,
    qwen3moe,
    qwen3moe_fused,
    glm4moe,
    glm4moe_mtp,
    glm4moe_mtp_dropped,
    deepseek_v2_lite,
    deepseek_v2,
    deepseek_v3,
    deepseek_v3_fp8,
    kimi_k2,
    llama_silent,
    mixtral_silent,
    qwen3moe_silent,
    glm4moe_silent,
    deepseek_v3_silent,
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    for make in MODELS:
        make(Path(sys.argv[1]) / make.__name__)
