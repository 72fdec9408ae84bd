"""GLM-4-9B of 2024: the GGUF architecture `chatglm`.

Gate and up are one matrix, gate first, and stay one. The converter's length of context is the model's width,
since `config.json` of these classes has no `seq_length`, and it ignores `rope_theta`.

`ChatGLMModel` in `conversion/chatglm.py` of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Collection

from ggplan.arch.architecture import Architecture, TokenizerRules, heads_kv
from ggplan.arch.config import Config
from ggplan.arch.layout import Layout
from ggplan.arch.metadata import Keys, rotated_columns
from ggplan.arch.tensors import DENSE, Table
from ggplan.metadata import boolean


def _table(config: Config, names: Collection[str]) -> Table:
    layout = Layout("chatglm", config)
    width, columns = config.count("hidden_size"), config.count("intermediate_size")
    return Table(
        [
            *layout.outside("model.embed_tokens model.norm lm_head?"),
            *layout.layer("{input,post_attention}_layernorm"),
            *layout.layer("self_attn.{q,k,v,o}_proj"),
            *layout.layer("mlp.gate_up_proj", shape=(2 * columns, width)),
            *layout.layer("mlp.down_proj"),
        ],
        [DENSE] * config.layers("num_hidden_layers"),
    )


def _write_keys(keys: Keys, config: Config) -> None:
    width, n_heads = config.count("hidden_size"), config.count("num_attention_heads")
    keys.count("context_length", config.optional_count("seq_length") or width)
    keys.count("embedding_length", width)
    keys.count("feed_forward_length", config.count("intermediate_size"))
    keys.count("block_count", config.count("num_hidden_layers"))
    keys.count("attention.head_count", n_heads)
    keys.count("attention.head_count_kv", heads_kv(config))
    epsilon = config.optional_number("layernorm_epsilon")
    keys.number("attention.layer_norm_rms_epsilon", 1e-5 if epsilon is None else epsilon)
    keys.count("rope.dimension_count", rotated_columns(config, width // n_heads, 0.5))
    keys.values["tokenizer.ggml.add_bos_token"] = boolean(False)
    keys.number("rope.freq_base", 10000 * (config.optional_number("rope_ratio") or 1))


CLASSES = {
    "GlmForCausalLM": Architecture(
        "chatglm",
        _table,
        _write_keys,
        {"head_dim": 128, "num_key_value_heads": 2, "partial_rotary_factor": 0.5},
        TokenizerRules(special_tokens={"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>"}),
    )
}
