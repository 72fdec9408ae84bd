"""Llama, Mistral and Mixtral: the GGUF architecture `llama`.

Q and K are permuted (see `transforms`). Llama 3's rope scaling becomes a tensor of one divisor per frequency,
`rope_freqs.weight`. Mixtral calls its experts `block_sparse_moe.experts.N.w1` (gate), `w2` (down), `w3` (up).

`LlamaModel` in `conversion/llama.py` of llama.cpp b11434.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial

from ggplan.arch.architecture import Architecture, TokenizerRules, head_width, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, base_keys, full_attention_rope
from ggplan.arch.tensors import DENSE, MOE, Table, TensorSpec
from ggplan.arch.transforms import constant, permuted
from ggplan.errors import CheckpointError
from ggplan.ggml_types import F32
from ggplan.model import TensorInfo

# A head of attention has some hundred columns; the divisors are computed from this number alone.
_WIDEST_HEAD = 65536


def _dense(config: Config, names: Collection[str]) -> Table:
    return dense_table("llama", config)


def dense_table(architecture: str, config: Config) -> Table:
    """The tensors of a dense model, which kin have under another architecture's name."""
    layout = Layout(architecture, config)
    return Table(
        [*_common(layout, config), *layout.layer("mlp.{gate,up,down}_proj")],
        [DENSE] * config.layers("num_hidden_layers"),
        computed=rope_factors(config),
    )


def _mixtral(config: Config, names: Collection[str]) -> Table:
    layout = Layout("llama", config, M=config.count("intermediate_size"))
    moe = "block_sparse_moe."
    return Table(
        [
            *_common(layout, config),
            *layout.layer(moe + "gate"),
            *layout.experts((), f"{moe}experts.w1 {moe}experts.w2 {moe}experts.w3"),
        ],
        [MOE] * config.layers("num_hidden_layers"),
        config.count("num_local_experts"),
        rope_factors(config),
    )


def _common(layout: Layout, config: Config) -> list[TensorSpec]:
    if head_width(config) % 2:
        raise CheckpointError(
            f"{config.where}: heads of {head_width(config)} columns cannot be rotated in pairs"
        )
    of_q = partial(permuted, n_heads=config.count("num_attention_heads"))
    of_k = partial(permuted, n_heads=heads_kv(config))
    return [
        *layout.outside("model.embed_tokens model.norm lm_head?"),
        *layout.layer("input_layernorm"),
        *layout.layer("self_attn.q_proj", transform=of_q),
        *layout.layer("self_attn.k_proj", transform=of_k),
        *layout.layer("self_attn.v_proj self_attn.o_proj post_attention_layernorm"),
    ]


def write_keys(keys: Keys, config: Config) -> None:
    """Write the keys of a dense model."""
    _keys(keys, config, head_width(config))


def _write_mixtral_keys(keys: Keys, config: Config) -> None:
    _keys(keys, config, config.optional_count("head_dim"))


def _keys(keys: Keys, config: Config, head_dim: int | None) -> None:
    n_blocks = config.count("num_hidden_layers")
    base_keys(keys, config, n_blocks=n_blocks, head_dim=head_dim, n_heads_kv=heads_kv(config))
    keys.count("vocab_size", config.count("vocab_size"))
    keys.count("rope.dimension_count", head_width(config))


def rope_factors(config: Config, rotated: int | None = None) -> list[TensorInfo]:
    """The divisors of the rotation frequencies in Llama 3.1; none without its kind of scaling.

    A wave longer than the old context / low_freq_factor is stretched by `factor`, one shorter than the old
    context / high_freq_factor is kept, and between them the factor changes smoothly. Computed in float32 as
    in the converter, except for the power: torch computes it with an error of up to one unit in the last
    place, which differs between processors; here it is rounded correctly.

    Parameters
    ----------
    config
        The model's config.
    rotated
        Columns of a head that are rotated, if not all: the others have a divisor of 1. The converter computes
        these in float64.
    """
    rope = full_attention_rope(config)
    if (rope.optional_text("rope_type") or "").lower() != "llama3":
        return []
    n_columns = head_width(config)
    if n_columns > _WIDEST_HEAD:
        raise CheckpointError(f"{config.where}: heads of {n_columns} columns are too wide to be real")
    base, factor = _positive(rope, "rope_theta", 10000), _positive(rope, "factor", 8)
    low, high = _positive(rope, "low_freq_factor", 1), _positive(rope, "high_freq_factor", 4)
    if low > high:  # equal in Llama 4
        raise rope.wrong("low_freq_factor", "is not below high_freq_factor")
    context = _positive(rope, "original_max_position_embeddings", 8192)
    kind = "float32" if rotated is None else "float64"
    factors = _smooth_factors(rotated or n_columns, base, (factor, low, high, context), kind)
    rows = constant([*factors, *[1.0] * (n_columns // 2 - len(factors))])
    return [TensorInfo("rope_freqs.weight", rows.shape, F32, "config.json", "F32", rows)]


def _smooth_factors(
    n_columns: int, base: float, scaling: tuple[float, float, float, float], kind: str
) -> list[float]:
    import numpy as np

    factor, low, high, context = scaling
    number = np.dtype(kind).type
    exponents = np.arange(0, n_columns, 2, dtype=np.float32) / np.float32(n_columns)
    powers = np.array([base ** float(e) for e in exponents], np.float32)
    one, stretch, old = number(1), number(factor), number(context)
    with np.errstate(all="ignore"):
        waves = number(2 * math.pi) / (np.float32(1) / powers).astype(number)
        smooth = (old / waves - number(low)) / number(high - low)
        between = one / ((one - smooth) / stretch + smooth)
    kept, stretched = waves < number(context / high), waves > number(context / low)
    return [float(f) for f in np.where(kept, one, np.where(stretched, stretch, between))]


def _positive(rope: Config, key: str, default: float) -> float:
    value = rope.optional_number(key)
    if value is not None and not 1e-6 < value < 1e12:
        raise rope.wrong(key, f"is {value:g}, which is not plausible")
    return default if value is None else value


LLAMA_TOKENIZER = TokenizerRules(sentencepiece=True, byte_fallback=True, llama_style=True)

LLAMA = Architecture(
    "llama",
    _dense,
    write_keys,
    {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
    LLAMA_TOKENIZER,
)
MISTRAL = Architecture(
    "llama",
    _dense,
    write_keys,
    {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    LLAMA_TOKENIZER,
)
MIXTRAL = Architecture(
    "llama",
    _mixtral,
    _write_mixtral_keys,
    {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    },
    LLAMA_TOKENIZER,
)

CLASSES = {
    "LLaMAForCausalLM": LLAMA,
    "LlamaForCausalLM": LLAMA,
    "LlamaModel": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "MixtralForCausalLM": MIXTRAL,
}
