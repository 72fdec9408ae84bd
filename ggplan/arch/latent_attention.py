"""The tensors and keys of models with multi-head latent attention: DeepSeek V2 and its kin.

`DeepseekV2Model` in `conversion/deepseek.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from ggplan.arch.architecture import LAYER, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout, n_next_tokens
from ggplan.arch.metadata import Keys, base_keys, rope_parameters
from ggplan.arch.tensors import DENSE, MOE, MTP, Kinds, Table, TensorSpec, split_numbers
from ggplan.arch.transforms import sliced, transposed_slices


def latent_table(
    architecture: str,
    config: Config,
    names: Collection[str],
    *,
    keeps_next: bool,
    experts: Callable[[Layout, Collection[str]], Sequence[TensorSpec]] = Layout.experts,
    more: Callable[[Layout], Sequence[TensorSpec]] = lambda layout: (),
    further_kinds: Callable[[int], Kinds] = lambda layer: frozenset(),
) -> Table:
    """The tensors of such a model.

    Parameters
    ----------
    keeps_next
        Whether the layers that predict further tokens are kept.
    experts
        The routed experts, for an architecture that stores them in another way.
    more, further_kinds
        What an architecture has beside them, and of which kinds a layer is beside dense, with experts, or one
        that predicts further tokens.
    """
    n_layers = config.layers("num_hidden_layers")
    n_next = n_next_tokens(config) if keeps_next else 0
    has_experts = config.values.get("n_routed_experts") is not None
    n_dense = _n_dense(config, n_layers)
    tied = config.flag("tie_word_embeddings")
    layout = Layout(architecture, config)

    def ignore(name: str) -> bool:
        source, layer, _ = split_numbers(name)
        further = not keeps_next and source.startswith(LAYER) and layer >= n_layers
        return further or (tied and name == "lm_head.weight")

    kinds = [DENSE if k < n_dense or not has_experts else MOE for k in range(n_layers)] + [MTP] * n_next
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm"),
            *_attention(layout, config),
            *layout.layer("mlp.{down,gate,up}_proj", "dense"),
            *([*_router(layout), *experts(layout, names), *layout.shared_experts()] if has_experts else ()),
            *(layout.next_tokens() if n_next else ()),
            *more(layout),
        ],
        [kind | further_kinds(k) for k, kind in enumerate(kinds)],
        config.count("n_routed_experts") if has_experts else 0,
        ignore=ignore,
    )


def _attention(layout: Layout, config: Config) -> list[TensorSpec]:
    width, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    rank, rope, nope, v = (
        config.count(key) for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    q_rank, q_rows = config.optional_count("q_lora_rank"), n_heads * (nope + rope)
    if q_rank is None:
        q = layout.layer("self_attn.q_proj", shape=(q_rows, width))
    else:
        q = [
            *layout.layer("self_attn.q_a_proj", shape=(q_rank, width)),
            *layout.layer("self_attn.q_a_layernorm", shape=(q_rank,)),
            *layout.layer("self_attn.q_b_proj", shape=(q_rows, q_rank)),
        ]
    kv_b = partial(
        layout.layer, "self_attn.kv_b_proj", shape=(heads_kv(config) * (nope + v), rank), bias=False
    )
    k_part = partial(transposed_slices, group=nope + v, length=nope)
    v_part = partial(sliced, group=nope + v, offset=nope, length=v)
    return [
        *q,
        *layout.layer("self_attn.kv_a_proj_with_mqa", shape=(rank + rope, width)),
        *layout.layer("self_attn.kv_a_layernorm", shape=(rank,)),
        *kv_b(like="self_attn.k_b_proj", transform=k_part),
        *kv_b(like="self_attn.v_b_proj", transform=v_part),
        *layout.layer("self_attn.o_proj", shape=(width, n_heads * v)),
    ]


def _router(layout: Layout) -> list[TensorSpec]:
    return [
        *layout.layer("mlp.gate", "moe"),
        *layout.parameter(
            "mlp.gate.e_score_correction_bias?", "moe", like="mlp.gate.e_score_correction.bias"
        ),
    ]


def _n_dense(config: Config, n_layers: int) -> int:
    """Dense layers at the start, told by a count or by the kind of each."""
    stated = config.optional_count("first_k_dense_replace", least=0)
    if stated is not None:
        return stated
    kinds = config.texts("mlp_layer_types")
    if kinds:
        return next((k for k, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    return n_layers if config.values.get("n_routed_experts") is None else 0


def latent_keys(keys: Keys, config: Config, *, n_blocks: int) -> None:
    """Write the keys of such a model, those that all share included."""
    rank, rope = config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
    # Overwritten below; it comes first here because the order of keys is that of transformers' classes.
    has_head = config.optional_text("model_type") in _WITH_HEAD_DIM
    base_keys(keys, config, n_blocks=n_blocks, head_dim=rope if has_head else None, n_heads_kv=1)
    dense = config.optional_count("first_k_dense_replace", least=0)
    if dense is None:
        dense = config.count("num_hidden_layers") if config.values.get("n_routed_experts") is None else 0
    keys.count("leading_dense_block_count", dense)
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


# The `model_type` of configs whose transformers class has a `head_dim`.
_WITH_HEAD_DIM = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "mistral4", "youtu")
