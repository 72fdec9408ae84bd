"""GLM-5 and DeepSeek V3.2: the GGUF architectures `glm-dsa` and `deepseek32`.

As DeepSeek V3, with sparse attention: an indexer of a few heads chooses the tokens that are attended to. In
GLM-5.2 only some layers have an indexer, whose choice the next layers share. Layers that predict further
tokens are kept.

`GlmMoeDsaModel` in `conversion/glm.py`, `DeepseekV32Model` in `conversion/deepseek.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ggplan.arch.architecture import LAYER, Architecture, TokenizerRules
from ggplan.arch.config import Config
from ggplan.arch.families.glm4moe import GLM_TOKENS
from ggplan.arch.latent_attention import latent_keys, latent_table
from ggplan.arch.layout import Layout, n_next_tokens
from ggplan.arch.metadata import Keys, rotated_columns
from ggplan.arch.tensors import Kinds, Table, TensorSpec

MODELS = {
    "deepseek32": "DeepSeek V3.2",
    "glm-dsa": "GLM-5",
}

_INDEXER: Kinds = frozenset({"indexer"})


def _glm_table(config: Config, names: Collection[str]) -> Table:
    return _table("glm-dsa", config, names)


def _deepseek_table(config: Config, names: Collection[str]) -> Table:
    return _table("deepseek32", config, names)


def _table(architecture: str, config: Config, names: Collection[str]) -> Table:
    types = _indexer_types(config)

    def kinds(layer: int) -> Kinds:
        named = f"{LAYER.format(layer)}self_attn.indexer.wk.weight" in names
        is_full = types[layer] == "full" if layer < len(types) else layer < config.count("num_hidden_layers")
        return _INDEXER if named or is_full else frozenset()

    def indexer(layout: Layout) -> Sequence[TensorSpec]:
        width, rank = config.count("hidden_size"), config.count("q_lora_rank")
        heads, head = config.count("index_n_heads"), config.count("index_head_dim")
        part = "self_attn.indexer."
        return [
            *layout.layer(part + "wq_b", "indexer", shape=(heads * head, rank)),
            *layout.layer(part + "wk", "indexer", shape=(head, width)),
            *layout.layer(part + "weights_proj", "indexer", shape=(heads, width)),
            *layout.parameter(part + "k_norm.weight", "indexer", shape=(head,)),
            *layout.parameter(part + "k_norm.bias", "indexer", shape=(head,)),
        ]

    return latent_table(architecture, config, names, keeps_next=True, more=indexer, further_kinds=kinds)


def _indexer_types(config: Config) -> list[str]:
    """Whether each layer has an indexer, "full", or shares the choice of the one before, "shared".

    Where `indexer_types` is silent, transformers takes it from a pattern or from every how many layers.
    """
    if types := config.texts("indexer_types"):
        return types
    pattern = config.values.get("index_topk_pattern")
    if isinstance(pattern, str):
        return ["full" if letter == "F" else "shared" for letter in pattern]
    if pattern is not None:
        return config.texts("index_topk_pattern")
    step = config.optional_count("index_topk_freq", least=0) or 1
    offset = config.optional_count("index_skip_topk_offset", least=0)
    first = 1 if offset is None else offset - 1
    n_layers = config.layers("num_hidden_layers")
    return ["full" if max(k - first, 0) % step == 0 else "shared" for k in range(n_layers)]


def _write_glm_keys(keys: Keys, config: Config) -> None:
    _write_latent(keys, config)
    keys.count("rope.dimension_count", rotated_columns(config, config.count("qk_rope_head_dim"), 1.0))
    _write_indexer(keys, config)
    types = [kind == "full" for kind in _indexer_types(config)]
    keys.flags("attention.indexer.types", types)


def _write_deepseek_keys(keys: Keys, config: Config) -> None:
    _write_latent(keys, config)
    _write_indexer(keys, config)


def _write_latent(keys: Keys, config: Config) -> None:
    latent_keys(keys, config, n_blocks=config.count("num_hidden_layers") + n_next_tokens(config))


def _write_indexer(keys: Keys, config: Config) -> None:
    keys.count("nextn_predict_layers", config.optional_count("num_nextn_predict_layers", least=0))
    keys.count("attention.indexer.head_count", config.count("index_n_heads"))
    keys.count("attention.indexer.key_length", config.count("index_head_dim"))
    keys.count("attention.indexer.top_k", config.count("index_topk"))


_DEFAULTS: dict[str, object] = {
    "first_k_dense_replace": 3,
    "index_head_dim": 128,
    "index_topk": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.5,
}

CLASSES = {
    "GlmMoeDsaForCausalLM": Architecture(
        "glm-dsa",
        _glm_table,
        _write_glm_keys,
        {
            **_DEFAULTS,
            "index_n_heads": 32,
            "max_position_embeddings": 202752,
            "n_group": 1,
            "rms_norm_eps": 1e-5,
            "topk_group": 1,
        },
        GLM_TOKENS,
    ),
    "DeepseekV32ForCausalLM": Architecture(
        "deepseek32",
        _deepseek_table,
        _write_deepseek_keys,
        {
            **_DEFAULTS,
            "index_n_heads": 64,
            "max_position_embeddings": 163840,
            "n_group": 8,
            "rms_norm_eps": 1e-6,
            "topk_group": 4,
        },
        TokenizerRules(needs_bos=True),
    ),
}
