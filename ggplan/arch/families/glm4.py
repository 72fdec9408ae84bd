"""GLM-4-0414, GLM-Z1 and the text part of GLM-4.1V: the GGUF architecture `glm4`.

Gate and up are one matrix, `mlp.gate_up_proj`, gate first, and stay one (`ffn_up`, 2 n rows). With M-RoPE,
which the models that see have, llama.cpp rotates the first half of what a head rotates against the second,
while transformers rotates neighbours; so rows of Q and K move.

`Glm4Model` in `conversion/glm.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from ggplan.arch.architecture import Architecture, TokenizerRules, head_width
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, rope_parameters, rotated_columns, text_keys
from ggplan.arch.tensors import DENSE, Table
from ggplan.arch.transforms import halves_first, plain


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("glm4", config)
    width, columns = config.count("hidden_size"), config.count("intermediate_size")
    turned = plain
    if rope_parameters(config).values.get("mrope_section") is not None:
        turned = partial(halves_first, group=head_width(config), length=_rotated(config))
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("input_layernorm self_attn.v_proj self_attn.o_proj"),
            *layout.layer("self_attn.{q,k}_proj", transform=turned),
            *layout.layer("post_self_attn_layernorm post_attention_layernorm post_mlp_layernorm"),
            *layout.layer("mlp.gate_up_proj", shape=(2 * columns, width)),
            *layout.layer("mlp.down_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
    )


def _rotated(config: Config) -> int:
    return rotated_columns(config, head_width(config), 0.5)


def _write_keys(keys: Keys, config: Config) -> None:
    text_keys(keys, config)
    keys.count("rope.dimension_count", _rotated(config))


_GLM4 = Architecture(
    "glm4",
    _table,
    _write_keys,
    {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
    TokenizerRules(
        special_tokens={
            "eos": "<|endoftext|>",
            "eot": "<|user|>",
            "unk": "<|endoftext|>",
            "bos": "<|endoftext|>",
        }
    ),
)

CLASSES = {"Glm4ForCausalLM": _GLM4, "Glm4vForConditionalGeneration": _GLM4}
