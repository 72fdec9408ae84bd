"""DeepSeek V2, V3 and R1, and Kimi K2: the GGUF architecture `deepseek2`.

Multi-head latent attention: K and V of all heads are made from one narrow vector by `kv_b_proj`. llama.cpp
multiplies K's part into the query and V's part into the output instead, so the matrix is cut in two and K's
part transposed, and the cache holds a single head of `kv_lora_rank` + `qk_rope_head_dim` columns. That is why
`head_count_kv` is 1 here. The layers that predict further tokens are left out, as llama.cpp's converter does.

`DeepseekV2Model` in `conversion/deepseek.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from ggplan.arch.architecture import (
    BLOCK,
    LAYER,
    Architecture,
    TokenizerRules,
    embeddings,
    ffn,
    heads_kv,
)
from ggplan.arch.config import Config
from ggplan.arch.metadata import Keys, base_keys, rope_parameters
from ggplan.arch.tensors import DENSE, MOE, Table, TensorSpec, split_numbers
from ggplan.arch.transforms import sliced, transposed_slices


def _table(config: Config, names: Collection[str]) -> Table:
    n_layers = config.layers("num_hidden_layers")
    has_experts = config.values.get("n_routed_experts") is not None
    n_dense = _n_dense(config)
    layers = [DENSE if k < n_dense or not has_experts else MOE for k in range(n_layers)]
    tied = config.flag("tie_word_embeddings")
    width = config.count("hidden_size")

    def ignore(name: str) -> bool:
        source, layer, _ = split_numbers(name)
        further = source.startswith(LAYER) and layer >= n_layers
        return further or (tied and name == "lm_head.weight")

    return Table(
        [
            *embeddings(config),
            *_attention(config),
            TensorSpec(LAYER + "post_attention_layernorm.weight", BLOCK + "ffn_norm.weight", (width,)),
            *ffn("mlp.", "", config.count("intermediate_size"), width, "dense"),
            *(_experts(config, width) if has_experts else ()),
        ],
        layers,
        config.count("n_routed_experts") if has_experts else 0,
        ignore=ignore,
    )


def _attention(config: Config) -> list[TensorSpec]:
    width, n_heads, n_heads_kv = (
        config.count("hidden_size"),
        config.count("num_attention_heads"),
        heads_kv(config),
    )
    rank, rope, nope, v = (
        config.count(key) for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    q_rank = config.optional_count("q_lora_rank")
    source, target = LAYER + "self_attn.", BLOCK + "attn_"
    q_rows = n_heads * (nope + rope)
    if q_rank is None:
        q = [TensorSpec(source + "q_proj.weight", target + "q.weight", (q_rows, width))]
    else:
        q = [
            TensorSpec(source + "q_a_proj.weight", target + "q_a.weight", (q_rank, width)),
            TensorSpec(source + "q_a_layernorm.weight", target + "q_a_norm.weight", (q_rank,)),
            TensorSpec(source + "q_b_proj.weight", target + "q_b.weight", (q_rows, q_rank)),
        ]

    k_part = partial(transposed_slices, group=nope + v, length=nope)
    v_part = partial(sliced, group=nope + v, offset=nope, length=v)
    kv_b, kv_shape = source + "kv_b_proj.weight", (n_heads_kv * (nope + v), rank)
    return [
        TensorSpec(LAYER + "input_layernorm.weight", target + "norm.weight", (width,)),
        *q,
        TensorSpec(source + "kv_a_proj_with_mqa.weight", target + "kv_a_mqa.weight", (rank + rope, width)),
        TensorSpec(source + "kv_a_layernorm.weight", target + "kv_a_norm.weight", (rank,)),
        TensorSpec(kv_b, target + "k_b.weight", kv_shape, transform=k_part, bias=False),
        TensorSpec(kv_b, target + "v_b.weight", kv_shape, transform=v_part, bias=False),
        TensorSpec(source + "o_proj.weight", target + "output.weight", (width, n_heads * v)),
    ]


def _experts(config: Config, width: int) -> list[TensorSpec]:
    n_experts, n_columns = config.count("n_routed_experts"), config.count("moe_intermediate_size")
    n_shared = config.optional_count("n_shared_experts", least=0) or 0
    return [
        TensorSpec(LAYER + "mlp.gate.weight", BLOCK + "ffn_gate_inp.weight", (n_experts, width), "moe"),
        TensorSpec(
            LAYER + "mlp.gate.e_score_correction_bias",
            BLOCK + "exp_probs_b.bias",
            (n_experts,),
            "moe",
            optional=True,
        ),
        *ffn("mlp.experts.{}.", "_exps", n_columns, width, "moe"),
        *(ffn("mlp.shared_experts.", "_shexp", n_shared * n_columns, width, "moe") if n_shared else ()),
    ]


def _n_dense(config: Config) -> int:
    stated = config.optional_count("first_k_dense_replace", least=0)
    if stated is not None:
        return stated
    return config.count("num_hidden_layers") if config.values.get("n_routed_experts") is None else 0


def _write_keys(keys: Keys, config: Config) -> None:
    rank, rope = config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
    # Overwritten below; it comes first here because the order of keys is that of transformers' classes.
    head_dim = rope if config.optional_text("model_type") in ("deepseek_v2", "deepseek_v3") else None
    base_keys(keys, config, n_blocks=config.count("num_hidden_layers"), head_dim=head_dim, n_heads_kv=1)
    keys.count("leading_dense_block_count", _n_dense(config))
    keys.count("vocab_size", config.count("vocab_size"))
    keys.count("attention.q_lora_rank", config.optional_count("q_lora_rank"))
    keys.count("attention.kv_lora_rank", rank)
    keys.count("attention.key_length", rank + rope)
    keys.count("attention.value_length", rank)
    keys.count("attention.key_length_mla", config.count("qk_nope_head_dim") + rope)
    keys.count("attention.value_length_mla", config.count("v_head_dim"))
    columns = config.optional_count("moe_intermediate_size") or config.count("intermediate_size")
    keys.count("expert_feed_forward_length", columns)
    keys.count("expert_shared_count", config.optional_count("n_shared_experts", least=0) or 0)
    keys.number("expert_weights_scale", config.optional_number("routed_scaling_factor"))
    keys.flag("expert_weights_norm", config.flag("norm_topk_prob") or None)
    keys.count("rope.dimension_count", rope)
    mscale = rope_parameters(config).optional_number("mscale_all_dim")
    keys.number("rope.scaling.yarn_log_multiplier", None if mscale is None else 0.1 * mscale)


_TOKENIZER = TokenizerRules(tiktoken=True)  # Kimi K2's
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}

DEEPSEEK_V2 = Architecture(
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
DEEPSEEK_V3 = Architecture(
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

CLASSES = {"DeepseekV2ForCausalLM": DEEPSEEK_V2, "DeepseekV3ForCausalLM": DEEPSEEK_V3}
