"""DeepSeek V2, V3 and R1, Kimi K2, GLM-4.7-Flash, Youtu-LLM: the GGUF architecture `deepseek2`.

Multi-head latent attention: K and V of all heads are made from one narrow vector by `kv_b_proj`. llama.cpp
multiplies K's part into the query and V's part into the output instead, so the matrix is cut in two and K's
part transposed, and the cache holds a single head of `kv_lora_rank` + `qk_rope_head_dim` columns. That is why
`head_count_kv` is 1 here. DeepSeek's layers that predict further tokens are left out, as llama.cpp's
converter does; those of GLM-4.7-Flash are kept.

`DeepseekV2Model` in `conversion/deepseek.py`, `Glm4MoeLiteModel` in `conversion/glm.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, TokenizerRules
from ggplan.arch.config import Config
from ggplan.arch.families.glm4moe import GLM_TOKENS
from ggplan.arch.latent_attention import latent_keys, latent_table
from ggplan.arch.layout import n_next_tokens
from ggplan.arch.metadata import Keys
from ggplan.arch.tensors import Table


def _table(config: Config, names: Collection[str]) -> Table:
    return latent_table("deepseek2", config, names, keeps_next=False)


def _glm_table(config: Config, names: Collection[str]) -> Table:
    return latent_table("deepseek2", config, names, keeps_next=True)


def _write_keys(keys: Keys, config: Config) -> None:
    latent_keys(keys, config, n_blocks=config.count("num_hidden_layers"))


def _write_glm_keys(keys: Keys, config: Config) -> None:
    n_next = n_next_tokens(config)
    latent_keys(keys, config, n_blocks=config.count("num_hidden_layers") + n_next)
    keys.count("nextn_predict_layers", n_next or None)


_TOKENIZER = TokenizerRules(tiktoken=True)  # Kimi K2's
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}

_V2 = Architecture(
    "deepseek2",
    _table,
    _write_keys,
    {
        **_DEFAULTS,
        "max_position_embeddings": 2048,
        "first_k_dense_replace": 0,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.0,
    },
    _TOKENIZER,
)
_V3 = Architecture(
    "deepseek2",
    _table,
    _write_keys,
    {
        **_DEFAULTS,
        "max_position_embeddings": 4096,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
    },
    _TOKENIZER,
)
_GLM_LITE = Architecture(
    "deepseek2",
    _glm_table,
    _write_glm_keys,
    {
        **_DEFAULTS,
        "max_position_embeddings": 202752,
        "n_group": 1,
        "topk_group": 1,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.8,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-5,
    },
    GLM_TOKENS,
)
_YOUTU = Architecture(
    "deepseek2",
    _table,
    _write_keys,
    {**_DEFAULTS, "max_position_embeddings": 131072, "tie_word_embeddings": True},
)

CLASSES = {
    "DeepseekV2ForCausalLM": _V2,
    "DeepseekV3ForCausalLM": _V3,
    "Glm4MoeLiteForCausalLM": _GLM_LITE,
    "KimiK25ForConditionalGeneration": _V3,
    "KimiVLForConditionalGeneration": _V3,
    "YoutuForCausalLM": _YOUTU,
}
