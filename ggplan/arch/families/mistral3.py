"""Mistral Small 3.1 to 4 and Ministral 3, their text part: the GGUF architectures `mistral3` and `mistral4`.

The text part's `model_type` tells them apart. Mistral Small 3 is Llama under another name. Ministral 3 has
YaRN and scales attention by the position. Mistral Small 4 has multi-head latent attention and experts; a
layer's experts are one tensor, in which gate and up stay together.

`Mistral3Model` in `conversion/mistral3.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ggplan.arch.architecture import Architecture, TokenizerRules
from ggplan.arch.config import Config
from ggplan.arch.families import llama
from ggplan.arch.latent_attention import latent_keys, latent_table
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, rope_parameters
from ggplan.arch.tensors import Table, TensorSpec

MODELS = {
    "mistral3": "Mistral Small 3.1 and 3.2 and Ministral 3, their text part",
    "mistral4": "Mistral Small 4, its text part",
}


def _dense(config: Config, names: Collection[str]) -> Table:
    return llama.dense_table("mistral3", config)


def _latent(config: Config, names: Collection[str]) -> Table:
    config = replace(config, values={**config.values, "num_nextn_predict_layers": None})  # it has none
    return latent_table("mistral4", config, names, keeps_next=True, experts=_experts)


def _experts(layout: Layout, names: Collection[str]) -> list[TensorSpec]:
    n, width, columns = layout.sizes["X"], layout.sizes["E"], layout.config.count("moe_intermediate_size")
    specs = []
    for module, shape in (("down_proj", (n, width, columns)), ("gate_up_proj", (n, 2 * columns, width))):
        name = f"mlp.experts.{module}"
        suffix = ".weight" if any(stored.endswith(f"{name}.weight") for stored in names) else ""
        specs += layout.parameter(name + suffix, "moe", like=f"{name}.weight", shape=shape)
    return specs


def _write_ministral_keys(keys: Keys, config: Config) -> None:
    llama.write_keys(keys, config)
    rope = rope_parameters(config)
    if rope.optional_text("rope_type") != "yarn":
        raise rope.wrong("rope_type", "is not 'yarn', the only one of this model that llama.cpp knows")
    for key, name in (
        ("rope.scaling.yarn_log_multiplier", "mscale_all_dim"),
        ("attention.temperature_scale", "llama_4_scaling_beta"),
    ):
        value = rope.optional_number(name)
        if value is None:
            raise rope.wrong(name, "is missing")
        keys.number(key, value)


def _write_latent_keys(keys: Keys, config: Config) -> None:
    latent_keys(keys, config, n_blocks=config.count("num_hidden_layers"))


_YARN = {
    "rope_type": "yarn",
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_MISTRAL3 = Architecture("mistral3", _dense, llama.write_keys, llama.MISTRAL.defaults, llama.LLAMA_TOKENIZER)
_MINISTRAL3 = Architecture(
    "mistral3",
    _dense,
    _write_ministral_keys,
    {
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            **_YARN,
            "rope_theta": 1000000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
        },
    },
    llama.LLAMA_TOKENIZER,
)
_MISTRAL4 = Architecture(
    "mistral4",
    _latent,
    _write_latent_keys,
    {
        "first_k_dense_replace": 0,
        "kv_lora_rank": 256,
        "max_position_embeddings": 1048576,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 32,
        "q_lora_rank": 1024,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            **_YARN,
            "rope_theta": 10000.0,
            "factor": 128.0,
            "original_max_position_embeddings": 8192,
        },
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
        "v_head_dim": 128,
    },
    # The converter gives it the tokenizer of DeepSeek V2, not that of Llama.
    TokenizerRules(),
)


def _by_text_part(config: Config) -> Architecture | None:
    """What the whole model's class has by the `model_type` of its text part."""
    return {"ministral3": _MINISTRAL3, "mistral4": _MISTRAL4}.get(str(config.values.get("model_type")))


CLASSES = {
    "Ministral3ForCausalLM": _MINISTRAL3,
    "Mistral3ForConditionalGeneration": replace(_MISTRAL3, variant=_by_text_part),
    "Mistral3ForConditionalGeneration (ministral3)": _MINISTRAL3,
    "Mistral3ForConditionalGeneration (mistral4)": _MISTRAL4,
}
