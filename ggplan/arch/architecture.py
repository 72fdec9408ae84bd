"""The contents of an architecture, and the parts of tables that most architectures share.

An architecture is a table of tensors, a function that writes its keys, the defaults of its transformers
class that reach the GGUF, and the special rules of its tokenizer. Each is a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

from ggplan.arch.config import Config
from ggplan.arch.metadata import Keys
from ggplan.arch.tensors import Table, TensorSpec
from ggplan.arch.transforms import permuted, plain

LAYER, BLOCK = "model.layers.{}.", "blk.{}."


@dataclass(frozen=True, slots=True)
class TokenizerRules:
    """The special rules of a family's tokenizers.

    Attributes
    ----------
    sentencepiece
        Whether the converter uses `tokenizer.model` if there is one.
    byte_fallback
        Whether it takes a tokenizer.json of BPE over characters, with byte fallback, for sentencepiece's.
    tiktoken
        Whether it uses `tiktoken.model` where there is no tokenizer.json.
    space_prefix
        The `add_space_prefix` that it writes after a vocabulary of sentencepiece; None for none.
    llama_style
        Whether the converter writes `add_space_prefix`, and no BOS for a vocabulary of 49152 tokens.
    special_tokens
        Kinds of special tokens and their texts, for kinds that neither config names.
    """

    sentencepiece: bool = False
    byte_fallback: bool = False
    tiktoken: bool = False
    space_prefix: bool | None = None
    llama_style: bool = False
    special_tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of `architectures` in config.json.

    Attributes
    ----------
    name
        The GGUF's `general.architecture`.
    table
        The tensors, for a config and the names that the checkpoint holds.
    write_keys
        Writes the keys of the architecture.
    defaults
        The values that transformers assumes if config.json has none.
    tokenizer
        The special rules of the tokenizer.
    """

    name: str
    table: Callable[[Config, Collection[str]], Table]
    write_keys: Callable[[Keys, Config], None]
    defaults: Mapping[str, object]
    tokenizer: TokenizerRules = TokenizerRules()


def head_width(config: Config) -> int:
    """Columns of one head of attention."""
    stated = config.optional_count("head_dim")
    return stated or max(1, config.count("hidden_size") // config.count("num_attention_heads"))


def heads_kv(config: Config) -> int:
    """Heads of K and V: as many as of Q if config.json says null."""
    return config.optional_count("num_key_value_heads") or config.count("num_attention_heads")


def embeddings(config: Config) -> list[TensorSpec]:
    """The embedding, the last norm and the output.

    Where there is no output, llama.cpp uses the embedding in its place, whatever the config says.
    """
    width, vocab = config.count("hidden_size"), config.count("vocab_size")
    return [
        TensorSpec("model.embed_tokens.weight", "token_embd.weight", (vocab, width), bias=False),
        TensorSpec("model.norm.weight", "output_norm.weight", (width,)),
        TensorSpec("lm_head.weight", "output.weight", (vocab, width), optional=True),
    ]


def attention(config: Config, *, permute: bool = False) -> list[TensorSpec]:
    """Grouped-query attention and the norm before it."""
    width, head = config.count("hidden_size"), head_width(config)
    n_heads, n_kv = config.count("num_attention_heads"), heads_kv(config)
    specs = [TensorSpec(LAYER + "input_layernorm.weight", BLOCK + "attn_norm.weight", (width,))]
    for part, heads in (("q", n_heads), ("k", n_kv), ("v", n_kv)):
        source, target = f"{LAYER}self_attn.{part}_proj.", f"{BLOCK}attn_{part}."
        transform = partial(permuted, n_heads=heads) if permute and part != "v" else plain
        specs.append(
            TensorSpec(source + "weight", target + "weight", (heads * head, width), transform=transform)
        )
    source, target = LAYER + "self_attn.o_proj.", BLOCK + "attn_output."
    specs.append(TensorSpec(source + "weight", target + "weight", (width, n_heads * head)))
    return specs


def qk_norms(config: Config, *, optional: bool = False) -> list[TensorSpec]:
    """The norms of each head's Q and K."""
    shape = (head_width(config),)
    return [
        TensorSpec(
            f"{LAYER}self_attn.{x}_norm.weight", f"{BLOCK}attn_{x}_norm.weight", shape, optional=optional
        )
        for x in "qk"
    ]


def ffn(prefix: str, suffix: str, n_columns: int, width: int, kind: str = "") -> list[TensorSpec]:
    """The three matrices of a gated feed-forward part, in the order in which the converter writes experts.

    `prefix` comes before `down_proj` in the checkpoint's names, `suffix` ends the GGUF's: `_exps`, `_shexp`.
    """
    shapes = {"down": (width, n_columns), "gate": (n_columns, width), "up": (n_columns, width)}
    return [
        TensorSpec(f"{LAYER}{prefix}{part}_proj.weight", f"{BLOCK}ffn_{part}{suffix}.weight", shape, kind)
        for part, shape in shapes.items()
    ]
